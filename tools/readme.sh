#!/usr/bin/env bash
# Run a command of the README as it is written: the `first`, on a free port, until its service answers,
# or the `tests`, which take more arguments. For machines with Python and Git only; it leaves .tools/ and ../my-service.
set -euo pipefail
cd "$(dirname "$0")/.."

command_of_readme() { # The N-th of its blocks of commands.
  awk -v wanted="$1" '/^```/ { inside = /^```console$/; n += inside; next } inside && n == wanted' README.md
}

case ${1:-} in
  first)
    # On a port of its own: the README's may be another service's. The command ends with `runserver`.
    port=$(python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
    command="$(command_of_readme 1) --port $port"
    setsid bash -euc "$command" &
    service=$!
    trap 'kill -TERM -- "-$service" 2>/dev/null || true; wait "$service" || true' EXIT
    for _ in $(seq 600); do
      kill -0 "$service"
      if python3 -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1])' \
        "http://127.0.0.1:$port/readyz" 2>/dev/null; then
        python3 - "http://127.0.0.1:$port/items" <<'PYTHON'
import json, sys, urllib.request

url = sys.argv[1]
request = urllib.request.Request(url, b'{"name": "lamp"}', {"Content-Type": "application/json"})
written = json.load(urllib.request.urlopen(request))
read = json.load(urllib.request.urlopen(f"{url}/{written['id']}"))
assert read == written, (read, written)
print("The service of the README has stored and read", read)
PYTHON
        exit
      fi
      sleep 1
    done
    exit 1
    ;;
  tests) bash -euc "$(command_of_readme 2) \"\$@\"" "$@" ;;
  *)
    echo "usage: $0 first|tests [ARGUMENT ...]" >&2
    exit 2
    ;;
esac
