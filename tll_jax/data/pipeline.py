"""Sources to host batches with grain: shuffle and augmentation are functions of (seed, position), so batch k can be
made again at any time, with any number of threads."""

import functools
import sys
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
from tll_jax.devices import num_cores
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
"""How much of decoded images a data set keeps, in each process that makes batches. Decoding a small image costs more
than cropping it twice, and where a CPU trains it is taken from the step."""


MAX_THREADS = 16
"""More than one Python process can use at once."""
TRAINING_THREADS = 2
"""That read while a CPU trains, which needs its cores."""
WORKERS_PER_DEVICE = 16
"""Each decodes and crops twice about 900 pictures of 200 x 245 pixels a second, to 224 (benchmarks/README.md, a core of
2 there): so many read more than an accelerator trains on."""


def num_workers_for(platform: str, *, num_cores: int, num_devices: int) -> int:
    """How many worker processes read by default: none beside a CPU that trains; of an accelerator's host all cores but
    one, which the training loop needs, up to `WORKERS_PER_DEVICE` for each of its devices."""
    if platform == "cpu":
        return 0
    return min(max(1, num_cores - 1), WORKERS_PER_DEVICE * num_devices)


@dataclass(frozen=True, kw_only=True)
class Readers:
    """Who makes batches: the workers, or without any, threads of this process."""

    num_threads: int | None = None
    """None: `TRAINING_THREADS` beside a training, and one for each core for evaluation; 0: whoever asks for a batch."""
    workers: Workers | None = None

    def read(self, batches: grain.MapDataset, *, num_threads: int) -> Iterator[Any]:
        """Every batch in order, made ahead; by `num_threads` where neither workers nor threads are given."""
        if self.workers is not None:
            return self.workers.read(batches.__getitem__, range(len(batches)))
        return iter(_read_ahead(batches, num_threads if self.num_threads is None else self.num_threads))


@contextmanager
def open_readers(mesh: Mesh, *, num_threads: int | None = None, num_workers: int | None = None) -> Iterator[Readers]:
    """Readers for what runs on `mesh`; their processes start when they are first needed, and end with the block.

    `num_workers` is by default that of `num_workers_for`, but 0 where threads are asked for.
    """
    if num_workers is None:
        platform = mesh.devices.flat[0].platform
        devices = len(mesh.local_devices)
        chosen = num_workers_for(platform, num_cores=num_cores(), num_devices=devices)
        num_workers = chosen if num_threads is None else 0
    workers = Workers(num_workers) if num_workers else None
    try:
        yield Readers(num_threads=num_threads, workers=workers)
    finally:
        if workers is not None:
            workers.close()


class KeptExamples:
    """The examples of a source, decoded once as far as `max_bytes` of images go, and each time from there on."""

    def __init__(self, source: ImageSource | PairSource, max_bytes: int) -> None:
        self._source = source
        self._max_bytes = max_bytes
        self._examples: dict[int, Any] = {}
        self._room = max_bytes

    def __reduce__(self) -> Any:
        """Another process keeps its own."""
        return KeptExamples, (self._source, self._max_bytes)

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
    dataset: grain.MapDataset, *, batch_size: int, start_step: int, readers: Readers | None = None
) -> Iterator[Any]:
    """Stacked batches from step `start_step` on; what a batch holds depends on its step alone.

    The iterator's `close()` ends what is under way for it.

    Of a program that spans several hosts each gets its own rows, the same as if one host made the whole batch: host p
    of n those from `p * batch_size / n` on.

    Args:
      batch_size: rows over all hosts.
      readers: who makes them; by default threads.
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
    """Every image exactly once, in order; the last batch is filled up with black rows that `mask` marks False.

    Threads are by default one for each core that this process may use, up to `MAX_THREADS`, and only as many as have
    room for their batches in `KEPT_BYTES`. They also read what lies in memory, a list or a tuple, in place of workers.

    Where several hosts share the work, `share` is their number and which of them this one is; `image` then holds this
    host's rows, and `index` and `mask` those of all hosts.

    With `broken`, an image that cannot be read is black, and the reason is put there by the position of the image.
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
    num_threads = max(1, min(num_cores(), MAX_THREADS, room))
    starts = grain.MapDataset.range(0, len(images), batch_size)
    for batch, reasons in readers.read(starts.map(make_batch), num_threads=num_threads):
        if broken is not None:
            broken.update(reasons)
        yield batch


def _read_ahead(batches: grain.MapDataset, num_threads: int) -> grain.IterDataset:
    ahead = BATCHES_AHEAD * num_threads
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=ahead))
