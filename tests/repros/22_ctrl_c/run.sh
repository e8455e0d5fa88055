#!/bin/bash
# Ctrl-C in a tll command: one line at most, no traceback.
. "$(dirname "$0")/../common/lib.sh"
finished "$W/run"
for seconds in 2 4 6; do
  timeout -s INT $seconds "$TLL" evaluate "$(model "$W/run")" --pairs emoji >"$W/out" 2>"$W/err"; no_traceback || fault "after $seconds s: $(last)"
done
right "no traceback"
