"""Sources to host batches with grain: shuffle and augmentation are functions of (seed, position), so batch k can be
made again at any time, with any number of threads."""

from collections.abc import Iterator, Sequence
from typing import Any

import grain
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


def view_dataset(source: ImageSource, geometry: Geometry, *, seed: int) -> grain.MapDataset:
    """Two independent geometric views of every image, endlessly; each epoch in a new order."""

    def make_views(index: int, rng: np.random.Generator) -> ViewBatch:
        image, label = source[index]
        return ViewBatch(geometry(rng, image), geometry(rng, image), np.int32(label))

    return _endless(np.arange(len(source)), make_views, seed=seed)


def pair_dataset(
    pairs: PairSource, indices: Sequence[int] | np.ndarray, geometry: Geometry, *, seed: int
) -> grain.MapDataset:
    """The pairs at `indices`, endlessly; sides are swapped at random, for a look-alike pair has no direction."""

    def make_pair(index: int, rng: np.random.Generator) -> PairBatch:
        left, right, group = pairs[index]
        if rng.random() < 0.5:
            left, right = right, left
        return PairBatch(geometry(rng, left), geometry(rng, right), np.int32(group))

    return _endless(np.asarray(indices), make_pair, seed=seed)


def _endless(indices: np.ndarray, make_example: Any, *, seed: int) -> grain.MapDataset:
    def at(index: Any, rng: np.random.Generator) -> Any:
        return make_example(int(index), rng)

    return grain.MapDataset.source(indices).seed(seed).shuffle().repeat().random_map(at)


def training_batches(dataset: grain.MapDataset, *, batch_size: int, start_step: int, num_threads: int) -> Iterator[Any]:
    """Stacked batches from step `start_step` on; what a batch holds depends on its step alone.

    `num_threads` is 0 to read in the caller's own thread, when a batch is asked for.
    """
    buffer_size = max(2 * batch_size, num_threads) if num_threads else 0
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=buffer_size)
    examples = dataset[start_step * batch_size :].to_iter_dataset(options)
    return iter(examples.batch(batch_size, drop_remainder=True))


def evaluation_batches(images: Sequence[Image], geometry: Geometry, *, batch_size: int) -> Iterator[ImageBatch]:
    """Every image exactly once, in order; the last batch is filled up with copies that `mask` marks False."""
    rng = np.random.default_rng(0)
    for start in range(0, len(images), batch_size):
        positions = range(start, min(start + batch_size, len(images)))
        rows = [geometry(rng, images[position]) for position in positions]
        padding = batch_size - len(rows)
        yield ImageBatch(
            image=np.stack(rows + [rows[0]] * padding),
            index=np.array([*positions, *[-1] * padding], np.int32),
            mask=np.arange(batch_size) < len(rows),
        )
