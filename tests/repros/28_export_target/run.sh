#!/bin/bash
# Exporting to where nothing can be written: one line, no traceback.
. "$(dirname "$0")/../common/lib.sh"
finished "$W/run"; mkdir "$W/x.safetensors"; tll export "$(model "$W/run")" --out "$W/x.safetensors"
no_traceback && right "$(last)"
fault "$(last)"
