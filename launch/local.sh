#!/usr/bin/env bash
# Runs one study on this machine, on all its devices: launch/local.sh CONFIG WORKDIR [FLAGS...]
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: launch/local.sh CONFIG WORKDIR [flags of tll_jax.main...]" >&2
  exit 2
fi
config=$1 workdir=$2
shift 2
exec python -m tll_jax.main --config="$config" --workdir="$workdir" "$@"
