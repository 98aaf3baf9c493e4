#!/usr/bin/env bash
# Run a command of the README as it is written: the `first`, until its service answers, or the `tests`.
# For machines that have Python and Git only: it needs nothing else, and leaves .tools/ and ../my-service.
set -euo pipefail
cd "$(dirname "$0")/.."

command_of_readme() { # The N-th of its blocks of commands.
  sed -n '/^```console$/,/^```$/p' README.md | awk -v wanted="$1" '/^```console/ { n++ } n == wanted && !/^```/'
}

case ${1:-} in
  first)
    setsid bash -euc "$(command_of_readme 1)" &
    service=$!
    trap 'kill -TERM -- "-$service" 2>/dev/null || true; wait "$service" || true' EXIT
    for _ in $(seq 600); do
      kill -0 "$service"
      if python3 -c 'import urllib.request as u; u.urlopen("http://127.0.0.1:8000/readyz")' 2>/dev/null; then
        echo "the service of the README is ready"
        exit
      fi
      sleep 1
    done
    exit 1
    ;;
  tests) bash -euc "$(command_of_readme 2)" ;;
  *)
    echo "usage: $0 first|tests" >&2
    exit 2
    ;;
esac
