"""Commands start with huge pages, and end with one line, a status that tells if to run them again, and no delay."""

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pairs_of_processes import ROOT
from tll_jax.program import ending
from tll_jax.training import signals

GOES_ON = "; the same command goes on with what is done"
START = """
import sys, time
from tests.endless import compile_without_end
from tll_jax import errors, program
from tll_jax.training import signals
"""
SAVING = """
from tll_jax import processes
processes.count = lambda: 1
with signals.stop_request() as stop:
    if {looked}: stop.is_due()
    print("ready", flush=True)
    # Before the first step.
    if not {looked}: compile_without_end()
    while not stop.is_due(): time.sleep(0.02)
    print("saving", flush=True)
    time.sleep({saving})
raise errors.Interrupted("saved at step 7")
"""


def program(body, status="GOES_ON"):
    """A program with `body` inside `program.ending`."""
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    script = f"{START}with program.ending('tll_jax', stopped_status=program.{status}):\n{indented}"
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def ended(process):
    errors = process.communicate(timeout=300)[1]
    return process.returncode, errors.splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("status", "expected", "rest"),
    [("GOES_ON", 75, GOES_ON), ("STOPPED", 130, "")],
)
def test_a_signal_ends_a_command_with_one_line_and_its_status(number, status, expected, rest):
    # Not by the watch, which would end it in the end.
    process = program("signals.GRACE_SECONDS = 600\nprint('ready', flush=True)\ntime.sleep(600)", status)
    process.stdout.readline()
    process.send_signal(number)
    assert ended(process) == (expected, [f"tll_jax: stopped by {number.name}{rest}"])


def test_a_signal_ends_a_command_that_is_inside_a_library_for_minutes():
    process = program("print('ready', flush=True)\ncompile_without_end()")
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (75, [f"tll_jax: stopped by SIGTERM{GOES_ON}"])


def test_a_signal_within_a_finalizer_is_not_shown_as_an_error():
    body = (
        "class Slow:\n"
        "    def __del__(self):\n"
        "        print('ready', flush=True); time.sleep(60)\n"
        "slow = Slow(); del slow; time.sleep(60)"
    )
    process = program(body)
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (75, [f"tll_jax: stopped by SIGTERM{GOES_ON}"])


def test_a_signal_that_a_library_turns_into_an_error_still_ends_the_command():
    swallowing = "print('ready', flush=True)\nwhile True:\n    try: time.sleep(60)\n    except BaseException: pass"
    process = program(swallowing)
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 75


@pytest.mark.parametrize(
    ("looked", "saving", "numbers", "expected"),
    [
        (True, 0, [signal.SIGTERM], ["tll_jax: saved at step 7"]),
        # Longer than a command that does not train may take.
        (True, signals.GRACE_SECONDS + 1, [signal.SIGINT], ["tll_jax: saved at step 7"]),
        # A launcher and the terminal may both pass SIGTERM on.
        (True, 1, [signal.SIGTERM, signal.SIGTERM], ["tll_jax: saved at step 7"]),
        (True, 60, [signal.SIGINT, signal.SIGINT], [f"tll_jax: stopped by SIGINT{GOES_ON}"]),
        # Before the first step there is nothing to save.
        (False, 60, [signal.SIGTERM], [f"tll_jax: stopped by SIGTERM{GOES_ON}"]),
    ],
    ids=["saves", "saves long", "twice", "a second Ctrl-C", "before the first step"],
)
def test_training_saves_before_it_ends(looked, saving, numbers, expected):
    process = program(SAVING.format(looked=looked, saving=saving))
    process.stdout.readline()
    first, *more = numbers
    process.send_signal(first)
    if looked:
        assert process.stdout.readline() == "saving\n"
    for number in more:
        process.send_signal(number)
    assert ended(process) == (75, expected)


