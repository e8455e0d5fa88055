"""Heads on a backbone's features: projections, a projector, a classifier, or the features themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tll_jax.errors import InvalidValue
from tll_jax.models.normalization import batch_norm, unit_length
from tll_jax.models.pooling import adaptive_avg_pool
from tll_jax.typing import Features, Head


def _check_widths(widths: Sequence[int]) -> None:
    if not widths or min(widths) < 1:
        raise InvalidValue(f"widths is {tuple(widths)}; it must hold at least one width, each at least 1")


@dataclass(kw_only=True)
class Projector:
    """Projector of self-supervised learning: linear layers without bias, batch normalization and ReLU between them.

    Source: Zbontar et al. 2021 (arXiv 2103.03230), section 2.2.
    """

    widths: tuple[int, ...] = (8192, 8192, 8192)

    def check(self) -> None:
        _check_widths(self.widths)

    def build(self, *, dtype: Any) -> nn.Module:
        return MLP(tuple(self.widths), batch_norm=True, last_bias=False, normalize=False, dtype=dtype)


@dataclass(kw_only=True)
class Classifier:
    """Linear classifier, with one logit for each of `num_classes` classes."""

    num_classes: int

    def check(self) -> None:
        if self.num_classes < 2:
            raise InvalidValue(f"num_classes is {self.num_classes}; it must be at least 2")

    def build(self, *, dtype: Any) -> nn.Module:
        return MLP((self.num_classes,), batch_norm=False, last_bias=True, normalize=False, dtype=dtype)


@dataclass(kw_only=True)
class Projection:
    """Unit-length embedding by one linear layer, or several with ReLU (and optional batch normalization) between."""

    widths: tuple[int, ...] = (128,)
    batch_norm: bool = False
    normalize: bool = True

    def check(self) -> None:
        _check_widths(self.widths)

    def build(self, *, dtype: Any) -> nn.Module:
        return MLP(
            tuple(self.widths),
            batch_norm=self.batch_norm,
            last_bias=True,
            normalize=self.normalize,
            dtype=dtype,
        )


@dataclass(kw_only=True)
class SpatialProjection:
    """Unit-length embedding by a linear layer on flattened feature maps, which preserves the layout of the image.

    Pooling discards the layout, although look-alikes often have the same objects in the same positions. The maps of
    `stages` (residual stages, numbered from 1) are flattened and concatenated; all images must have the same size.
    """

    stages: tuple[int, ...] = (3,)
    width: int = 128

    def check(self) -> None:
        if not self.stages or min(self.stages) < 1:
            raise InvalidValue(f"stages is {tuple(self.stages)}; it must name at least one residual stage, from 1 on")
        _check_widths((self.width,))

    def build(self, *, dtype: Any) -> nn.Module:
        return MLP(
            (self.width,), batch_norm=False, last_bias=True, normalize=True, dtype=dtype, stages=tuple(self.stages)
        )


@dataclass(kw_only=True)
class Identity:
    """The pooled features themselves, normalized to unit length by default."""

    normalize: bool = True

    def build(self, *, dtype: Any) -> nn.Module:
        return MLP((), batch_norm=False, last_bias=False, normalize=self.normalize, dtype=dtype)


@dataclass(kw_only=True)
class Diagonal:
    """Pooled features times learned non-negative weights, normalized to unit length; weights are initialized to 1.

    Source: Peterson et al. 2018, who fit such weights to human judgments of similarity; for the adaptation of frozen
    features, Risser-Maroix et al. 2022 (arXiv 2206.01417).
    """

    def build(self, *, dtype: Any) -> nn.Module:
        return Weighting(dtype=dtype)


@dataclass(kw_only=True)
class RectifiedProjection:
    """Linear layer without bias and ReLU, normalized to unit length.

    Source: Risser-Maroix et al. 2022 (arXiv 2206.01417).
    """

    width: int = 1024

    def check(self) -> None:
        _check_widths((self.width,))

    def build(self, *, dtype: Any) -> nn.Module:
        return Rectified(width=self.width, dtype=dtype)


@dataclass(kw_only=True)
class GridProjection:
    """Affine map of grid-pooled features of several stages, such as a whitening fitted to frozen features.

    The maps of `stages` are average-pooled to `grid` x `grid` bins. With `standardize`, each channel is standardized by
    the parameters `mean` and `deviation`, and each bin of a stage is normalized to unit length. Then each stage is
    normalized to unit length, `center` `[bins, channels]` is subtracted, and, unless `width` is None, the result is
    mapped to `width` dimensions by `kernel` `[bins, channels, width]` and `bias` `[width]`. The parameters are fitted
    (`systems/linear.py`), not trained.
    """

    stages: tuple[int, ...]
    grid: int = 4
    width: int | None = 256
    standardize: bool = True
    normalize: bool = True

    def check(self) -> None:
        if not self.stages or min(self.stages) < 0:
            raise InvalidValue(f"stages is {tuple(self.stages)}; it must name at least one stage, the stem is 0")
        if self.grid < 1:
            raise InvalidValue(f"grid is {self.grid}; it must be at least 1")
        _check_widths((1 if self.width is None else self.width,))

    def build(self, *, dtype: Any) -> nn.Module:
        return GridLinear(
            stages=tuple(self.stages),
            grid=self.grid,
            width=self.width,
            standardize=self.standardize,
            normalize=self.normalize,
        )


@dataclass(kw_only=True)
class ChainedHeads:
    """Composition of two heads: the output of `first` is the pooled feature of `last`."""

    first: GridProjection
    last: Head

    @property
    def stages(self) -> tuple[int, ...]:
        return self.first.stages

    def build(self, *, dtype: Any) -> nn.Module:
        return Chained(first=self.first.build(dtype=dtype), last=self.last.build(dtype=dtype))


class Chained(nn.Module):
    """Composition of two heads."""

    first: nn.Module
    last: nn.Module

    def __call__(self, features: Features, *, train: bool) -> Float[Array, "batch out"]:
        pooled = self.first(features, train=train)
        return self.last(Features(stages=(), pooled=pooled), train=train)


@dataclass(kw_only=True)
class LpipsVectors:
    """Vectors whose squared Euclidean distance is LPIPS.

    The parameters `weights0`, `weights1`, ... are the published channel weights of each stage.
    Source: Zhang et al. 2018 (arXiv 1801.03924), equation 1.
    """

    def build(self, *, dtype: Any) -> nn.Module:
        return LpipsVectorsOfStages()


class LpipsVectorsOfStages(nn.Module):
    """Vectors whose squared Euclidean distance is LPIPS."""

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> Float[Array, "batch dim"]:
        weights = [
            self.param(f"weights{number}", nn.initializers.ones_init(), (maps.shape[-1],))
            for number, maps in enumerate(features.stages)
        ]
        return lpips_vectors(features.stages, weights)


def lpips_vectors(
    stages: Sequence[Float[Array, "batch _ _ _"]], channel_weights: Sequence[Float[Array, " _"]]
) -> Float[Array, "batch dim"]:
    """Vectors whose squared Euclidean distance is LPIPS.

    Feature maps are normalized to unit length over channels, multiplied by sqrt(weights / number of positions), and
    flattened and concatenated over stages. The channel weights are at least 0.
    Source: Zhang et al. 2018 (arXiv 1801.03924), equation 1.
    """
    parts = []
    for maps, weights in zip(stages, channel_weights, strict=True):
        batch, height, width, _ = maps.shape
        squares = jnp.sum(maps**2, axis=-1, keepdims=True)
        # The gradient of the root is infinite where all channels are 0, which is common after ReLUs.
        norms = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0) + 1e-10
        parts.append((maps / norms * jnp.sqrt(weights / (height * width))).reshape(batch, -1))
    return jnp.concatenate(parts, axis=1)


class Weighting(nn.Module):
    """Non-negative weighting of the pooled features."""

    dtype: Any

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> Float[Array, "batch dim"]:
        weights = self.param("weights", nn.initializers.ones_init(), (features.pooled.shape[-1],))
        return unit_length((features.pooled.astype(self.dtype) * nn.relu(weights)).astype(jnp.float32))


class Rectified(nn.Module):
    """Linear layer and ReLU."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> Float[Array, "batch width"]:
        outputs = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name="linear1")(features.pooled)
        return unit_length(nn.relu(outputs).astype(jnp.float32))


