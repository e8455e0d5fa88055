#!/usr/bin/env bash
# Runs one study on every worker of a Cloud TPU VM or slice: copies the commit there, installs it, starts it.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: launch/tpu_vm.sh [--dry-run] NAME ZONE CONFIG WORKDIR [FLAGS of tll_jax.main...]
       launch/tpu_vm.sh --on-worker CONFIG WORKDIR [FLAGS...]    run by the first form on each worker

  --dry-run    print what would run, and stop

NAME is an existing TPU VM or slice (gcloud compute tpus tpu-vm create). It runs the commit that is checked out here.
With several workers, WORKDIR must be on a shared file system that is mounted first, such as Filestore over NFS.
The run outlives a lost connection or Ctrl-C here. The same command again stops it, which saves, and continues it.
USAGE
}
show() { printf '%q' "$1" && printf ' %q' "${@:2}" && echo; }
run() { if [ -n "$dry_run" ]; then show "$@"; else "$@"; fi; }

dry_run='' on_worker=''
case ${1-} in
  --help) usage && exit ;;
  --dry-run) dry_run=yes && shift ;;
  --on-worker) on_worker=yes && shift ;;
esac
if [ $# -lt "$([ -n "$on_worker" ] && echo 2 || echo 4)" ]; then
  usage >&2
  exit 2
fi

if [ -n "$on_worker" ]; then
  cd "$(dirname "$0")/.."
  earlier=$(cat run.pid 2>/dev/null || true)
  if grep -qs tll_jax.main "/proc/$earlier/cmdline"; then
    kill -TERM "$earlier"
    while [ -e "/proc/$earlier" ]; do sleep 1; done
  fi
  # uv brings its own Python: images of TPU VMs come with 3.10.
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --allow-existing --python 3.12 .venv
  python3 -m uv pip install --quiet --editable '.[tpu,faces,surf,weights]'
  echo $$ >run.pid
  exec .venv/bin/python -m tll_jax.main --config="$1" --workdir="$2" --distributed "${@:3}"
fi

name=$1 zone=$2
shift 2
unpack='mkdir -p tll_jax && tar -xzf tll_jax.tar.gz -C tll_jax'
on_worker=$(show tll_jax/launch/tpu_vm.sh --on-worker "$@")
archive=$(mktemp -d)/tll_jax.tar.gz
trap 'rm -rf "$(dirname "$archive")"' EXIT
run git -C "$(dirname "$0")/.." archive --output="$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "$name:" --zone="$zone" --worker=all
run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$unpack && exec $on_worker"
