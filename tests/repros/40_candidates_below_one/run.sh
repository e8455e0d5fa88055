#!/bin/bash
# --neighbors -1 and 0 are refused in words.
. "$(dirname "$0")/../common/lib.sh"
finished "$W/run"; picture=$(ls "$W/run/images/left/"*.png | head -n 1); wrong=''
tll explain "$(model "$W/run")" --query "$picture" --neighbors -1 --method gradient --out "$W/a" && wrong+="-1 explains $(ls "$W/a" | wc -l) of 40; "
tll explain "$(model "$W/run")" --query "$picture" --neighbors 0 --method gradient --out "$W/b"; grep -q 'array to stack' "$W/err" && wrong+="0: $(last)"
[ -z "$wrong" ] && right "refused"
fault "$wrong"
