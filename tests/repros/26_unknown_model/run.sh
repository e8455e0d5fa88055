#!/bin/bash
# A misspelled model: a message that says so and names the models.
. "$(dirname "$0")/../common/lib.sh"
study emoji "$W/run" --config.models.barlo.finetune.loop.num_steps=3
grep -q '^tll_jax: barlo$' "$W/err" && fault "all that is said: $(head -n 1 "$W/err")"
right "$(head -n 1 "$W/err")"
