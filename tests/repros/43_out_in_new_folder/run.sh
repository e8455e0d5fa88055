#!/bin/bash
# tll evaluate --out in a folder that is not there makes it, as every other command does.
. "$(dirname "$0")/../common/lib.sh"
finished "$W/run"; "$PY" "$COMMON/pairs.py" "$W/pairs" a b; tll evaluate "$(model "$W/run")" --pairs "$W/pairs" --out "$W/new/scores.json" && right "written"
fault "after the scoring: $(last)"
