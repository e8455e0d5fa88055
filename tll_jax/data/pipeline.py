"""Sources to host batches with grain: shuffle and augmentation are functions of (seed, position), so batch k can be
made again at any time, with any number of threads."""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Any

import grain
import jax
import numpy as np

from tll_jax.contracts import (
    Geometry,
    Image,
    ImageBatch,
    ImageSource,
    PairBatch,
    PairSource,
    ViewBatch,
)
from tll_jax.data.imaging import quiet_opencv
from tll_jax.devices import num_cores

KEPT_BYTES = 512 * 2**20
"""How much of decoded images a data set keeps, in each process that makes batches. Decoding a small image costs more
than cropping it twice, and where a CPU trains it is taken from the step."""


MAX_THREADS = 16
"""More than one Python process can use at once."""
BATCHES_AHEAD = 2
"""That each reading thread keeps, so that none waits for the others' turn."""


class KeptExamples:
    """The examples of a source, decoded once as far as `max_bytes` of images go, and each time from there on."""

    def __init__(self, source: ImageSource | PairSource, max_bytes: int) -> None:
        self._source = source
        self._examples: dict[int, Any] = {}
        self._room = max_bytes

    def __getitem__(self, index: int) -> Any:
        example = self._examples.get(index)
        if example is None:
            example = self._source[index]
            images = [part for part in example if isinstance(part, np.ndarray)]
            for image in images:
                # A geometry that wrote into its image would change it for all epochs to come.
                image.setflags(write=False)
            # A part of a larger picture keeps all of it.
            size = sum(getattr(image.base, "nbytes", image.nbytes) for image in images)
            # Threads that come by here at once may overdraw by an example each.
            if size <= self._room:
                self._room -= size
                self._examples[index] = example
        return example


def view_dataset(
    source: ImageSource, geometry: Geometry, *, seed: int, kept_bytes: int = KEPT_BYTES
) -> grain.MapDataset:
    """Two independent geometric views of every image, endlessly; each epoch in a new order."""
    examples = KeptExamples(source, kept_bytes)

    def make_views(index: int, rng: np.random.Generator) -> ViewBatch:
        image, label = examples[index]
        return ViewBatch(geometry(rng, image), geometry(rng, image), np.int32(label))

    return _endless(np.arange(len(source)), make_views, seed=seed)


def pair_dataset(
    pairs: PairSource, indices: Sequence[int] | np.ndarray, geometry: Geometry, *, seed: int
) -> grain.MapDataset:
    """The pairs at `indices`, endlessly; sides are swapped at random, for a look-alike pair has no direction."""
    examples = KeptExamples(pairs, KEPT_BYTES)

    def make_pair(index: int, rng: np.random.Generator) -> PairBatch:
        left, right, group = examples[index]
        if rng.random() < 0.5:
            left, right = right, left
        return PairBatch(geometry(rng, left), geometry(rng, right), np.int32(group))

    return _endless(np.asarray(indices), make_pair, seed=seed)


def _endless(indices: np.ndarray, make_example: Any, *, seed: int) -> grain.MapDataset:
    # grain's own source, shuffle and repeat cost as much an example as a small crop.
    def at(position: int, rng: np.random.Generator) -> Any:
        epoch, place = divmod(position, len(indices))
        return make_example(int(indices[_order(len(indices), seed, epoch)[place]]), rng)

    return grain.MapDataset.range(sys.maxsize).seed(seed).random_map(at)


@functools.lru_cache(maxsize=2)
def _order(length: int, seed: int, epoch: int) -> np.ndarray:
    """The places of an epoch's examples; where two epochs meet, threads need both."""
    return np.random.default_rng([seed, epoch]).permutation(length)


def training_batches(
    dataset: grain.MapDataset,
    *,
    batch_size: int,
    start_step: int,
    num_threads: int,
    num_processes: int = 0,
) -> Iterator[Any]:
    """Stacked batches from step `start_step` on; what a batch holds depends on its step alone.

    The iterator's `close()` ends the threads and worker processes that make them.

    Of a program that spans several hosts each gets its own rows, the same as if one host made the whole batch: host p
    of n those from `p * batch_size / n` on.

    Args:
      batch_size: rows over all hosts.
      num_threads: that make whole batches ahead of time; 0 makes each in the caller's thread when it is asked for.
      num_processes: workers among which the steps are dealt out, each with `num_threads`; they pay off where more
        cores wait than threads of one Python process can use. 0 for none.
    """
    hosts, host = jax.process_count(), jax.process_index()
    rows = batch_size // hosts
    batches = dataset.batch(rows, drop_remainder=True)[start_step * hosts + host :: hosts]
    iterated = _read_ahead(batches, num_threads)
    return _by_workers(iterated, num_processes) if num_processes else iter(iterated)


def _by_workers(iterated: grain.IterDataset, num_workers: int) -> Iterator[Any]:
    options = grain.multiprocessing.MultiprocessingOptions(num_workers=num_workers)
    with contextlib.closing(iter(iterated.mp_prefetch(options, worker_init_fn=_start_worker))) as batches:
        # Threads and processes inherit it: a terminal and Slurm signal a whole group, and one whose workers end before
        # it has saved could not save, or would wait for them forever.
        resource_tracker.ensure_running()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            first = [next(batches)]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        # Nothing may hold a batch longer than its user: its shared memory goes with it.
        yield first.pop()
        yield from batches


def _start_worker(_worker: int, _num_workers: int) -> None:
    """Sets a worker process up, and has it end with the process that reads from it, however that ends."""
    quiet_opencv()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        # Python's tracker of shared memory removes what is left once all have ended.
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def evaluation_batches(
    images: Sequence[Image],
    geometry: Geometry,
    *,
    batch_size: int,
    num_threads: int | None = None,
    share: tuple[int, int] = (1, 0),
) -> Iterator[ImageBatch]:
    """Every image exactly once, in order; the last batch is filled up with black rows that `mask` marks False.

    They are read by `num_threads` threads; by default by one for each core that this process may use, up to
    `MAX_THREADS`, and only as many as have room for their batches in `KEPT_BYTES`.

    Where several hosts share the work, `share` is their number and which of them this one is; `image` then holds this
    host's rows, and `index` and `mask` those of all hosts.
    """
    hosts, host = share
    first_row, num_rows = host * batch_size // hosts, batch_size // hosts

    def make_batch(start: int) -> ImageBatch:
        rng = np.random.default_rng(0)
        positions = np.arange(start, start + batch_size)
        mask = positions < len(images)
        rows = np.zeros((num_rows, geometry.size, geometry.size, 3), np.uint8)
        for row, position in enumerate(positions[first_row:][:num_rows].tolist()):
            if position < len(images):
                rows[row] = geometry(rng, images[position])
        return ImageBatch(image=rows, index=np.where(mask, positions, -1).astype(np.int32), mask=mask)

    if num_threads is None:
        room = KEPT_BYTES // (BATCHES_AHEAD * num_rows * geometry.size**2 * 3)
        num_threads = max(1, min(num_cores(), MAX_THREADS, room))
    starts = grain.MapDataset.range(0, len(images), batch_size).map(make_batch)
    return iter(_read_ahead(starts, num_threads))


def _read_ahead(batches: grain.MapDataset, num_threads: int) -> grain.IterDataset:
    ahead = BATCHES_AHEAD * num_threads
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=ahead))
