#!/bin/bash
# An unclosed quote in the candidates or the face corrections: one line that names the file.
. "$(dirname "$0")/../common/lib.sh"
finished "$W/run"; "$PY" "$COMMON/pairs.py" "$W/pairs" a b; wrong=''
{ printf 'left,c0\n"a,b\n'; head -c 200000 /dev/zero | tr '\0' x; } > "$W/pairs/candidates.csv"; sed 's/left,c0/id,side,faces/' "$W/pairs/candidates.csv" > "$W/faces.csv"
tll evaluate "$(model "$W/run")" --candidates "$W/pairs/candidates.csv" --submission "$W/s.csv"; no_traceback || wrong+="candidates: $(last); "
tll review "$W/pairs" --face-overrides "$W/faces.csv" --out "$W/r.html"; no_traceback || wrong+="corrections: $(last); "
[ -z "$wrong" ] && right "no traceback"
fault "$wrong"
