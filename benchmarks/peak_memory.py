"""Peak memory of a benchmark's search, measured in a process of its own; for the benchmarks beside it."""

import subprocess
import sys
from pathlib import Path


def peak_mib(script: str, system: str, num_candidates: int, num_queries: int) -> float:
    """Output of `script --memory-of system`: MiB of one search in a new process, less what the imports took."""
    command = [sys.executable, script, "--memory-of", system, "--queries", str(num_queries)]
    output = subprocess.run([*command, "--candidates", str(num_candidates)], check=True, capture_output=True, text=True)
    return float(output.stdout)


def peak_kib() -> int:
    """Peak memory of this process. Linux's `ru_maxrss` would start at that of the process which started this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])