class GridLinear(nn.Module):
    """Affine map of grid-pooled features, in fp32."""

    stages: tuple[int, ...]
    grid: int
    width: int | None
    standardize: bool
    normalize: bool

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> Float[Array, "batch out"]:
        pooled = grid_pooled(features, self.stages, self.grid)
        num_cells, num_channels = self.grid**2, sum(one.shape[-1] for one in pooled)
        params: dict[str, Array] = {}
        if self.standardize:
            params["mean"] = self.param("mean", nn.initializers.zeros_init(), (num_channels,))
            params["deviation"] = self.param("deviation", nn.initializers.ones_init(), (num_channels,))
        center = self.param("center", nn.initializers.zeros_init(), (num_cells, num_channels))
        cells = jnp.concatenate(normalized_cells(pooled, params), axis=-1) - center
        if self.width is None:
            outputs = cells.reshape(len(cells), -1)
        else:
            initial = nn.initializers.lecun_normal(in_axis=(0, 1))
            kernel = self.param("kernel", initial, (num_cells, num_channels, self.width))
            bias = self.param("bias", nn.initializers.zeros_init(), (self.width,))
            outputs = jnp.einsum("bgc,gcd->bd", cells, kernel, precision="highest") + bias
        return unit_length(outputs) if self.normalize else outputs


