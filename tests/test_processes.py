"""Studies run by two processes: equal results, a common stop, and no hang when one dies."""

import signal
import subprocess
import sys
import threading

import jax
import pytest

import tll_jax
from tests.configs import one_stage, tiny
from tests.held_at_step import held_command, let_go, wait_until_held
from tests.launch.stand_ins import wait_until
from tests.pairs_of_processes import SECONDS, free_address
from tests.study_runs import stage_metrics
from tll_jax import files, processes, serialize
from tll_jax.config_files import load_study
from tll_jax.errors import Interrupted, UserError
from tll_jax.study.run import locked_workdir

TRAIN = "--stages=pretrain,finetune"


def command(workdir, *arguments):
    """The command line of the study of one stage."""
    return [sys.executable, "-m", "tll_jax.main", f"--config={one_stage.__file__}", f"--workdir={workdir}", *arguments]


def run(environment, workdir, *arguments, devices=1, under=()):
    """Runs one process to its end."""
    return subprocess.run(
        [*under, *command(workdir, *arguments)],
        env=environment | {"JAX_NUM_CPU_DEVICES": str(devices)},
        capture_output=True,
        text=True,
        check=False,
    )


def together(environment, workdir, *arguments, own=((), ()), held=None):
    """Starts two processes of one device each.

    Args:
      own: extra arguments of each.
      held: stage, step and folder where the first one holds, and the other soon waits for it.
    """
    joined = [f"--coordinator={free_address()}", "--num_processes=2"]
    words = [
        [*command(workdir, *arguments), *joined, f"--process_id={number}", *more] for number, more in enumerate(own)
    ]
    if held is not None:
        words[0] = held_command(*held, *words[0][3:])
    return [subprocess.Popen(one, env=environment, stderr=subprocess.PIPE, text=True) for one in words]


def ends(started):
    """Exit status and standard error of each process."""
    errors = [process.communicate(timeout=SECONDS)[1] for process in started]
    return [process.returncode for process in started], errors


def test_a_run_goes_on_after_a_kill_and_a_signal_and_with_another_number_of_processes(
    environment, one_stage_alone, tmp_path
):
    workdir = tmp_path / "study"
    started = together(environment, workdir, TRAIN, held=("pretrain", 44, tmp_path / "first"))
    wait_until_held(started[0], tmp_path / "first")
    # Saved every sixteen steps, in the background.
    wait_until(lambda: list(workdir.glob("stages/pretrain-*/checkpoints/last/32")), "the second save")
    started[1].kill()
    let_go(tmp_path / "first")
    statuses, errors = ends(started)
    assert statuses == [75, -signal.SIGKILL], errors
    assert "another process of this run is gone" in errors[0]

    started = together(environment, workdir, TRAIN, held=("finetune", 44, tmp_path / "second"))
    wait_until_held(started[0], tmp_path / "second")
    started[1].send_signal(signal.SIGTERM)
    let_go(tmp_path / "second", when_told=True)
    statuses, errors = ends(started)
    assert statuses == [75, 75], errors
    assert "pretrain barlow: going on at step 32 of 80" in errors[0]
    assert "stopped by SIGTERM at step" in errors[0]
    # Only the first process reports steps.
    assert "barlow: step" in errors[0]
    assert "barlow: step" not in errors[1]

    more = run(environment, workdir, TRAIN, devices=2)
    assert more.returncode == 0, more.stderr
    assert "going on at step" in more.stderr
    assert stage_metrics(workdir) == stage_metrics(one_stage_alone)


SLOW_TO_COMPILE = """
from dataclasses import dataclass
from tests.configs import one_stage
from tests.endless import compile_without_end

@dataclass(kw_only=True)
class Slow:
    def __call__(self, key, image):
        print("compiling", flush=True)
        compile_without_end()

def get_config():
    study = one_stage.get_config()
    study.models["barlow"].pretrain.augment_a = Slow()
    return study
"""


