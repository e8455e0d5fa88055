# Sourced by every run.sh. Exit status: 0 right, 1 fault, 77 cannot be tried here.
PY=${PY:-.venv/bin/python} TLL=${TLL:-.venv/bin/tll}
case $PY in */*) PY=$(cd "$(dirname "$PY")" && pwd)/$(basename "$PY");; esac
case $TLL in */*) TLL=$(cd "$(dirname "$TLL")" && pwd)/$(basename "$TLL");; esac
COMMON=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH=$COMMON${PYTHONPATH:+:$PYTHONPATH} TLL_CACHE=${TLL_CACHE:-${TMPDIR:-/tmp}/tll-repros-cache}
W=$(mktemp -d) && trap 'umount "$W"/disk 2>/dev/null; rm -rf "$W"' EXIT
fault() { echo "FAULT: $*"; exit 1; }
right() { echo "right: $*"; exit 0; }
# study KIND WORKDIR [FLAGS]: its last lines go to $W/err
study() { timeout 200 "$PY" -m tll_jax.main --config="$COMMON/tiny.py:$1" --workdir="$2" "${@:3}" >"$W/out" 2>"$W/err" </dev/null; }
tll() { timeout 100 "$TLL" "$@" >"$W/out" 2>"$W/err" </dev/null; }
no_traceback() { ! grep -q -e '^Traceback' -e '^Fatal Python error' "$W/err"; }
last() { tail -n 1 "$W/err" | cut -c1-220; }
# finished TARGET: a copy of a finished tiny study, made once
finished() {
  local kept=$TLL_CACHE/bugs-run
  [ -f "$kept/report.html" ] || study emoji "$kept" || { echo "no study: $(last)"; exit 77; }
  cp -r "$kept" "$1"
}
model() { echo "$1/models/a/seed-0"; }
stage() { ls -d "$1"/stages/finetune-*; }
