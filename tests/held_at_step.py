"""Runs `tll_jax.main` and holds its training after a step, so that a test can stop it just there on any machine."""

import runpy
import sys
import time
from pathlib import Path

from jax._src import distributed

from tll_jax import processes
from tll_jax.training.records import Records

HOLD_SECONDS = 300


def held_command(stage, step, folder, *arguments):
    """The command line of `tll_jax.main` with `arguments`, held after `step` of `stage`; `folder` is where it waits."""
    folder.mkdir()
    return [sys.executable, "-m", __name__, stage, str(step), str(folder), *arguments]


def wait_until_held(process, folder):
    """Waits until a process holds; fails if it ends before."""
    deadline = time.monotonic() + HOLD_SECONDS
    while not (folder / "holds").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, f"{process.args} did not come to its step"
        time.sleep(0.02)


def let_go(folder, *, when_told=False):
    """Lets a process that holds go on; `when_told` once it has got the stop signal of another process."""
    if when_told:
        (folder / "when told").touch()
    (folder / "goes on").touch()


def wait_for_the_signal_of_another():
    """Waits until JAX has asked all processes for their step, at the next of which they stop together.

    It looks for the signal once a second, in which a tiny training comes to its end.
    """
    while len(distributed.global_state.client.key_value_dir_get("PREEMPTION_CURRENT_COUNTER/")) < processes.count():
        time.sleep(0.02)


def main():
    stage, step, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    del sys.argv[1:4]
    write = Records.write

    def write_and_hold(records, number, metrics):
        write(records, number, metrics)
        if number >= step and records.path.parent.name.startswith(f"{stage}-"):
            (folder / "holds").touch()
            while not (folder / "goes on").exists():
                time.sleep(0.02)
            if (folder / "when told").exists():
                wait_for_the_signal_of_another()

    Records.write = write_and_hold
    runpy.run_module("tll_jax.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
