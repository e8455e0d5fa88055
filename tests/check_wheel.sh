#!/usr/bin/env bash
# Builds the sdist and the wheel, installs the wheel in an empty environment and uses it outside the checkout.
# usage: tests/check_wheel.sh [PYTHON]        PYTHON is python3.11 unless told
set -euo pipefail

python=${1:-python3.11}
checkout=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"$python" -m venv "$scratch/build"
"$scratch/build/bin/python" -m pip install --quiet build
"$scratch/build/bin/python" -m build --outdir "$scratch/dist" "$checkout" >"$scratch/build.log" 2>&1 || {
  cat "$scratch/build.log" >&2
  exit 1
}

"$python" -m venv "$scratch/empty"
"$scratch/empty/bin/python" -m pip install --quiet "$(ls "$scratch"/dist/*.whl)[find]"
export TLL_CACHE="$scratch/cache" PATH="$scratch/empty/bin:$PATH"
cd "$scratch"
tll --version
tll doctor
python -c 'import tll_jax; print(tll_jax.losses.barlow_twins)'
# The emoji study in a minute: every stage, few steps.
steps=(--config.models.barlow.pretrain.loop.num_steps=2 --config.models.classification.pretrain.loop.num_steps=2)
for model in barlow classification random; do
  steps+=("--config.models.$model.finetune.loop.num_steps=2" "--config.models.$model.finetune.loop.evaluate_every=1")
done
tll run emoji study "${steps[@]}"
test -s study/report.html
tll find study/images --out found
test -s found/index.html
echo "$("$python" --version): the wheel works"
