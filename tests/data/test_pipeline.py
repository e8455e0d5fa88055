"""Batches are functions of (seed, step) for any number of threads; evaluation sees every image once."""

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.launch.stand_ins import is_running, wait_until
from tll_jax.config_files import load_study
from tll_jax.data import pipeline
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.folder import ImagesOfPairs
from tll_jax.data.geometry import RandomResizedCrop, Resize
from tll_jax.data.imaging import BrokenImage
from tll_jax.data.pipeline import (
    KeptExamples,
    Readers,
    evaluation_batches,
    num_workers_for,
    open_readers,
    pair_dataset,
    training_batches,
    view_dataset,
)
from tll_jax.data.workers import WorkerLost, Workers
from tll_jax.devices import make_mesh
from tll_jax.typing import LabeledImage

CROP = RandomResizedCrop(size=24, scale=(0.5, 1.0))


@pytest.fixture(scope="module")
def pairs():
    return EmojiPairs().open()


@pytest.fixture(scope="module")
def views():
    source = ImagesOfPairs(pairs=EmojiPairs(), label="subcategories").open(held_out=frozenset())
    return view_dataset(source, CROP, seed=3)


def take(dataset, count, *, start_step=0, **readers):
    batches = training_batches(dataset, batch_size=8, start_step=start_step, readers=Readers(**readers))
    with contextlib.closing(batches):
        return [next(batches) for _ in range(count)]


@pytest.fixture(scope="module")
def workers():
    """Two processes for all tests that read by workers."""
    opened = Workers(2)
    yield opened
    opened.close()


@pytest.mark.parametrize("num_threads", [0, 1, 3, None])
def test_batches_from_any_step_repeat_those_of_an_unbroken_run(views, workers, num_threads):
    unbroken = take(views, 6, num_threads=1)
    resumed = take(views, 4, start_step=2, num_threads=num_threads, workers=workers if num_threads is None else None)
    for one, other in zip(unbroken[2:], resumed, strict=True):
        for left, right in zip(one, other, strict=True):
            assert np.array_equal(left, right)


def test_workers_read_several_data_sets_in_turns_and_are_started_once(views, pairs, workers):
    dataset = pair_dataset(pairs, range(40), CROP, seed=1)
    images = pairs.images(range(37)).left
    expected = take(views, 5), take(dataset, 5), list(evaluation_batches(images, Resize(size=16), batch_size=8))
    one, other, evaluated = [], [], []
    opened = [
        training_batches(source, batch_size=8, start_step=0, readers=Readers(workers=workers))
        for source in (views, dataset)
    ]
    for _ in range(5):
        one.append(next(opened[0]))
        processes = {worker.process.pid for worker in workers._started}
        other.append(next(opened[1]))
        evaluated = list(evaluation_batches(images, Resize(size=16), batch_size=8, readers=Readers(workers=workers)))
    for batches, known in zip((one, other, evaluated), expected, strict=True):
        for batch, same in zip(batches, known, strict=True):
            assert type(batch) is type(same)
            assert all(map(np.array_equal, batch, same))
    assert {worker.process.pid for worker in workers._started} == processes
    assert len(processes) == 2
    for batches in opened:
        batches.close()
    assert not workers._arrived


def refuse(index):
    if index == 3:
        raise BrokenImage(f"picture {index} is broken")
    if index == 7:
        os._exit(3)
    return np.full(index + 1, index)


def test_workers_can_be_started_before_the_first_request(views):
    opened = Workers(1)
    try:
        opened.start()
        (worker,) = opened._started
        opened.start()
        assert take(views, 1, workers=opened)[0].view_a.shape == take(views, 1)[0].view_a.shape
        assert opened._started == [worker]
    finally:
        opened.close()


def test_an_error_in_a_worker_is_raised_in_the_parent_and_a_dead_worker_is_reported(workers):
    batches = workers.read(refuse, range(6))
    assert [next(batches).tolist() for _ in range(3)] == [[0], [1, 1], [2, 2, 2]]
    with pytest.raises(BrokenImage, match="picture 3 is broken") as caught:
        next(batches)
    assert "in refuse" in caught.value.__notes__[0]
    assert [batch.size for batch in workers.read(refuse, range(3))] == [1, 2, 3]
    alone = Workers(1)
    try:
        with pytest.raises(WorkerLost, match=r"ended with status 3; .* --config\.num_workers"):
            list(alone.read(refuse, [7]))
    finally:
        alone.close()


