#!/bin/bash
# A config that returns no Study, or does not parse: one line, no traceback.
. "$(dirname "$0")/../common/lib.sh"
echo 'def get_config(): return {"models": {}}' > "$W/dict.py"; wrong=''
timeout 60 "$PY" -m tll_jax.main --config="$W/dict.py" --workdir="$W/run" 2>"$W/err"; no_traceback || wrong+="main: $(last); "
tll plan --config "$W/dict.py" --target cpu:1; no_traceback || wrong+="plan: $(last); "
[ -z "$wrong" ] && right "$(last)"
fault "$wrong"
