#!/bin/bash
# Two equal tll embed at once: both end well.
. "$(dirname "$0")/../common/lib.sh"
finished "$W/run"; "$PY" "$COMMON/pairs.py" "$W/p" $(seq -w 0 399)
both() { timeout 200 "$TLL" embed "$(model "$W/run")" "$W/p/left" --out "$W/gallery" --shard-size 1 >"$W/out$1" 2>"$W/err$1"; echo $? > "$W/status$1"; }
both 1 & both 2 & wait
[ "$(cat "$W/status1" "$W/status2" | tr -d '\n')" = 00 ] && right "both ended with 0"
fault "$(grep -h ^tll: "$W/err1" "$W/err2" | cut -c1-200)"
