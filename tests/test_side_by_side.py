"""Trainings side by side: real processes, which are stopped, killed and run again."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import SimpleNamespace

import cloudpickle
import numpy as np
import pytest

from tests.configs import one_stage, two_models
from tests.study_runs import command, run_study, stage_metrics
from tll_jax.data.pipeline import Readers
from tll_jax.models.heads import Projection
from tll_jax.models.network import Network
from tll_jax.study import side_by_side
from tll_jax.study.run import Data, Run
from tll_jax.study.side_by_side import Task, Workload, as_memory_allows, num_at_once, shares, width

TRAINER = "tll_jax.study.trainer"
STAGES = "--stages=pretrain,finetune"
SECONDS = 120
STAND_IN = f"""#!{sys.executable}
import json, os, sys
from multiprocessing.connection import Connection

_, cores, platform, descriptor = json.loads(sys.argv[-1])
connection = Connection(descriptor)
opening = connection.recv()
if opening is None:
    sys.exit()
payload, at_once = opening
assert payload == b"the study"
seen = [cores, platform, at_once, os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"]]
with open(os.environ["SEEN"], "a") as file:
    print(json.dumps(seen), file=file)
while (name := connection.recv()) is not None:
    connection.send(name)
"""
"""A process that does nothing for each task that it is told, in place of one that trains."""


@contextmanager
def cores_of_one_of_two():
    """Gives programs started within the cores that each of two trainings at once has: XLA adds up in another order with
    another number of threads."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, shares(sorted(cores), 2)[0] or cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@pytest.fixture(scope="module")
def one_after_the_other(environment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies") / "alone"
    with cores_of_one_of_two():
        run_study(environment, two_models.__file__, folder, f"{STAGES},evaluate", "--parallel=1")
    return folder


def start(environment, folder, *arguments):
    """A study with a process for each of two cores, or for each half of one."""
    words = command(two_models.__file__, folder, STAGES, "--parallel=2", *arguments)
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def trainers(process):
    """Process ids of what trains for a study."""
    found = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", TRAINER], capture_output=True, text=True, check=False
    )
    return [int(word) for word in found.stdout.split()]


def wait_until(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_steps(folder):
    """Waits until the longer training has logged steps."""

    def has_logged(stage):
        records = stage / "metrics.jsonl"
        has_records = records.exists() and records.stat().st_size > 0
        return has_records and str(two_models.NUM_STEPS) in (stage / "config.json").read_text()

    wait_until(lambda: any(map(has_logged, folder.glob("stages/finetune-*"))))


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_side_by_side_all_is_trained_and_evaluated_as_one_after_the_other(environment, one_after_the_other, tmp_path):
    outcome = run_study(environment, two_models.__file__, tmp_path / "both", f"{STAGES},evaluate", "--parallel=2")
    assert stage_metrics(tmp_path / "both") == stage_metrics(one_after_the_other)
    assert len(stage_metrics(one_after_the_other)) == 3
    assert f"finetune random seed 0: step {two_models.NUM_STEPS} of {two_models.NUM_STEPS}" in outcome.stderr
    ranked = [path.relative_to(one_after_the_other) for path in one_after_the_other.rglob("ranks.npz")]
    assert len(ranked) == 5
    for path in ranked:
        with np.load(one_after_the_other / path) as alone, np.load(tmp_path / "both" / path) as both:
            assert sorted(alone) == sorted(both)
            for name in alone:
                np.testing.assert_array_equal(alone[name], both[name])
    # By the processes that trained; the study's own process found nothing left to do.
    for name in ("barlow-frozen", "random-frozen", "pixels"):
        assert outcome.stderr.count(f"evaluate {name}\n") == 1
    assert "skipped" not in outcome.stderr


EARLY = """
import sys

from tests.configs.two_models import get_config
from tll_jax.study import side_by_side

# On a CPU none is, because each has its part of the cores from its start.
def num_early(mesh, parallel):
    print("two are started early", file=sys.stderr)
    return 2

side_by_side.num_early = num_early
"""


def test_processes_that_were_started_before_the_data_was_opened_train_the_same(
    environment, one_after_the_other, tmp_path
):
    config = tmp_path / "early.py"
    config.write_text(EARLY)
    outcome = run_study(environment, config, tmp_path / "study", STAGES, "--parallel=2")
    assert stage_metrics(tmp_path / "study") == stage_metrics(one_after_the_other)
    assert outcome.stderr.count("two are started early") == 1


def test_processes_that_were_started_early_end_where_the_study_trains_alone(environment, tmp_path):
    config = tmp_path / "early.py"
    config.write_text(EARLY)
    words = command(config, tmp_path / "study", STAGES, "--parallel=1")
    with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: len(trainers(process)) == 2)
        wait_until(lambda: not trainers(process))
        assert len(list(tmp_path.glob("study/stages/*"))) < 3
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_saves_all_trainings(number, environment, one_after_the_other, tmp_path):
    process = start(environment, tmp_path / "study")
    wait_for_steps(tmp_path / "study")
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 75, errors
    assert "the same command goes on" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    again = run_study(environment, two_models.__file__, tmp_path / "study", STAGES, "--parallel=2")
    assert "going on at step" in again.stderr
    assert stage_metrics(tmp_path / "study") == stage_metrics(one_after_the_other)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_while_one_starts_stops_the_study(number, environment, tmp_path):
    process = start(environment, tmp_path / "study")
    wait_until(lambda: trainers(process))
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 75, errors
    assert "the same command goes on" in errors.splitlines()[-1]
    assert "Traceback" not in errors


def test_a_killed_study_leaves_no_process_and_keeps_its_folder_until_all_have_saved(
    environment, one_after_the_other, tmp_path
):
    process = start(environment, tmp_path / "study")
    wait_for_steps(tmp_path / "study")
    left = trainers(process)
    assert len(left) == 2
    process.kill()
    process.communicate(timeout=SECONDS)
    with cores_of_one_of_two():
        again = run_study(environment, two_models.__file__, tmp_path / "study", STAGES, "--parallel=1")
    assert not any(map(is_alive, left))
    assert "going on at step" in again.stderr
    assert stage_metrics(tmp_path / "study") == stage_metrics(one_after_the_other)


def test_a_killed_training_ends_the_study(environment, tmp_path):
    process = start(environment, tmp_path / "study")
    wait_for_steps(tmp_path / "study")
    os.kill(trainers(process)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "was ended by SIGKILL; where memory was short, --parallel=1 needs less" in errors.splitlines()[-1]


def test_an_error_of_a_training_is_printed_once_and_ends_the_study(environment, tmp_path):
    process = start(environment, tmp_path / "study", "--config.models.barlow.pretrain.optimizer.learning_rate=1e30")
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert errors.count("is not finite; its batch is kept in") == 1
    assert errors.splitlines()[-1].startswith("tll_jax: pretrain barlow has failed, as written above")
    assert "Traceback" not in errors


SHORT_OF_MEMORY = """
import dataclasses

from tests.configs import two_models
from tll_jax.objectives.barlow_twins import BarlowTwins

class Short(BarlowTwins):
    def __call__(self, *arguments):
        raise MemoryError("no room for the cross-correlation")

def get_config():
    study = two_models.get_config()
    model = study.models["barlow"]
    pretrain = dataclasses.replace(model.pretrain, objective=Short(projector=(16, 16)))
    study.models["barlow"] = dataclasses.replace(model, pretrain=pretrain)
    return study
"""


def test_a_training_that_is_short_of_memory_says_so_in_one_line(environment, tmp_path):
    config = tmp_path / "short.py"
    config.write_text(SHORT_OF_MEMORY)
    words = command(config, tmp_path / "study", STAGES, "--parallel=2")
    outcome = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert outcome.returncode == 1
    *before, last = outcome.stderr.splitlines()
    reason = "tll_jax: out of memory: no room for the cross-correlation. Lower loop.batch_size"
    assert sum(line.startswith(reason) for line in before) == 1
    assert last.startswith(
        "tll_jax: pretrain barlow has failed, as written above; where memory was short, --parallel=1"
    )
    assert "Traceback" not in outcome.stderr


def test_the_number_at_once_follows_from_what_is_to_be_done():
    pretrainings = [Task("pretrain a"), Task("pretrain b")]
    after = [Task(f"finetune {name} seed {seed}", (f"pretrain {name}",)) for name in "ab" for seed in (0, 1)]
    assert width([]) == 0
    assert width(pretrainings) == 2
    assert width(pretrainings + after) == 4
    assert width([pretrainings[0], after[0]]) == 1
    assert width([*pretrainings, after[0]]) == 2
    assert width([Task("finetune c seed 0"), pretrainings[0], after[0]]) == 2


def test_all_processes_have_equally_many_cores():
    assert shares([3, 5], 2) == [[3], [5]]
    assert shares([0, 1, 2, 3, 4], 2) == [[0, 1], [2, 3]]
    assert shares([7], 1) == [[7]]


def workload(*, num_images):
    backbone = one_stage.OneStageBackbone().build(dtype="float32")
    network = Network(backbone=backbone, head=Projection(widths=(16,)).build(dtype="float32"))
    return Workload(network, size=16, num_images=num_images)


def test_a_workload_has_the_size_of_its_outputs():
    one = workload(num_images=1)
    # The stem's maps, 4 x 4 x 8, are the least that an image needs.
    assert one.module_bytes() >= 4 * 4 * 8 * 4
    assert one._replace(num_images=1000).module_bytes() == 1000 * one.module_bytes()


def test_memory_limits_the_number_at_once():
    step = 10**6
    need = side_by_side.BASE_BYTES + side_by_side.STEP_FACTOR * step
    for room, expected in ((0.5, 1), (1.01, 1), (2.01, 2), (3.9, 3), (100, 8)):
        memory = int(room * need / side_by_side.USED_MEMORY)
        assert as_memory_allows(8, step, memory) == expected


def mesh_of(platform, *, limit=None, devices=1):
    """A mesh of devices that are not there, of which XLA has set `limit` bytes aside for this process."""
    device = SimpleNamespace(platform=platform, memory_stats=lambda: limit and {"bytes_limit": limit})
    return SimpleNamespace(devices=np.array([device] * devices), size=devices)


def number(mesh, *, trainings=9, num_images=1, parallel=None):
    tasks = [Task(f"finetune a seed {seed}") for seed in range(trainings)]
    return num_at_once(mesh, tasks, lambda: [workload(num_images=num_images)], parallel=parallel)


def test_only_one_device_of_a_kind_that_processes_can_share_has_trainings_side_by_side():
    assert side_by_side.is_possible(mesh_of("gpu"))
    assert not side_by_side.is_possible(mesh_of("gpu", devices=2))
    assert not side_by_side.is_possible(mesh_of("tpu"))
    assert not side_by_side.is_possible(mesh_of("cpu", devices=2))


def test_a_gpu_has_a_training_for_four_cores(monkeypatch):
    monkeypatch.setattr(side_by_side.devices, "num_cores", lambda: 16)
    large = mesh_of("gpu", limit=60 * 2**30)
    assert number(large) == 4
    assert number(large, trainings=3) == 3
    assert number(large, parallel=7) == 7
    assert number(large, trainings=3, parallel=7) == 3
    assert number(mesh_of("cpu"), parallel=1) == 1
    monkeypatch.setattr(side_by_side.devices, "num_cores", lambda: 7)
    assert number(large) == 1


def test_steps_that_keep_a_gpu_busy_are_not_taken_side_by_side(monkeypatch):
    monkeypatch.setattr(side_by_side.devices, "num_cores", lambda: 16)
    large = mesh_of("gpu", limit=60 * 2**30)
    num_images = side_by_side.LAUNCHED_BYTES // workload(num_images=1).module_bytes()
    assert number(large, num_images=num_images) == 4
    assert number(large, num_images=num_images + 1) == 1
    assert number(large, num_images=num_images + 1, parallel=2) == 2


def test_the_rest_of_a_gpus_memory_limits_the_number_at_once(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    monkeypatch.setattr(side_by_side.devices, "num_cores", lambda: 16)
    # Three quarters of 20 GiB; of the other 5, trainings may take .6, which are 3 and room for two of 1.25.
    assert side_by_side.free_gpu_bytes(mesh_of("gpu", limit=15 * 2**30)) == 5 * 2**30
    assert number(mesh_of("gpu", limit=15 * 2**30)) == 2
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    assert side_by_side.free_gpu_bytes(mesh_of("gpu", limit=15 * 2**30)) == 15 * 2**30
    assert number(mesh_of("gpu")) == 1


def test_processes_are_started_early_where_they_share_the_cores_and_the_number_is_likely(monkeypatch):
    monkeypatch.setattr(side_by_side.devices, "num_cores", lambda: 16)
    assert side_by_side.num_early(mesh_of("gpu"), parallel=None) == 4
    assert side_by_side.num_early(mesh_of("gpu"), parallel=7) == 7
    assert side_by_side.num_early(mesh_of("gpu"), parallel=99) == 16
    assert side_by_side.num_early(mesh_of("gpu"), parallel=1) == 0
    assert side_by_side.num_early(mesh_of("cpu"), parallel=None) == 0
    monkeypatch.setattr(side_by_side.devices, "num_cores", lambda: 7)
    assert side_by_side.num_early(mesh_of("gpu"), parallel=None) == 0


def test_only_a_process_alone_on_a_device_that_others_can_use_has_a_pool(monkeypatch):
    for mesh, lock in ((mesh_of("gpu"), None), (mesh_of("tpu"), 0), (mesh_of("gpu", devices=2), 0)):
        with side_by_side.opened_pool(mesh, lock) as pool:
            assert pool is None
    monkeypatch.setattr(side_by_side.processes, "count", lambda: 2)
    with side_by_side.opened_pool(mesh_of("gpu"), 0) as pool:
        assert pool is None


@pytest.mark.parametrize("early", [0, 1, 3])
def test_processes_on_a_gpu_have_all_cores_and_take_memory_as_they_need_it(early, tmp_path, monkeypatch):
    """A pool that shares no cores, as on a GPU, of processes on the CPU, of which some are started early."""
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    seen = tmp_path / "seen"
    stand_in = tmp_path / "trainer.py"
    stand_in.write_text(STAND_IN)
    monkeypatch.setattr(side_by_side.sys, "executable", str(stand_in))
    stand_in.chmod(0o755)
    monkeypatch.setenv("SEEN", str(seen))
    called = []
    with open(os.devnull) as lock, side_by_side.opened_pool(mesh_of("gpu"), lock.fileno()) as pool:
        pool.start(early)
        before = [trainer.process.pid for trainer in pool.trainers]
        tasks = [Task("finetune a seed 0"), Task("finetune a seed 1")]
        pool.work(b"the study", tasks, at_once=2, at_last=lambda: called.append(True))
        after = [trainer.process for trainer in pool.dismissed]
    assert called == [True]
    assert all(process.returncode == 0 for process in after)
    assert [process.pid for process in after if process.pid in before] == [*before[2:], *before[:2]]
    assert len(after) == max(early, 2)
    first, second = map(json.loads, seen.read_text().splitlines())
    assert first == second == [sorted(os.sched_getaffinity(0)), "gpu", 2, "false"]


@pytest.mark.parametrize(
    ("results", "at_once"), [('{"trainings_at_once": 3, "rows": []}', 3), ('{"trainings_at_', 2), (None, 2)]
)
def test_a_study_without_anything_to_train_was_trained_as_its_results_say(tmp_path, monkeypatch, results, at_once):
    run = Run.open(two_models.get_config(), tmp_path, ("pretrain", "finetune"), Readers())
    monkeypatch.setattr(Run, "is_trained", lambda self, job: True)
    monkeypatch.setattr(side_by_side, "num_at_once", lambda *_, **__: 2)
    if results is not None:
        (tmp_path / "results.json").write_text(results)
    assert run.work_side_by_side(None, side_by_side.Pool("gpu", 0)) == (at_once, False)


def test_a_process_takes_the_data_that_the_study_has_opened(tmp_path, monkeypatch):
    study, stages = two_models.get_config(), ("pretrain", "finetune")
    opened = Run.open(study, tmp_path, stages, Readers())
    data = pickle.loads(cloudpickle.dumps(Data(opened.context.pairs, opened.sources)))

    def refuse(*_, **__):
        raise AssertionError("opened again")

    for settings in (type(study.pairs), type(study.models["barlow"].pretrain.images)):
        monkeypatch.setattr(settings, "open", refuse)
    again = Run.open(study, tmp_path, stages, Readers(), data)
    assert again.context.pairs is data.pairs
    assert again.sources == data.sources
    assert [job.key for job in again.jobs()] == [job.key for job in opened.jobs()]
    left, right, _ = again.context.pairs[3]
    np.testing.assert_array_equal(left, opened.context.pairs[3].left)
    np.testing.assert_array_equal(right, opened.context.pairs[3].right)


@contextmanager
def early_trainer(environment, platform):
    """A process that trains, as it is before its study is known, and the study's end of the connection."""
    ours, theirs = socket.socketpair()
    arguments = json.dumps([sys.path, sorted(os.sched_getaffinity(0)), platform, theirs.fileno()])
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", TRAINER, arguments],
            pass_fds=[theirs.fileno()],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
    with process:
        yield process, Connection(ours.detach())


def test_a_process_that_does_not_get_the_studys_gpu_says_so_and_ends(environment, tmp_path):
    payload = pickle.dumps((two_models.get_config(), tmp_path, ("finetune",), None))
    with early_trainer(environment, "gpu") as (process, connection):
        connection.send((payload, 2))
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    (line,) = errors.splitlines()
    assert line.startswith("tll_jax: JAX finds no gpu in a process that trains beside others, only cpu")
    assert "--parallel=1" in line


def test_a_process_that_was_started_early_and_is_not_needed_ends_without_a_word(environment):
    with early_trainer(environment, "gpu") as (process, connection):
        connection.send(None)
        assert process.communicate(timeout=SECONDS) == (None, "")
    assert process.returncode == 0


def test_a_process_that_was_started_early_ends_with_its_study(environment):
    with early_trainer(environment, "gpu") as (process, connection):
        connection.close()
        process.communicate(timeout=SECONDS)
    assert process.returncode == 75
