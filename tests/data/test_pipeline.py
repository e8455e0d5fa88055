"""Batches are functions of (seed, step) for any number of threads; evaluation sees every image once."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from tests.launch.stand_ins import is_running, wait_until
from tll_jax.contracts import LabeledImage
from tll_jax.data import pipeline
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.folder import ImagesOfPairs
from tll_jax.data.geometry import RandomResizedCrop, Resize
from tll_jax.data.pipeline import KeptExamples, evaluation_batches, pair_dataset, training_batches, view_dataset

CROP = RandomResizedCrop(size=24, scale=(0.5, 1.0))


@pytest.fixture(scope="module")
def pairs():
    return EmojiPairs().open()


@pytest.fixture(scope="module")
def views():
    source = ImagesOfPairs(pairs=EmojiPairs(), label="subcategories").open(held_out=frozenset())
    return view_dataset(source, CROP, seed=3)


def take(dataset, count, **options):
    batches = training_batches(dataset, batch_size=8, **options)
    return [next(batches) for _ in range(count)]


@pytest.fixture
def absl_flags():
    """grain's worker processes read absl flags, which a program's own start parses."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


@pytest.mark.parametrize(
    ("num_threads", "num_processes"), [(0, 0), (1, 0), (3, 0), (1, 1), (1, 3)], ids=lambda number: str(number)
)
def test_batches_from_any_step_repeat_those_of_an_unbroken_run(views, absl_flags, num_threads, num_processes):
    unbroken = take(views, 6, start_step=0, num_threads=1)
    resumed = take(views, 4, start_step=2, num_threads=num_threads, num_processes=num_processes)
    for one, other in zip(unbroken[2:], resumed, strict=True):
        for left, right in zip(one, other, strict=True):
            assert np.array_equal(left, right)


def test_the_two_views_of_an_image_differ_and_seeds_give_other_batches(views):
    (batch,) = take(views, 1, start_step=0, num_threads=0)
    assert batch.view_a.shape == (8, 24, 24, 3)
    assert batch.view_a.dtype == np.uint8
    assert not np.array_equal(batch.view_a, batch.view_b)
    source = ImagesOfPairs(pairs=EmojiPairs(), label="subcategories").open(held_out=frozenset())
    (other,) = take(view_dataset(source, CROP, seed=4), 1, start_step=0, num_threads=0)
    assert not np.array_equal(batch.label, other.label)


def test_an_epoch_visits_every_pair_once_and_the_next_in_another_order(pairs):
    indices = np.arange(100, 140)
    dataset = pair_dataset(pairs, indices, CROP, seed=0)
    visited = [int(batch.group[row]) for batch in take(dataset, 10, start_step=0, num_threads=2) for row in range(8)]
    first, second = visited[:40], visited[40:]
    assert sorted(first) == sorted(second) == sorted(pairs.groups[indices].tolist())
    assert first != second


def test_sides_are_swapped_half_of_the_time(pairs):
    whole = Resize(size=64)
    dataset = pair_dataset(pairs, [5], whole, seed=0)
    left = pairs[5].left
    kept = [np.array_equal(row, left) for batch in take(dataset, 25, start_step=0, num_threads=2) for row in batch.left]
    assert 70 < sum(kept) < 130


READER = """
import sys, time
from absl import flags
from tests.data.test_pipeline import CROP
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.folder import ImagesOfPairs
from tll_jax.data.pipeline import training_batches, view_dataset

if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    source = ImagesOfPairs(pairs=EmojiPairs(), label="subcategories").open(held_out=frozenset())
    batches = training_batches(
        view_dataset(source, CROP, seed=3), batch_size=8, start_step=0, num_threads=1, num_processes=1
    )
    next(batches)
    print("reading", flush=True)
    sys.stdin.readline()
    next(batches), next(batches), next(batches)
    batches.close()
    print("closed", flush=True)
    time.sleep(600)
"""


def test_nothing_is_left_of_workers_whose_reader_is_killed_and_signals_to_the_group_do_not_end_them(tmp_path):
    script = tmp_path / "reader.py"
    script.write_text(READER)
    shared_before = set(os.listdir("/dev/shm"))
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
        # Two readers, their workers and the trackers of their shared memory.
        assert len(marked(tmp_path)) == 6
        killed, signaled = readers
        killed.kill()
        for process in marked(tmp_path):
            if process != signaled.pid and os.getpgid(process) == signaled.pid:
                os.kill(process, signal.SIGTERM)
                os.kill(process, signal.SIGINT)
        signaled.stdin.write("go on\n")
        signaled.stdin.flush()
        assert signaled.stdout.readline() == "closed\n"
        signaled.kill()
        _, errors = signaled.communicate(timeout=60)
        assert errors == ""
        wait_until(lambda: not marked(tmp_path), "the end of all processes")
        wait_until(lambda: not set(os.listdir("/dev/shm")) - shared_before, "the end of all shared memory")
    finally:
        for process in marked(tmp_path):
            os.kill(process, signal.SIGKILL)
        for reader in readers:
            reader.communicate()


def marked(folder):
    """The processes that a test has started, itself or through others, and that have not ended."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        # A process may end meanwhile.
        with contextlib.suppress(OSError):
            is_marked = f"MARK={folder}".encode() in (place / "environ").read_bytes().split(b"\0")
            if is_marked and is_running(int(place.name)):
                found.append(int(place.name))
    return found


def test_any_number_of_threads_reads_the_same_for_evaluation(pairs):
    images = pairs.images(range(20)).left
    runs = [
        list(evaluation_batches(images, Resize(size=16), batch_size=8, **options))
        for options in ({}, {"num_threads": 0}, {"num_threads": 1}, {"num_threads": 5})
    ]
    for run in runs[1:]:
        for batch, expected in zip(run, runs[0], strict=True):
            for part, other in zip(batch, expected, strict=True):
                np.testing.assert_array_equal(part, other)


@pytest.mark.parametrize(
    ("cores", "size", "threads"),
    # 32 pictures of 100 x 100 pixels are 0.96 MB; of 1,000 x 1,000, 96 MB, of which 512 MiB hold two for two threads.
    [(1, 100, 1), (6, 100, 6), (64, 100, 16), (64, 1000, 2), (64, 5000, 1)],
)
def test_evaluation_reads_by_the_cores_there_are_as_far_as_memory_goes(monkeypatch, cores, size, threads):
    used = []

    def read_ahead(batches, num_threads):
        used.append(num_threads)
        return []

    monkeypatch.setattr(pipeline, "num_cores", lambda: cores)
    monkeypatch.setattr(pipeline, "_read_ahead", read_ahead)
    evaluation_batches([], Resize(size=size), batch_size=32)
    assert used == [threads]


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


def test_examples_are_read_once_as_far_as_the_memory_for_them_goes():
    source = CountedReads()
    examples = KeptExamples(source, max_bytes=100)
    for _ in range(3):
        for index in range(5):
            image, label = examples[index]
            assert label == index
            assert np.all(image == index)
    # Two images of 48 bytes fit into 100.
    assert source.reads == [1, 1, 3, 3, 3]


def test_a_geometry_cannot_change_an_image_for_the_epochs_to_come():
    image, _ = KeptExamples(CountedReads(), max_bytes=100)[0]
    with pytest.raises(ValueError, match="read-only"):
        image += 1
