#!/usr/bin/env bash
# Runs one study on all GPUs of this host, in one process: JAX sees them all, and a batch is split over them.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: launch/gpu.sh [--dry-run] CONFIG WORKDIR [FLAGS of tll_jax.main...]

  --dry-run    print what would run, and stop; needs no GPU

Needs an NVIDIA driver and an extra that fits it: [cuda13] for driver 580 or newer, [cuda12] for 525 or newer; [cuda] is
[cuda13], and `tll doctor` shows which fits. CUDA_VISIBLE_DEVICES=0,1 selects GPUs.
The batch sizes of the config must be multiples of the number of GPUs.
USAGE
}

dry_run=''
case ${1-} in
  --help) usage && exit ;;
  --dry-run) dry_run=yes && shift ;;
esac
if [ $# -lt 2 ]; then
  usage >&2
  exit 2
fi

# With the platform set, JAX fails without a GPU instead of running slowly on the CPU.
export JAX_PLATFORMS=cuda,cpu
# JAX allocates three quarters of each GPU's memory at the start. On a GPU shared with other programs, set a fraction,
# XLA_PYTHON_CLIENT_MEM_FRACTION=.4, or allocate on demand, XLA_PYTHON_CLIENT_PREALLOCATE=false (slower, fragments).

if [ -n "$dry_run" ]; then
  printf 'JAX_PLATFORMS=%s ' "$JAX_PLATFORMS"
  exec "$(dirname "$0")/local.sh" --dry-run "$@"
fi
if ! gpus=$(nvidia-smi --list-gpus); then
  echo "launch/gpu.sh: nvidia-smi finds no GPU: install the NVIDIA driver, or run launch/local.sh on the CPU" >&2
  exit 1
fi
if ! seen=$(XLA_PYTHON_CLIENT_PREALLOCATE=false python -c 'import jax; print(len(jax.devices("cuda")))'); then
  echo "launch/gpu.sh: the machine has these GPUs, but JAX sees none of them:" >&2
  echo "$gpus" >&2
  echo "Install the extra that fits the driver: pip install -e '.[cuda13]' for driver 580 or newer, '.[cuda12]' for 525" >&2
  echo "or newer; tll doctor says which" >&2
  exit 1
fi
echo "launch/gpu.sh: JAX sees $seen GPU(s)" >&2
exec "$(dirname "$0")/local.sh" "$@"