def grid_pooled(features: Features, stages: Sequence[int], grid: int) -> list[Float[Array, "batch cells _"]]:
    """Average pooling of each stage's map to `grid` x `grid` bins, in row-major order and fp32."""
    maps = (jnp.asarray(features.stages[stage], jnp.float32) for stage in stages)
    return [adaptive_avg_pool(one, grid).reshape(one.shape[0], grid**2, -1) for one in maps]


def normalized_cells(
    pooled: Sequence[Float[Array, "batch cells _"]], params: Mapping[str, Array]
) -> list[Float[Array, "batch cells _"]]:
    """Bins of each stage, normalized to unit length over the stage; standardized first if `params` have a `mean`."""
    ends = np.cumsum([one.shape[-1] for one in pooled])
    normalized = []
    for cells, end in zip(pooled, ends, strict=True):
        if "mean" in params:
            channels = slice(end - cells.shape[-1], end)
            cells = unit_length((cells - params["mean"][channels]) / params["deviation"][channels])
        normalized.append(unit_length(cells.reshape(len(cells), -1)).reshape(cells.shape))
    return normalized


class MLP(nn.Module):
    """Linear layers with ReLU between them, on the pooled features or on the flattened maps of `stages`.

    It computes in `dtype`; the output is fp32. Layers before a batch normalization have no bias.
    """

    widths: tuple[int, ...]
    batch_norm: bool
    last_bias: bool
    normalize: bool
    dtype: Any
    stages: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> Float[Array, "batch out"]:
        outputs = features.pooled
        if self.stages:
            maps = [features.stages[stage] for stage in self.stages]
            outputs = jnp.concatenate([one.reshape(one.shape[0], -1) for one in maps], axis=1)
        for number, width in enumerate(self.widths, start=1):
            is_last = number == len(self.widths)
            use_bias = self.last_bias if is_last else not self.batch_norm
            outputs = nn.Dense(width, use_bias=use_bias, dtype=self.dtype, name=f"linear{number}")(outputs)
            if is_last:
                break
            if self.batch_norm:
                outputs = batch_norm(train=train, dtype=self.dtype, name=f"norm{number}")(outputs)
            outputs = nn.relu(outputs)
        outputs = outputs.astype(jnp.float32)
        return unit_length(outputs) if self.normalize else outputs
