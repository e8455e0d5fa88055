"""Programs that the launchers call, replaced by ones that write down how they were called."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
DEADLINE_SECONDS = 300

RECORD = """\
#!{python}
import json, os, pathlib, signal, subprocess, sys, time
name, arguments, calls = {name!r}, sys.argv[1:], pathlib.Path({calls!r})
if name == "python" and arguments[0] == "-c" and "socket" in arguments[1]:
    os.execv({python!r}, ["python", *arguments])
with (calls / str(os.getpid())).open("w") as file:
    json.dump({{"name": name, "arguments": arguments, "environment": dict(os.environ), "pid": os.getpid(),
               "at": time.monotonic()}}, file)
{behavior}
"""


class StandIns:
    """A folder of stand-ins that goes first on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.records = folder / "stand_ins", folder / "calls"
        self.folder.mkdir()
        self.records.mkdir()
        self.started: list[subprocess.Popen] = []

    def add(self, name: str, behavior: str = "") -> None:
        """A program that writes down its call and then does what the lines of Python say."""
        program = self.folder / name
        program.write_text(RECORD.format(python=sys.executable, name=name, calls=str(self.records), behavior=behavior))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def environment(self, **changes: str) -> dict[str, str]:
        return os.environ | {"PATH": f"{self.folder}:{os.environ['PATH']}"} | changes

    def calls(self, name: str) -> list[dict]:
        """The calls of a program so far, in the order of their starts."""
        written = [path.read_text() for path in self.records.iterdir()]
        calls = [json.loads(text) for text in written if text.endswith("}")]
        return sorted((call for call in calls if call["name"] == name), key=lambda call: call["at"])

    def wait_for_calls(self, name: str, number: int) -> list[dict]:
        wait_until(lambda: len(self.calls(name)) >= number, f"{number} calls of {name}")
        return self.calls(name)

    def run(self, script: str, *arguments: object, **changes: str) -> subprocess.CompletedProcess:
        """A launcher to its end."""
        return subprocess.run(
            command(script, *arguments), env=self.environment(**changes), capture_output=True, text=True, cwd=ROOT
        )

    def start(self, script: str, *arguments: object, **changes: str) -> subprocess.Popen:
        """A launcher, leading a session of its own, that goes on while the test does something to it."""
        process = subprocess.Popen(
            command(script, *arguments),
            env=self.environment(**changes),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def end(self) -> None:
        """Ends what a failed test left running."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
        for path in self.records.iterdir():
            # It may end by itself meanwhile.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if str(self.folder) in Path("/proc", path.name, "cmdline").read_text():
                    os.kill(int(path.name), signal.SIGKILL)
        for process in self.started:
            process.communicate()


def command(script: str, *arguments: object) -> list[str]:
    """The launcher with SIGINT as a terminal would start it; a suite in the background has it ignored."""
    reset = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp('bash', sys.argv[1:])"
    return [sys.executable, "-c", reset, "bash", *map(str, (LAUNCH / script, *arguments))]


def wait_until(is_so, what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Raises TimeoutError where something does not come true in time."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        # It may end while its status is read.
        return False
