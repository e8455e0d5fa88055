#!/bin/bash
# Where trained variables are gone, the run trains again, or tells what to delete.
. "$(dirname "$0")/../common/lib.sh"
finished "$W/run"; rm -r "$(stage "$W/run")/variables" "$(model "$W/run")/evaluate.done.json"
study emoji "$W/run" && right "made anew"
first=$(last); study emoji "$W/run" --stages=finetune; study emoji "$W/run" && right "made anew"
fault "says «${first##*: }», and when that stage is run it is skipped as up to date"
