#!/bin/bash
# A tuple of the wrong length or kind: one line that names the field.
. "$(dirname "$0")/../common/lib.sh"
wrong=''
try() { study emoji "$W/run" "--config.$1=$2"; no_traceback && grep -q "${1##*.}" "$W/err" || wrong+="$1=$2: $(last); "; }
try models.a.finetune.geometry.scale 0.5; try models.a.finetune.geometry.scale 0.1,0.2,0.3; try models.a.finetune.geometry.ratio 2
try seeds "('a',)"; try seeds "(1.5,)"; try seeds "(-1,)"
[ -z "$wrong" ] && right "all named"
fault "$wrong"
