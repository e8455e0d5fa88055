"""Input pipeline with grain: sources to host batches.

Shuffling and augmentation are functions of the seed and the position, so that any batch can be reproduced at any time
with any number of threads.
"""

import functools
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from tll_jax.data.imaging import BrokenImage
from tll_jax.data.workers import BATCHES_AHEAD, Workers
from tll_jax.devices import num_cores, platform_of
from tll_jax.typing import (
    Geometry,
    Image,
    ImageBatch,
    ImageSource,
    PairBatch,
    PairSource,
    ViewBatch,
)

KEPT_BYTES = 512 * 2**20
"""Maximum size in bytes of a cache of decoded images, in each process that makes batches.

Decoding a small image costs more than two crops of it, and on a CPU that cost is taken from the training step.
"""


MAX_THREADS = 16
"""Maximum number of threads, beyond which a Python process gains nothing."""
TRAINING_THREADS = 2
"""Number of reader threads during training on a CPU, which leaves cores to the training step."""
WORKERS_PER_DEVICE = 16
"""Maximum number of worker processes per accelerator.

Each worker decodes about 900 images of 200 x 245 pixels per second and makes two crops of 224 pixels of each
(benchmarks/README.md), so that this many outpace the accelerator.
"""


def num_workers_for(platform: str, *, num_cores: int, num_devices: int) -> int:
    """Default number of worker processes: 0 on a CPU, else all cores but one, up to `WORKERS_PER_DEVICE` per device."""
    if platform == "cpu":
        return 0
    return min(max(1, num_cores - 1), WORKERS_PER_DEVICE * num_devices)


@dataclass(frozen=True, kw_only=True)
class Readers:
    """Settings of batch production: worker processes or, without any, threads of this process."""

    num_threads: int | None = None
    """Number of threads. None: `TRAINING_THREADS` for training, one per core for evaluation. 0: the calling thread."""
    workers: Workers | None = None

    def read(self, batches: grain.MapDataset, *, num_threads: int) -> Iterator[Any]:
        """All batches in order, prefetched; `num_threads` applies if neither workers nor threads are set."""
        if self.workers is not None:
            return self.workers.read(batches.__getitem__, range(len(batches)))
        return iter(_read_ahead(batches, num_threads if self.num_threads is None else self.num_threads))


@contextmanager
def open_readers(
    mesh: Mesh, *, num_threads: int | None = None, num_workers: int | None = None, sharing: int = 1
) -> Iterator[Readers]:
    """Context manager of readers for a program on `mesh`; worker processes start on first use and end with the block.

    Args:
      num_workers: by default `num_workers_for` the cores, or 0 if `num_threads` is given.
      sharing: number of programs, this one included, that share the cores.
    """
    if num_workers is None:
        cores, devices = num_cores() // sharing, len(mesh.local_devices)
        chosen = num_workers_for(platform_of(mesh), num_cores=cores, num_devices=devices)
        num_workers = chosen if num_threads is None else 0
    workers = Workers(num_workers) if num_workers else None
    try:
        yield Readers(num_threads=num_threads, workers=workers)
    finally:
        if workers is not None:
            workers.close()


class KeptExamples:
    """Cache of a source's decoded examples, up to `max_bytes` of images; others are decoded on each access.

    Another process fills a cache of its own, for all readings of the same `KeptExamples`, until it gets another one.
    """

    def __init__(self, source: ImageSource | PairSource, max_bytes: int, identity: str | None = None) -> None:
        self._source = source
        self._max_bytes = max_bytes
        self._identity = uuid.uuid4().hex if identity is None else identity
        self._examples: dict[int, Any] = {}
        self._room = max_bytes

    def __reduce__(self) -> Any:
        """Pickles the source without the cache."""
        return _kept_here, (self._source, self._max_bytes, self._identity)

    def __getitem__(self, index: int) -> Any:
        example = self._examples.get(index)
        if example is None:
            example = self._source[index]
            images = [part for part in example if isinstance(part, np.ndarray)]
            for image in images:
                # Read-only, because a transform that wrote into a cached image would change it in all later epochs.
                image.setflags(write=False)
            # A view keeps its whole base array alive.
            size = sum(getattr(image.base, "nbytes", image.nbytes) for image in images)
            # Without a lock, concurrent threads may exceed the limit by one example each.
            if size <= self._room:
                self._room -= size
                self._examples[index] = example
        return example


_newest: dict[str, KeptExamples] = {}
"""The last `KeptExamples` that this process was sent, by its identity."""


def _kept_here(source: ImageSource | PairSource, max_bytes: int, identity: str) -> KeptExamples:
    """The examples that were pickled in another process, with the cache that they have here."""
    if identity not in _newest:
        _newest.clear()
        _newest[identity] = KeptExamples(source, max_bytes, identity)
    return _newest[identity]


