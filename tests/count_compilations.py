"""Runs `tll_jax.main` with the given arguments and prints the numbers of requested and of compiled programs."""

import json
import runpy
import sys
from collections import Counter

import jax

counts: Counter[str] = Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.rsplit("/", 1)[-1]]))
try:
    runpy.run_module("tll_jax.main", run_name="__main__", alter_sys=True)
except SystemExit as end:
    if end.code:
        raise
asked = counts["compile_requests_use_cache"]
json.dump({"asked": asked, "compiled": asked - counts["cache_hits"]}, sys.stdout)