SLOW_TO_END = """
from tll_jax import processes
processes.count = lambda: 1
try:
{body}
finally:
    print("cleaning", flush=True)
    time.sleep(0.5)
    print("cleaned", flush=True)
"""
OUTSIDE_OF_TRAINING = """
    print("ready", flush=True)
    time.sleep(60)
"""
SAVED = """
    with signals.stop_request() as stop:
        stop.is_due()
        print("ready", flush=True)
        while not stop.is_due(): time.sleep(0.02)
        raise errors.Interrupted("saved at step 7")
"""
BEFORE_THE_FIRST_STEP = """
    with signals.stop_request():
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (OUTSIDE_OF_TRAINING, f"tll_jax: stopped by SIGINT{GOES_ON}"),
        (SAVED, "tll_jax: saved at step 7"),
        (BEFORE_THE_FIRST_STEP, f"tll_jax: stopped by SIGINT{GOES_ON}"),
    ],
    ids=["outside of training", "saved", "before the first step"],
)
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_interrupt_the_end(body, expected, second):
    process = program(SLOW_TO_END.format(body=body))
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(second)
    assert process.stdout.readline() == "cleaned\n"
    assert ended(process) == (75, [expected])


def test_only_errors_for_the_user_lose_their_traceback():
    def lines(body):
        return ended(program(body))

    assert lines("raise errors.UnknownName('there is no model barlo; there is barlow')") == (
        1,
        ["tll_jax: there is no model barlo; there is barlow"],
    )
    status, said = lines("int('seven')")
    assert status == 1
    assert said[0].startswith("Traceback")
    assert said[-1].startswith("ValueError: invalid literal")
    status, (line,) = lines("open('/no/such/file')")
    assert status == 1
    assert line.startswith("tll_jax: /no/such/file: No such file or directory (where: ")
    kept = line.removesuffix(")").rpartition("where: ")[2]
    try:
        with open(kept) as file:
            assert file.read().startswith("Traceback")
    finally:
        os.unlink(kept)


def test_a_closed_pipe_is_no_error():
    process = program("for line in range(100000): print(line)")
    process.stdout.readline()
    process.stdout.close()
    with process.stderr as errors:
        assert errors.read() == ""
    assert process.wait(300) == 0


def test_a_name_that_the_terminal_cannot_encode_is_escaped():
    script = f"{START}program.show_every_name(); print('caf\\u00e9 \\udce9')"
    outcome = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert outcome.stdout == "caf\\xe9 \\udce9\n"


def test_within_a_library_a_stop_before_the_first_step_is_a_keyboard_interrupt_and_handlers_come_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), signals.stop_request():
        os.kill(os.getpid(), signal.SIGINT)
    with signals.stop_request() as stop:
        assert not stop.is_due()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_due()
        assert stop.signal_name == "SIGTERM"
    assert signal.getsignal(signal.SIGINT) is before


def fail_after_a_stop():
    try:
        raise KeyboardInterrupt("SIGTERM")
    finally:
        # Like a lock whose owner was stopped while holding it.
        raise RuntimeError("cannot release un-acquired lock")


def test_an_error_caused_by_a_stop_signal_counts_as_the_stop(capsys):
    with pytest.raises(SystemExit) as ended, ending("tll", stopped_status=75, handles_signals=False):
        fail_after_a_stop()
    assert ended.value.code == 75
    assert capsys.readouterr().err.startswith("tll: stopped by SIGTERM")
    with pytest.raises(RuntimeError, match="of its own"), ending("tll", stopped_status=75, handles_signals=False):
        raise RuntimeError("of its own")


HUGE = """
import os, sys
from tll_jax import program
print(os.getpid(), flush=True)
program.start_with_huge_pages()
print(os.environ["GLIBC_TUNABLES"], *sys.argv[1:])
import numpy as np
numbers = np.ones(2**23)
address = numbers.ctypes.data
mapping = ""
for line in open("/proc/self/smaps"):
    first, dash, rest = line.partition("-")
    if dash and " " in rest:
        mapping = line if int(first, 16) <= address < int(rest.split()[0], 16) else ""
    elif mapping and line.startswith("VmFlags"):
        print("huge" if " hg" in line else "small")
"""
TRANSPARENT = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are set on Linux alone")
@pytest.mark.parametrize(
    ("tunables", "starts", "expected"),
    [
        (None, 2, "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.arena_max=2", 2, "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", 1, "glibc.malloc.hugetlb=0"),
    ],
)
def test_a_program_starts_again_in_its_process_for_huge_pages(environment, tunables, starts, expected):
    variables = {name: value for name, value in environment.items() if name != "GLIBC_TUNABLES"}
    if tunables is not None:
        variables["GLIBC_TUNABLES"] = tunables
    command = [sys.executable, "-c", HUGE, "--a", "b c"]
    ran = subprocess.run(command, env=variables, capture_output=True, text=True, check=True, cwd=ROOT)
    *pids, setting, pages = ran.stdout.splitlines()
    assert len(pids) == starts
    assert len(set(pids)) == 1
    assert setting == f"{expected} --a b c"
    if platform.libc_ver()[0] == "glibc" and TRANSPARENT.exists() and "[madvise]" in TRANSPARENT.read_text():
        assert pages == ("huge" if starts == 2 else "small")


MAIN = "import runpy; runpy.run_module('tll_jax.main', run_name='__main__')"


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are set on Linux alone")
def test_both_commands_start_with_huge_pages(environment):
    variables = {name: value for name, value in environment.items() if name != "GLIBC_TUNABLES"}
    code = "import os, sys; os.execv = lambda *words: sys.exit(' '.join(words[1][-2:])); "
    for program, words in (("from tll_jax.cli import main; main()", ["doctor"]), (MAIN, ["--help"])):
        command = [sys.executable, "-c", code + program, *words]
        ran = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, cwd=ROOT)
        assert ran.stderr.strip().endswith(words[-1])
