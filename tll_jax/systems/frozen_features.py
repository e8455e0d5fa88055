"""Cached features of a frozen network."""

import io
import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Array, Float, Float32

from tll_jax.cache import cache_folder, ignoring_cache_errors
from tll_jax.data.geometry import Resize
from tll_jax.data.imaging import content_hash
from tll_jax.data.pairs import ImageSequence
from tll_jax.devices import local_mesh, replicated
from tll_jax.errors import InvalidValue
from tll_jax.evaluation.embed import Embedder, in_parts, unit_rows
from tll_jax.files import write_whole
from tll_jax.models.pooling import adaptive_avg_pool
from tll_jax.models.stages import check_image_size
from tll_jax.models.weights import content_of, load_backbone, moved_weights
from tll_jax.serialize import fingerprint
from tll_jax.systems.baselines import BLOCK, CosineDescriptor, in_blocks, require_pairs
from tll_jax.typing import Backbone, Geometry, Image, PairImages, Weights

logger = logging.getLogger(__name__)

FORMAT = 2
"""Version of the cache, raised when the same settings produce other features."""


@dataclass(kw_only=True)
class FrozenFeatures(CosineDescriptor):
    """Feature maps of some `stages` of a pretrained backbone, average-pooled to `grid` x `grid`.

    The features of each stage are normalized to unit length and concatenated, so that all stages have equal weight.
    With `standardize`, every channel is first standardized over all grid positions of the training images, and every
    position normalized to unit length, so that no channel and no position dominates.

    Pooled features are cached by image content, settings and the content of the weight file, so that each image passes
    through the network once per machine.

    Source: Risser-Maroix et al. 2022 (arXiv 2206.01417), with a grid of 1.
    """

    backbone: Backbone
    weights: Weights = None  # type: ignore[assignment]
    """Pretrained weights; by default those of the backbone's settings (see `from_weights`)."""
    stages: tuple[int, ...]
    """Indices of the stages, from 0 (the stem)."""
    grid: int = 1
    standardize: bool = False
    geometry: Geometry = field(default_factory=lambda: Resize(size=224))
    batch_size: int = 32
    channels: tuple[np.ndarray, np.ndarray] | None = field(default=None, init=False, repr=False, compare=False)
    """Mean and standard deviation of every channel of all stages; set by `fit` with `standardize`."""

    def __post_init__(self) -> None:
        self.backbone, weights = moved_weights(self.backbone, self.weights)
        if weights is None:
            raise InvalidValue("FrozenFeatures.weights is None; give weights, or a backbone that holds some")
        self.weights = weights

    def check(self) -> None:
        last = self.backbone.num_stages - 1
        if not self.stages or not 0 <= min(self.stages) <= max(self.stages) <= last:
            raise InvalidValue(f"FrozenFeatures.stages is {self.stages}; it must name stages from 0 to {last}")
        for name in ("grid", "batch_size"):
            if getattr(self, name) < 1:
                raise InvalidValue(f"FrozenFeatures.{name} is {getattr(self, name)}; it must be at least 1")
        check_image_size(self.backbone, self.geometry.size)

    def fit(self, train: PairImages, validation: PairImages) -> None:
        """Estimates the channel statistics with `standardize`, then centering as for every `CosineDescriptor`."""
        require_pairs(self, training=train, validation=validation)
        if self.standardize:
            self.channels = channel_statistics(self._pooled(block) for block in in_blocks(train.left, train.right))
        super().fit(train, validation)

    def describe_all(self, images: Sequence[Image]) -> Float32[np.ndarray, "images dim"]:
        """Features of all images: `grid * grid * channels` values per stage, of unit length for each stage.

        Raises:
            ValueError: `fit` has not been called, with `standardize`.
        """
        pooled = self._pooled(images)
        if self.standardize:
            if self.channels is None:
                raise InvalidValue("FrozenFeatures has not measured its channels yet: call fit first")
            mean, deviation = self.channels
            pooled = (pooled - mean) / deviation
        ends = np.cumsum(self.stage_widths)
        stages = []
        for end, width in zip(ends, self.stage_widths, strict=True):
            stage = pooled[:, :, end - width : end]
            if self.standardize:
                stage = unit_rows(stage.reshape(-1, width))
            stages.append(unit_rows(stage.reshape(len(pooled), -1)))
        return np.concatenate(stages, axis=1)

    def _pooled(self, images: Sequence[Image]) -> Float32[np.ndarray, "images positions channels"]:
        """Pooled features of all stages, concatenated along the channels; cached."""
        if isinstance(images, ImageSequence):
            hashes = images.content_hashes()
        else:
            hashes = [content_hash(image) for image in images]
        found: dict[str, Any] = {content: self._kept(content) for content in hashes}
        missing = list({content: at for at, content in enumerate(hashes) if found[content] is None}.items())
        # In blocks, so that an interruption loses little.
        starts = range(0, len(missing), BLOCK)
        for start in tqdm.tqdm(starts, f"features of {len(missing):,} images", disable=not sys.stderr.isatty()):
            block = missing[start : start + BLOCK]
            features = self._embedder(self._variables, Chosen(images, [position for _, position in block]))
            for (content, _), one in zip(block, features, strict=True):
                found[content] = one.reshape(self.grid**2, -1)
                with ignoring_cache_errors():
                    write_whole(self._path(content), found[content])
        return np.stack([found[content] for content in hashes])

    def _path(self, content: str) -> Path:
        return self._folder / f"{content}.npy"

    def _kept(self, content: str) -> Float32[np.ndarray, "positions channels"] | None:
        """Cached features of an image, or None if they are missing or damaged."""
        path = self._path(content)
        with ignoring_cache_errors():
            try:
                data = path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
            kept = _array_of(data)
            if kept is not None and kept.dtype == np.float32 and kept.shape == (self.grid**2, sum(self.stage_widths)):
                return kept
            logger.warning("the kept features in %s are damaged: they are computed again", path)
        return None

    @cached_property
    def _folder(self) -> Path:
        weights = content_of(self.weights)
        settings = {name: getattr(self, name) for name in ("backbone", "stages", "grid", "geometry")}
        return cache_folder() / "features" / fingerprint({"format": FORMAT, "weights": weights, **settings})

    @cached_property
    def _variables(self) -> Any:
        return jax.device_put(load_backbone(self.backbone, self.weights), replicated(local_mesh()))

    @cached_property
    def stage_widths(self) -> list[int]:
        """Number of channels of each stage in use."""
        module = self.backbone.build(dtype=jnp.float32)
        images = jax.ShapeDtypeStruct((1, self.geometry.size, self.geometry.size, 3), jnp.float32)
        features: Any = jax.eval_shape(lambda *inputs: module.apply(*inputs, train=False), self._variables, images)
        return [features.stages[stage].shape[-1] for stage in self.stages]

    @cached_property
    def _embedder(self) -> Embedder:
        module = self.backbone.build(dtype=jnp.float32)

        def embed(variables: Any, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch dim"]:
            features: Any = module.apply(variables, images, train=False)
            pooled = [adaptive_avg_pool(features.stages[stage], self.grid) for stage in self.stages]
            return jnp.concatenate(pooled, axis=-1).reshape(len(images), -1)

        return Embedder(
            embed=in_parts(module, embed), geometry=self.geometry, batch_size=self.batch_size, mesh=local_mesh()
        )


def _array_of(data: bytes) -> np.ndarray | None:
    """Array in the bytes of a .npy file, or None if they are damaged."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception:
        # The header is parsed as Python, which raises many kinds of errors; the disk has been read already.
        return None
    return array if isinstance(array, np.ndarray) else None


@dataclass(frozen=True)
class Chosen(Sequence[Image]):
    """Lazy subset of images by position."""

    images: Sequence[Image]
    positions: list[int]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: Any) -> Any:
        return self.images[self.positions[index]]


def channel_statistics(
    blocks: Iterable[Float32[np.ndarray, "images positions channels"]],
) -> tuple[Float32[np.ndarray, " channels"], Float32[np.ndarray, " channels"]]:
    """Mean and standard deviation of every channel over all images and positions; 1 for constant channels."""
    count, total, squares = 0, np.zeros(()), np.zeros(())
    for block in blocks:
        rows = block.reshape(-1, block.shape[-1]).astype(np.float64)
        count, total, squares = count + len(rows), total + rows.sum(axis=0), squares + (rows**2).sum(axis=0)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    # Rounding errors of constant channels must not be scaled up.
    varies = deviation > 1e-6 * np.sqrt(squares / count)
    return mean.astype(np.float32), np.where(varies, deviation, 1).astype(np.float32)
