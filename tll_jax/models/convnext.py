"""ConvNeXt, with ImageNet or DINOv3 weights."""

from dataclasses import dataclass, field
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tll_jax.errors import InvalidValue
from tll_jax.models.described import DescribedByFile
from tll_jax.models.ops.convolution import DepthwiseConvolution
from tll_jax.models.stages import StagedModule, mean_over_positions
from tll_jax.serialize import NO_IDENTITY
from tll_jax.typing import Activation

INITIAL = nn.initializers.truncated_normal(0.02)
REDUCTION = 32
"""Ratio of the resolutions of the image and the last stage's map."""


@dataclass(kw_only=True, unsafe_hash=True)
class ConvNeXt(DescribedByFile):
    """Settings of ConvNeXt; the defaults are ConvNeXt-T. `weight_files.from_weights` derives them from a file.

    There are five stages, of which the 4x4 stem is the first. Images have at least 32 pixels a side; rows and columns
    beyond a multiple of 4, and of maps beyond a multiple of 2, are cropped, as in PyTorch. There is no stochastic
    depth.

    Source: Liu et al. 2022 (arXiv 2201.03545); weights also by Simeoni et al. 2025 (2508.10104).
    """

    widths: tuple[int, int, int, int] = (96, 192, 384, 768)
    depths: tuple[int, int, int, int] = (3, 3, 9, 3)
    """Number of blocks in each of the four stages."""
    pooling: Literal["norm", "mean"] = "norm"
    """Pooled feature: the mean of the last map with learned normalization, or the mean only, for which spatial
    decomposition is exact."""
    pooling_epsilon: float = 1e-6
    """Epsilon of the normalization after pooling."""
    names: str = field(default="timm-convnext", metadata=NO_IDENTITY)

    @property
    def num_stages(self) -> int:
        return 5

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the pretraining images."""
        return 224

    @property
    def pools_by_mean(self) -> bool:
        """Whether the pooled feature is the mean of the last stage's map."""
        return self.pooling == "mean"

    def check(self) -> None:
        for name in ("widths", "depths"):
            values = tuple(getattr(self, name))
            if len(values) != 4 or min(values) < 1:
                raise InvalidValue(f"{name} is {values}; it must be four numbers, each at least 1")

    def check_size(self, size: int) -> None:
        """Raise InvalidValue unless square images of `size` pixels a side can be embedded."""
        require_large((size, size))

    def build(self, *, dtype: Any, activation: Activation = nn.relu) -> nn.Module:
        """Build the module; `activation` is ignored, because there is no ReLU."""
        del activation
        return ConvNeXtModule(settings=self.without_file(), dtype=dtype)

    def torch_name(self, path: tuple[str, ...]) -> str:
        """Canonical name of a tensor's module, to which all layouts are mapped, such as "stages.0.blocks.0.expand"."""
        place, *modules = path
        if place == "stem" or modules[0] == "norm":
            return ".".join(["stem" if place == "stem" else "last", *modules])
        stage = int(place.removeprefix("stage")) - 1
        if modules[0].startswith("block"):
            modules[:1] = ["blocks", modules[0].removeprefix("block_")]
        return ".".join(["stages", str(stage), *modules])


class ConvNeXtModule(StagedModule):
    """The Flax module of `ConvNeXt`."""

    settings: ConvNeXt
    dtype: Any

    def parts(self, images: Float[Array, "batch height width 3"]) -> tuple[list[nn.Module], Array]:
        """The stages and the normalized images.

        Raises:
          InvalidValue: the images have fewer than 32 pixels a side.
        """
        settings, dtype = self.settings, self.dtype
        require_large(images.shape[1:3])
        stages = [Stage(settings, number, dtype, name=f"stage{number}") for number in range(1, 5)]
        maps = (images - jnp.array(settings.mean)) / jnp.array(settings.std)
        return [Stem(settings, dtype, name="stem"), *stages], maps

    def pool(self, last: Any, state: Array) -> Float[Array, "batch channels"]:
        pooled = mean_over_positions(state)
        return last.normalize(pooled) if self.settings.pooling == "norm" else pooled


def require_large(shape: tuple[int, ...]) -> None:
    """Raise InvalidValue unless height and width are at least `REDUCTION`."""
    if min(shape) < REDUCTION:
        raise InvalidValue(f"images are {shape[0]} x {shape[1]}; sides must be at least {REDUCTION}")


def layer_norm(epsilon: float, dtype: Any, name: str | None = None) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)


class Stem(nn.Module):
    """4x4 convolution with stride 4 on normalized images."""

    settings: ConvNeXt
    dtype: Any

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        width = self.settings.widths[0]
        maps = nn.Conv(width, (4, 4), 4, padding="VALID", dtype=self.dtype, kernel_init=INITIAL, name="convolution")(
            images
        )
        return layer_norm(self.settings.epsilon, self.dtype, "norm")(maps)


class Stage(nn.Module):
    """Blocks of equal width, after a 2x2 convolution with stride 2 in all stages but the first."""

    settings: ConvNeXt
    number: int
    dtype: Any

    def setup(self) -> None:
        settings, width = self.settings, self.settings.widths[self.number - 1]
        if self.number > 1:
            self.reduce_norm = layer_norm(settings.epsilon, self.dtype)
            self.reduce = nn.Conv(width, (2, 2), 2, padding="VALID", dtype=self.dtype, kernel_init=INITIAL)
        self.block = [Block(width, settings.epsilon, self.dtype) for _ in range(settings.depths[self.number - 1])]
        if self.number == 4 and settings.pooling == "norm":
            self.norm = layer_norm(settings.pooling_epsilon, self.dtype)

    def __call__(self, maps: Array, *, train: bool) -> Array:
        if self.number > 1:
            maps = self.reduce(self.reduce_norm(maps))
        for block in self.block:
            maps = block(maps)
        return maps

    def normalize(self, pooled: Float[Array, "batch channels"]) -> Float[Array, "batch channels"]:
        return self.norm(pooled)


class Block(nn.Module):
    """Residual block: 7x7 depthwise convolution and pointwise MLP, with layer scale."""

    width: int
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        maps = DepthwiseConvolution(7, symmetric=True, use_bias=True, dtype=self.dtype, name="depthwise")(inputs)
        maps = layer_norm(self.epsilon, self.dtype, "norm")(maps)
        maps = nn.Dense(4 * self.width, dtype=self.dtype, kernel_init=INITIAL, name="expand")(maps)
        maps = nn.Dense(self.width, dtype=self.dtype, kernel_init=INITIAL, name="project")(
            nn.gelu(maps, approximate=False)
        )
        scale = self.param("gamma", nn.initializers.constant(1e-6), (self.width,))
        return inputs + maps * scale.astype(self.dtype)
