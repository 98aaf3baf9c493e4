#!/usr/bin/env bash
# Try the README's first command, and each program that tests install, in a bare Debian: a folder with
# Python and Git, and nothing else. Where none can be made, this is said, and no failure.
#
#   tools/bare_debian.sh              with a clone of what is committed
#   tools/bare_debian.sh 'COMMAND'    another command in that clone
#
# The system is made once and kept in /var/cache/fastapi-pools; each run has a copy, removed at its end.
# Processes and mounts are in namespaces of their own: however the run ends, the kernel ends them.
set -euo pipefail
cd "$(dirname "$0")/.."

release=bookworm # The oldest whose Python is new enough.
packages=python3,python3-venv,git,ca-certificates
cache=/var/cache/fastapi-pools
bare=$cache/$release-$packages
apart=(unshare --mount --pid --ipc --fork --kill-child)
proof='tools/readme.sh first && tools/readme.sh tests --numprocesses=2 -m programs'

give_up() {
  echo "No bare Debian: $1." >&2
  exit "$asked"
}

mirrors() { # Of the release, and its updates, as this machine's apt has them: URL and suite.
  # shellcheck disable=SC2016 # The names are apt's.
  apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' \
    'Origin: Debian' 'Component: main' 2>/dev/null | grep -E " $release(-|\$)" | sort -u || true
}

make_bare() {
  command -v debootstrap >/dev/null \
    || DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends \
      debootstrap debian-archive-keyring >/dev/null \
    || give_up "debootstrap cannot be installed"
  rm -rf --one-file-system "$cache/new"
  # shellcheck disable=SC2046 # One mirror, or none.
  "${apart[@]}" debootstrap --variant=minbase --include="$packages" "$release" "$cache/new" \
    $(mirrors | sed -n "s/ $release\$//p" | head -1) >"$cache/log" 2>&1 \
    || give_up "debootstrap failed; $cache/log ends with: $(tail -1 "$cache/log")"
  rm -f "$cache/new/var/cache/apt/archives/"*.deb
  mv "$cache/new" "$bare"
}

take_over() { # A file or folder, to the same place in the copy.
  [[ -e $1 ]] || return 0
  mkdir -p "$copy${1%/*}"
  rm -rf --one-file-system "${copy:?}$1"
  cp -RL "$1" "$copy$1"
}

take_settings() { # How this machine reaches package registries: names, certificates, clients' settings.
  local name value file suites
  for file in /etc/{resolv.conf,hosts,ssl/certs,pip.conf,xdg/pip,uv} /usr/local/share/ca-certificates \
    ~/.config/{pip,uv} ~/.pip; do
    take_over "$file"
  done
  apt-config dump Acquire >"$copy/etc/apt/apt.conf.d/99machine"
  suites=$(mirrors | sed 's/.*/deb & main/')
  [[ ! $suites ]] || echo "$suites" >"$copy/etc/apt/sources.list"
  while IFS='=' read -r -d '' name value; do
    case $name in
      *_proxy | *_PROXY | SSL_CERT_* | *_CA_BUNDLE | GIT_SSL_CAINFO | NODE_EXTRA_CA_CERTS | \
        PIP_CERT | PIP_CONSTRAINT | PIP_DEFAULT_TIMEOUT | PIP_*INDEX_URL | PIP_FIND_LINKS | PIP_TRUSTED_HOST | \
        UV_*INDEX* | UV_FIND_LINKS | UV_CONSTRAINT | UV_NATIVE_TLS | UV_SYSTEM_CERTS | UV_INSECURE_HOST | \
        UV_*_TIMEOUT)
        variables+=("$name=$value")
        if [[ $value == /* && $value != /etc/ssl/certs* ]]; then take_over "$value"; fi
        ;;
    esac
  done < <(env -0)
}

mount_devices() { # In $copy, without its own: no program there can reach a disk.
  local node
  mount -t proc proc "$copy/proc"
  mount -t tmpfs -o mode=755 dev "$copy/dev"
  for node in null zero full random urandom tty; do
    touch "$copy/dev/$node"
    mount --bind "/dev/$node" "$copy/dev/$node"
  done
  mkdir "$copy/dev/shm" "$copy/dev/pts"
  mount -t tmpfs shm "$copy/dev/shm"
  mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$copy/dev/pts"
  ln -s pts/ptmx "$copy/dev/ptmx"
  ln -s /proc/self/fd "$copy/dev/fd"
}

if [[ ${1:-} == --apart ]]; then # In the namespaces; the first process there, which collects orphans.
  copy=$2 variables=()
  if (($(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo) > 8 << 20)); then
    mount -t tmpfs copy "$copy" # Some 3 GB; a disk needs minutes to remove them.
  fi
  chmod 755 "$copy"
  cp -a "$bare/." "$copy"
  take_settings
  git clone --quiet . "$copy/root/project"
  mount_devices
  chroot "$copy" env -i "${variables[@]}" CI=true HOME=/root LANG=C.UTF-8 \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    bash -euc "cd /root/project; ${3:-$proof}"
  exit
fi

asked=$(($# > 0)) # What was asked for and cannot be done is a failure.
[[ $EUID == 0 ]] || give_up "only root can make one"
command -v apt-get >/dev/null || give_up "debootstrap is Debian's and its descendants'"
"${apart[@]}" true 2>/dev/null || give_up "namespaces may not be made here"
mkdir -p "$cache"
exec {lock}>"$cache/lock"
flock "$lock"
[[ -d $bare ]] || make_bare
exec {lock}>&-

copy=$(mktemp -d "$cache/copy.XXXXXX")
"${apart[@]}" bash tools/bare_debian.sh --apart "$copy" "$@" </dev/null &
run=$!
clean() {
  kill -KILL "$run" 2>/dev/null || true
  wait "$run" 2>/dev/null || true
  for _ in {1..50}; do # The last of its processes may be about to end.
    rm -rf --one-file-system "$copy" 2>/dev/null && break
    sleep 0.2
  done
}
trap clean EXIT
wait "$run"