@pytest.mark.parametrize("signaled", [0, 1])
def test_a_signal_to_one_process_that_compiles_its_first_step_ends_both_at_once(environment, tmp_path, signaled):
    (tmp_path / "slow.py").write_text(SLOW_TO_COMPILE)
    joined = [f"--coordinator={free_address()}", "--num_processes=2", f"--config={tmp_path / 'slow.py'}"]
    started = [
        subprocess.Popen(
            [*command(tmp_path / "study", *joined), f"--process_id={number}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    for process in started:
        # Gloo prints there as well.
        assert any(line == "compiling\n" for line in process.stdout)
    started[signaled].send_signal(signal.SIGTERM)
    statuses, errors = ends(started)
    assert statuses == [75, 75], errors
    assert "tll_jax: stopped by SIGTERM; the same command goes on" in errors[signaled]
    assert "tll_jax: stopped by SIGTERM to another process; the same command goes on" in errors[1 - signaled]


def test_processes_that_differ_are_refused(environment, tmp_path):
    own = ((), ("--config.models.barlow.finetune.loop.num_steps=7",))
    statuses, errors = ends(together(environment, tmp_path / "study", own=own))
    # Started again, they would differ again.
    assert statuses == [1, 1], errors
    assert "another settings than process 0" in errors[1]
    assert "Traceback" not in errors[1]
    assert not (tmp_path / "study" / "stages").exists()


def test_a_process_that_cannot_find_the_others_ends_with_a_message(environment, tmp_path):
    addresses = [free_address() for _ in (0, 1)]
    joined = ("--num_processes=2", "--wait_seconds=1")
    lonely = [
        subprocess.Popen(
            command(tmp_path / f"study{number}", f"--coordinator={address}", *joined, f"--process_id={number}"),
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, address in enumerate(addresses)
    ]
    statuses, errors = ends(lonely)
    assert statuses == [1, 1]
    for address, said in zip(addresses, errors, strict=True):
        assert f"did not find each other at {address} in 1 seconds" in said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_processes": 2}, "--coordinator, --num_processes and --process_id go together"),
        ({"coordinator": "here", "num_processes": 2, "process_id": 0}, "must be HOST:PORT of process 0"),
        (
            {"coordinator": "here:1", "num_processes": 2, "process_id": 2},
            "--process_id is 2; with --num_processes=2 it must be 0 to less",
        ),
    ],
)
def test_impossible_flags_of_several_processes_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        processes.start(**given)


def test_a_full_disk_costs_the_steps_since_the_last_save_and_not_the_run(environment, tmp_path):
    # Wide enough for a checkpoint to be larger than any other file.
    projector, num_steps, stage = (2048, 64), 20, "--config.models.barlow.pretrain"
    arguments = ("--stages=pretrain", f"{stage}.objective.projector={projector}", f"{stage}.loop.num_steps={num_steps}")
    workdir, undisturbed = tmp_path / "study", tmp_path / "undisturbed"
    settings = load_study(one_stage.__file__)
    pretrain = settings.models["barlow"].pretrain
    pretrain.objective.projector, pretrain.loop.num_steps = projector, num_steps
    # First, so that the other process finds its program in the cache.
    tll_jax.run(settings, workdir=undisturbed, stages_to_run=("pretrain",))

    # Writing past this many KiB fails as on a full disk.
    small_files = ["bash", "-c", 'ulimit -f 290; exec "$@"', "bash"]
    full = run(environment, workdir, *arguments, under=small_files, devices=len(jax.devices()))
    assert full.returncode == 1
    # The writing thread prints as well.
    said = next(line for line in full.stderr.splitlines() if line.startswith("tll_jax: "))
    assert "a checkpoint could not be written to" in said
    assert said.endswith("it goes on from the beginning")
    tll_jax.run(settings, workdir=workdir, stages_to_run=("pretrain",))
    assert stage_metrics(workdir) == stage_metrics(undisturbed)


def test_a_batch_that_would_change_its_loss_in_parts_is_refused(tmp_path):
    settings = one_stage.get_config()
    settings.models["barlow"].pretrain.loop.grad_accum_steps = 2
    message = "config.models.barlow.pretrain.loop.grad_accum_steps would change the loss: BarlowTwins compares"
    with pytest.raises(UserError, match=message):
        tll_jax.run(settings, workdir=tmp_path / "study")


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("UNAVAILABLE: failed to connect to all addresses", True),
        ("ABORTED: the task was told to stop", True),
        ("DEADLINE_EXCEEDED: Barrier timed out", True),
        ("UNKNOWN: Gloo all-reduce failed: [pair.cc:547] Connection closed by peer [127.0.0.1]:1234", True),
        (
            "INTERNAL: NCCL operation ncclAllReduce(...) failed: remote process exited or there was a network error",
            True,
        ),
        ("INTERNAL: NCCL operation ncclAllReduce(...) failed: invalid argument", False),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes; Gloo context", False),
        ("INVALID_ARGUMENT: Gloo got buffers of two sizes", False),
        ("INTERNAL: Mosaic failed to compile", False),
        ("RESOURCE_EXHAUSTED: out of memory while the connection closed", False),
    ],
)
def test_only_errors_about_other_processes_count_as_a_lost_process(message, lost):
    assert processes.is_lost(jax.errors.JaxRuntimeError(message)) is lost
    # Messages of other origin are not JAX's, except those of the transports.
    assert processes.is_lost(ValueError(message.replace("Gloo", "x").replace("NCCL", "x"))) is False