def test_the_number_of_prefetched_batches_falls_with_their_size(workers, monkeypatch):
    asked = []
    ask = workers._ask
    monkeypatch.setattr(workers, "_ask", lambda *task: (asked.append(task), ask(*task)))
    for limit, at_first, then in ((2**33, 2, 5), (1, 2, 3)):
        monkeypatch.setattr("tll_jax.data.workers.MAX_BYTES_AHEAD", limit)
        asked.clear()
        batches = workers.read(np.zeros, range(1, 9))
        next(batches)
        assert len(asked) == at_first
        next(batches)
        # One of them is the batch that was just returned.
        assert len(asked) == then
        assert len(list(batches)) == 6


CONFIG = """
from dataclasses import dataclass
import numpy as np
from tests.configs import one_stage

@dataclass(kw_only=True)
class Corner:
    size: int = 16
    shortest_side = None
    def __call__(self, rng, image):
        return np.ascontiguousarray(image[: self.size, : self.size])

def get_config():
    study = one_stage.get_config()
    study.evaluate.geometry = Corner()
    return study
"""


def test_workers_unpickle_classes_defined_in_a_config_file(pairs, workers, tmp_path):
    (tmp_path / "own.py").write_text(CONFIG)
    geometry = load_study(str(tmp_path / "own.py")).evaluate.geometry
    images = pairs.images(range(5)).left
    (batch,) = evaluation_batches(images, geometry, batch_size=8, readers=Readers(workers=workers))
    assert np.array_equal(batch.image[:5], [image[:16, :16] for image in images])


@pytest.mark.parametrize(
    ("platform", "cores", "devices", "workers"),
    [
        ("cpu", 2, 1, 0),
        ("cpu", 64, 8, 0),
        ("gpu", 1, 1, 1),
        ("gpu", 16, 1, 15),
        ("gpu", 208, 1, 16),
        ("gpu", 208, 8, 128),
        ("tpu", 112, 4, 64),
    ],
)
def test_worker_processes_are_the_default_for_accelerators_and_not_for_cpus(platform, cores, devices, workers):
    assert num_workers_for(platform, num_cores=cores, num_devices=devices) == workers


def test_open_readers_uses_the_given_workers_or_threads_or_the_default_of_the_platform(monkeypatch):
    def opened(**asked):
        with open_readers(make_mesh(), **asked) as readers:
            return readers.num_threads, readers.workers and readers.workers.num_workers

    assert opened() == (None, None)
    assert opened(num_workers=3) == (None, 3)
    monkeypatch.setattr(pipeline, "num_workers_for", lambda platform, *, num_cores, num_devices: 5)
    assert opened() == (None, 5)
    assert opened(num_threads=1) == (1, None)
    assert opened(num_workers=0) == (None, None)
    monkeypatch.setattr(pipeline, "num_workers_for", lambda platform, *, num_cores, num_devices: num_cores)
    monkeypatch.setattr(pipeline, "num_cores", lambda: 16)
    assert opened(sharing=4) == (None, 4)


def test_the_two_views_of_an_image_differ_and_seeds_give_other_batches(views):
    (batch,) = take(views, 1, num_threads=0)
    assert batch.view_a.shape == (8, 24, 24, 3)
    assert batch.view_a.dtype == np.uint8
    assert not np.array_equal(batch.view_a, batch.view_b)
    source = ImagesOfPairs(pairs=EmojiPairs(), label="subcategories").open(held_out=frozenset())
    (other,) = take(view_dataset(source, CROP, seed=4), 1, num_threads=0)
    assert not np.array_equal(batch.label, other.label)


def test_an_epoch_visits_every_pair_once_and_the_next_in_another_order(pairs):
    indices = np.arange(100, 140)
    dataset = pair_dataset(pairs, indices, CROP, seed=0)
    visited = [int(batch.group[row]) for batch in take(dataset, 10, num_threads=2) for row in range(8)]
    first, second = visited[:40], visited[40:]
    assert sorted(first) == sorted(second) == sorted(pairs.groups[indices].tolist())
    assert first != second


