#!/usr/bin/env bash
# Runs configs/tll_scale.py on one GPU within a time limit, several models side by side, and keeps what is small.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: launch/gpu_study.sh [--dry-run] [--epochs N] [--seconds N] [--workdir FOLDER] OUT MODELS... [-- FLAGS...]

  --dry-run         print what would run, and stop
  --epochs N        epochs of each pretraining (100)
  --seconds N       time for all training and evaluation (300); what is not finished then is saved
  --workdir FOLDER  where each model's study is (runs/tll_scale); the same command again continues there
  OUT               folder for tll_scale.tar.gz: ranks, results, records and logs, without weights and pictures
  MODELS            models to run side by side, such as barlow,classification; further words name models to run after these
  FLAGS             flags of tll_jax.main for every study

Each model grows by one pretraining at a time, with its fine-tuning and evaluation. Needs TLL_DATA, the folder with
totally-looks-like.zip and imagenette-128.zip, or reduced copies by benchmarks/reduced_copy.py.
USAGE
}

dry_run='' epochs=100 seconds=300 workdir=runs/tll_scale
while [[ ${1-} == --* ]]; do
  case $1 in
    --help) usage && exit ;;
    --dry-run) dry_run=yes && shift ;;
    --epochs) epochs=${2?how many epochs?} && shift 2 ;;
    --seconds) seconds=${2?how many seconds?} && shift 2 ;;
    --workdir) workdir=${2?which folder?} && shift 2 ;;
    *) echo "launch/gpu_study.sh: there is no option $1" >&2 && exit 2 ;;
  esac
done
groups=()
out=${1-}
shift || true
while [ $# -gt 0 ] && [ "$1" != -- ]; do groups+=("$1") && shift; done
shift || true
if [ ${#groups[@]} -eq 0 ]; then
  usage >&2
  exit 2
fi

# With the platform set, JAX fails without a GPU instead of running slowly on the CPU.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}
deadline=$((SECONDS + seconds))
for group in "${groups[@]}"; do
  IFS=, read -ra models <<<"$group"
  # Side by side, because each compiles for a minute and waits for its own reading.
  fraction=.$((85 / ${#models[@]}))
  workers=$((($(nproc) - 1) / ${#models[@]}))
  running=()
  for model in "${models[@]}"; do
    left=$((deadline - SECONDS))
    [ "$left" -gt 0 ] || break
    command=(timeout --signal=TERM --kill-after=20 "$left" python3 "$(dirname "$0")/gpu_study.py"
      --config="$(dirname "$0")/../configs/tll_scale.py:$epochs,$model" --workdir="$workdir/$model"
      --config.num_workers="$((workers > 0 ? workers : 1))" "$@")
    if [ -n "$dry_run" ]; then
      printf 'XLA_PYTHON_CLIENT_MEM_FRACTION=%s' "$fraction" && printf ' %q' "${command[@]}" && echo
      continue
    fi
    mkdir -p "$workdir"
    XLA_PYTHON_CLIENT_MEM_FRACTION=$fraction "${command[@]}" >>"$workdir/$model.log" 2>&1 &
    running+=($!)
  done
  for process in "${running[@]}"; do
    wait "$process" || echo "launch/gpu_study.sh: one of $group ended with status $?; see its log" >&2
  done
done
[ -z "$dry_run" ] || exit 0

mkdir -p "$out"
(cd "$workdir" && find . -type f \( -name '*.json' -o -name '*.jsonl' -o -name '*.md' -o -name '*.log' \
  -o -name ranks.npz -o -name emoji.npz \) -not -path '*/checkpoints/*' -not -path '*/variables/*' -print0 |
  tar --null --files-from=- -czf -) >"$out/tll_scale.tar.gz"
tail -n 3 "$workdir"/*.log