def test_the_failure_of_one_process_is_reported_by_all_as_final(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "FAILURE_SECONDS", 1)
    run = ["one"]
    monkeypatch.setattr(processes, "from_first", lambda _: run[0])
    lost = jax.errors.JaxRuntimeError("UNAVAILABLE: the other one is gone")

    def end(error):
        with processes.failing_together(tmp_path):
            raise error

    with pytest.raises(Interrupted, match="another process of this run is gone"):
        end(lost)
    # Into a folder that is not the run's nothing is written.
    with pytest.raises(UserError, match="out of memory"):
        end(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 4 GiB"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".lock").touch()
    with pytest.raises(UserError, match="out of memory"):
        end(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 4 GiB"))
    with pytest.raises(UserError, match="process 0 of this run failed: RESOURCE_EXHAUSTED: 4 GiB"):
        end(lost)
    # The file of an earlier run is ignored.
    run[0] = "two"
    with pytest.raises(Interrupted):
        end(lost)


def test_an_equal_run_waits_for_the_folder_and_another_is_refused_by_name(tmp_path, monkeypatch):
    settings = tiny.get_config()
    script = (
        "import sys; from pathlib import Path; from tll_jax.files import locked\n"
        "with locked(Path(sys.argv[1]), identity=sys.argv[2], command='the first command'):\n"
        "    print('locked', flush=True); sys.stdin.read()"
    )

    def held(identity):
        command = [sys.executable, "-c", script, str(tmp_path), identity]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        with process.stdout as said:
            assert said.readline() == "locked\n"
        return process

    stages = ("pretrain", "finetune")
    holder = held(serialize.fingerprint([settings, stages]))
    waits = threading.Event()
    monkeypatch.setattr(files.logger, "warning", lambda message, *_: waits.set())

    def end_once_it_waits():
        waits.wait(60)
        holder.stdin.close()

    threading.Thread(target=end_once_it_waits).start()
    with locked_workdir(tmp_path, settings, stages, "the second command"):
        assert waits.is_set()
        assert holder.wait(60) == 0
    holder = held("another")
    with (
        pytest.raises(ValueError, match=r"another command works in .*: `the first command`"),
        locked_workdir(tmp_path, settings, stages, "the second command"),
    ):
        pass
    holder.kill()
    holder.wait()
    holder.stdin.close()
    # A dead process holds no lock.
    with locked_workdir(tmp_path, settings, stages, "the second command"):
        pass