def view_dataset(
    source: ImageSource, geometry: Geometry, *, seed: int, kept_bytes: int = KEPT_BYTES
) -> grain.MapDataset:
    """Endless data set of two independent geometric views of each image, reshuffled every epoch."""
    examples = KeptExamples(source, kept_bytes)

    def make_views(index: int, rng: np.random.Generator) -> ViewBatch:
        image, label = examples[index]
        return ViewBatch(geometry(rng, image), geometry(rng, image), np.int32(label))

    return _endless(np.arange(len(source)), make_views, seed=seed)


def pair_dataset(
    pairs: PairSource | KeptExamples, indices: Sequence[int] | np.ndarray, geometry: Geometry, *, seed: int
) -> grain.MapDataset:
    """Endless data set of the pairs at `indices`, reshuffled every epoch, with sides swapped at random.

    Sides are swapped because look-alike pairs are unordered. Data sets of the same `KeptExamples` share its cache.
    """
    examples = pairs if isinstance(pairs, KeptExamples) else KeptExamples(pairs, KEPT_BYTES)

    def make_pair(index: int, rng: np.random.Generator) -> PairBatch:
        left, right, group = examples[index]
        if rng.random() < 0.5:
            left, right = right, left
        return PairBatch(geometry(rng, left), geometry(rng, right), np.int32(group))

    return _endless(np.asarray(indices), make_pair, seed=seed)


def _endless(indices: np.ndarray, make_example: Any, *, seed: int) -> grain.MapDataset:
    # grain's own source, shuffle and repeat take as much time per example as a small crop.
    def at(position: int, rng: np.random.Generator) -> Any:
        epoch, place = divmod(position, len(indices))
        return make_example(int(indices[_order(len(indices), seed, epoch)[place]]), rng)

    return grain.MapDataset.range(sys.maxsize).seed(seed).random_map(at)


@functools.lru_cache(maxsize=2)
def _order(length: int, seed: int, epoch: int) -> np.ndarray:
    """Permutation of an epoch's examples; two are cached because threads need both at the end of an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(length)


def training_batches(
    dataset: grain.MapDataset, *, batch_size: int, start_step: int, readers: Readers | None = None
) -> Iterator[Any]:
    """Stacked batches from step `start_step` on; the content of a batch depends on its step alone.

    The iterator's `close()` cancels its pending work. On several hosts, host p of n gets the rows from `p * batch_size
    / n` on, which are the same rows that a single host would make.

    Args:
      batch_size: number of rows over all hosts.
      readers: settings of batch production; by default threads.
    """
    hosts, host = jax.process_count(), jax.process_index()
    batches = dataset.batch(batch_size // hosts, drop_remainder=True)[start_step * hosts + host :: hosts]
    return (Readers() if readers is None else readers).read(batches, num_threads=TRAINING_THREADS)


def evaluation_batches(
    images: Sequence[Image],
    geometry: Geometry,
    *,
    batch_size: int,
    readers: Readers | None = None,
    share: tuple[int, int] = (1, 0),
    broken: dict[int, str] | None = None,
) -> Iterator[ImageBatch]:
    """Batches with every image exactly once, in order; the last one is padded with black rows, whose `mask` is False.

    By default there is one thread per available core, up to `MAX_THREADS`, to one per batch, and to as many as fit
    their batches into `KEPT_BYTES`. Threads, not workers, also read images that are in memory (a list or a tuple).

    Args:
      share: number of hosts and index of this one; `image` holds this host's rows, `index` and `mask` those of all
        hosts.
      broken: if given, unreadable images are black, and the reason is stored here under the image's index.
    """
    hosts, host = share
    first_row, num_rows = host * batch_size // hosts, batch_size // hosts
    kept_errors = (BrokenImage, OSError) if broken is not None else ()

    def make_batch(start: int) -> tuple[ImageBatch, dict[int, str]]:
        rng = np.random.default_rng(0)
        positions = np.arange(start, start + batch_size)
        mask = positions < len(images)
        rows = np.zeros((num_rows, geometry.size, geometry.size, 3), np.uint8)
        reasons = {}
        for row, position in enumerate(positions[first_row:][:num_rows].tolist()):
            if position < len(images):
                try:
                    image = images[position]
                except kept_errors as error:
                    reasons[position] = str(error)
                else:
                    rows[row] = geometry(rng, image)
        return ImageBatch(image=rows, index=np.where(mask, positions, -1).astype(np.int32), mask=mask), reasons

    readers = Readers() if readers is None else readers
    if isinstance(images, list | tuple):
        readers = Readers(num_threads=readers.num_threads)
    room = KEPT_BYTES // (BATCHES_AHEAD * num_rows * geometry.size**2 * 3)
    starts = grain.MapDataset.range(0, len(images), batch_size)
    num_threads = max(1, min(num_cores(), MAX_THREADS, room, len(starts)))
    for batch, reasons in readers.read(starts.map(make_batch), num_threads=num_threads):
        if broken is not None:
            broken.update(reasons)
        yield batch


def _read_ahead(batches: grain.MapDataset, num_threads: int) -> grain.IterDataset:
    ahead = BATCHES_AHEAD * num_threads
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=ahead))
