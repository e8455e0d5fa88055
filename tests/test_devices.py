"""What `devices` asks of the C library, in a process of its own."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import jax, jax.numpy as jnp
from tll_jax import devices

if sys.argv[1] == "keep":
    devices.keep_freed_memory()
add_one = jax.jit(lambda numbers: numbers + 1)
numbers = jnp.zeros(2**24)
for _ in range(50):
    add_one(numbers).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    add_one(numbers).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode):
    run = subprocess.run([sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_a_step_that_keeps_freed_memory_needs_no_new_pages():
    # Ten results of 64 MiB are 163,840 pages of 4 KiB.
    assert page_faults("keep") < 1_000 < page_faults("leave")