def test_sides_are_swapped_half_of_the_time(pairs):
    whole = Resize(size=64)
    dataset = pair_dataset(pairs, [5], whole, seed=0)
    left = pairs[5].left
    kept = [np.array_equal(row, left) for batch in take(dataset, 25, num_threads=2) for row in batch.left]
    assert 70 < sum(kept) < 130


READER = """
import sys, time
from tests.data.test_pipeline import CROP
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.folder import ImagesOfPairs
from tll_jax.data.pipeline import Readers, training_batches, view_dataset
from tll_jax.data.workers import Workers

# No guard: workers do not run this file.
source = ImagesOfPairs(pairs=EmojiPairs(), label="subcategories").open(held_out=frozenset())
workers = Workers(2)
readers = Readers(workers=workers)
batches = training_batches(view_dataset(source, CROP, seed=3), batch_size=8, start_step=0, readers=readers)
next(batches)
print("reading", flush=True)
sys.stdin.readline()
for _ in range(9):
    next(batches)
batches.close()
workers.close()
print("closed", flush=True)
time.sleep(600)
"""


def test_workers_and_their_memory_end_with_a_killed_parent_and_ignore_signals_to_the_group(tmp_path):
    script = tmp_path / "reader.py"
    script.write_text(READER)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "MARK": str(tmp_path)}
    readers = [
        subprocess.Popen(
            [sys.executable, script],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for _ in range(2)
    ]
    try:
        assert [reader.stdout.readline() for reader in readers] == ["reading\n"] * 2
        # Two readers and two workers of each.
        assert len(marked(tmp_path)) == 6
        mapped = [line for one in marked(tmp_path) for line in Path(f"/proc/{one}/maps").read_text().splitlines()]
        # Shared memory that has no name ends with its last process.
        assert any("memfd:batch" in line for line in mapped)
        assert not [line for line in mapped if "/dev/shm/" in line and not line.endswith("(deleted)")]
        killed, signaled = readers
        killed.kill()
        for process in marked(tmp_path):
            if process != signaled.pid and os.getpgid(process) == signaled.pid:
                os.kill(process, signal.SIGTERM)
                os.kill(process, signal.SIGINT)
        signaled.stdin.write("go on\n")
        signaled.stdin.flush()
        assert signaled.stdout.readline() == "closed\n"
        wait_until(lambda: marked(tmp_path) == [signaled.pid], "the end of all workers")
        signaled.kill()
        _, errors = signaled.communicate(timeout=300)
        assert errors == ""
        wait_until(lambda: not marked(tmp_path), "the end of all processes")
    finally:
        for process in marked(tmp_path):
            os.kill(process, signal.SIGKILL)
        for reader in readers:
            reader.communicate()


def marked(folder):
    """Running processes that a test has started, directly or indirectly."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        # A process may end meanwhile.
        with contextlib.suppress(OSError):
            is_marked = f"MARK={folder}".encode() in (place / "environ").read_bytes().split(b"\0")
            if is_marked and is_running(int(place.name)):
                found.append(int(place.name))
    return found


def test_evaluation_batches_are_equal_for_any_number_of_threads(pairs):
    images = pairs.images(range(20)).left
    runs = [
        list(evaluation_batches(images, Resize(size=16), batch_size=8, readers=Readers(num_threads=threads)))
        for threads in (None, 0, 1, 5)
    ]
    for run in runs[1:]:
        for batch, expected in zip(run, runs[0], strict=True):
            for part, other in zip(batch, expected, strict=True):
                np.testing.assert_array_equal(part, other)


@pytest.mark.parametrize(
    ("cores", "size", "batches", "threads"),
    # 32 pictures of 100 x 100 pixels are 0.96 MB; of 1,000 x 1,000, 96 MB, of which 512 MiB hold two for two threads.
    [(1, 100, 20, 1), (6, 100, 20, 6), (6, 100, 2, 2), (64, 100, 20, 16), (64, 1000, 20, 2), (64, 5000, 20, 1)],
)
def test_evaluation_uses_one_thread_per_core_up_to_those_of_use_and_the_memory_limit(
    monkeypatch, cores, size, batches, threads
):
    used = []

    def read_ahead(batches, num_threads):
        used.append(num_threads)
        return []

    monkeypatch.setattr(pipeline, "num_cores", lambda: cores)
    monkeypatch.setattr(pipeline, "_read_ahead", read_ahead)
    images = [np.zeros((8, 8, 3), np.uint8)] * (32 * batches)
    list(evaluation_batches(images, Resize(size=size), batch_size=32))
    assert used == [threads]


class SomeBroken(Sequence):
    """Ten gray pictures, of which two cannot be read."""

    def __len__(self):
        return 10

    def __getitem__(self, position):
        if position in (2, 9):
            raise BrokenImage(f"{position}.png: cut short")
        return np.full((16, 16, 3), 100 + position, np.uint8)


def test_broken_images_are_black_and_reported_with_threads_and_with_workers(workers):
    for readers in (Readers(), Readers(workers=workers)):
        broken = {}
        batches = evaluation_batches(SomeBroken(), Resize(size=16), batch_size=4, readers=readers, broken=broken)
        rows = np.concatenate([batch.image for batch in batches])
        assert rows[:, 0, 0, 0].tolist() == [100, 101, 0, 103, 104, 105, 106, 107, 108, 0, 0, 0]
        assert broken == {2: "2.png: cut short", 9: "9.png: cut short"}
        with pytest.raises(BrokenImage, match=r"2\.png"):
            list(evaluation_batches(SomeBroken(), Resize(size=16), batch_size=4, readers=readers))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 24])
def test_evaluation_visits_every_image_exactly_once(pairs, count):
    images = pairs.images(range(count)).left
    batches = list(evaluation_batches(images, Resize(size=64), batch_size=8))
    assert all(batch.image.shape == (8, 64, 64, 3) for batch in batches)
    assert [int(i) for batch in batches for i in batch.index[batch.mask]] == list(range(count))
    seen = np.concatenate([batch.image[batch.mask] for batch in batches])
    assert np.array_equal(seen[-1], images[count - 1])


class CountedReads:
    """A source of five different images of 48 bytes that counts how often each is read."""

    def __init__(self):
        self.reads = [0] * 5

    def __getitem__(self, index):
        self.reads[index] += 1
        return LabeledImage(np.full((4, 4, 3), index, np.uint8), index)


def test_examples_are_cached_up_to_the_memory_limit():
    source = CountedReads()
    examples = KeptExamples(source, max_bytes=100)
    for _ in range(3):
        for index in range(5):
            image, label = examples[index]
            assert label == index
            assert np.all(image == index)
    # Two images of 48 bytes fit into 100.
    assert source.reads == [1, 1, 3, 3, 3]


class CountedPairs:
    """The given pairs, and how often each was read."""

    def __init__(self, pairs):
        self.pairs, self.reads = pairs, Counter()

    def __getitem__(self, index):
        self.reads[index] += 1
        return self.pairs[index]


def test_data_sets_of_the_same_examples_decode_each_pair_once(pairs):
    counted = CountedPairs(pairs)
    examples = KeptExamples(counted, max_bytes=2**20)
    for seed in (0, 1):
        (batch,) = take(pair_dataset(examples, range(8), CROP, seed=seed), 1, num_threads=0)
        (alone,) = take(pair_dataset(pairs, range(8), CROP, seed=seed), 1, num_threads=0)
        assert np.array_equal(batch.left, alone.left)
    assert counted.reads == dict.fromkeys(range(8), 1)


def test_a_worker_keeps_examples_from_one_reading_to_the_next_until_it_gets_others():
    class Reads(CountedReads):
        def __getitem__(self, index):
            super().__getitem__(index)
            return LabeledImage(np.zeros((4, 4, 3), np.uint8), self.reads[index])

    def num_reads(examples):
        return list(workers.read(lambda index: examples[index].label, range(5)))

    one, other = (KeptExamples(Reads(), max_bytes=2**20) for _ in range(2))
    workers = Workers(1)
    try:
        assert num_reads(one) == num_reads(one) == [1] * 5
        assert num_reads(other) == [1] * 5
        # Its source was pickled anew.
        assert num_reads(one) == [1] * 5
    finally:
        workers.close()
    assert one[0].label == 1


def test_a_geometry_cannot_modify_a_cached_image():
    image, _ = KeptExamples(CountedReads(), max_bytes=100)[0]
    with pytest.raises(ValueError, match="read-only"):
        image += 1
