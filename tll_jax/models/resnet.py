"""Residual networks of any width, for large and small images."""

from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tll_jax.errors import InvalidValue
from tll_jax.models.normalization import batch_norm
from tll_jax.models.ops.convolution import Convolution, max_pool
from tll_jax.models.stages import StagedModule
from tll_jax.typing import Activation

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Number of residual blocks in each of the four stages, by depth."""


@dataclass(kw_only=True)
class ResNet:
    """Settings of a residual network; `width` is the number of channels of the stem, 64 in He et al. 2016.

    `small_stem` replaces the 7x7 stride-2 convolution and the max pool by one 3x3 convolution of stride 1, which keeps
    the resolution of small images; the maps of the residual stages then have 16 times as many positions.

    `pooled_shortcuts` adds a 2x2 average pooling to the shortcuts that halve the resolution. Without it those drop
    three of four positions, and an untrained network, whose blocks are initialized to their shortcuts, depends on a
    sparse grid of its image only. The parameters are the same in both cases.

    The top-level names of the module's parameters are "stem" and "stage1" to "stage4"; `stage_of` gives their numbers.
    Source: He et al. 2016 (arXiv 1512.03385); at depth 50 the 3x3 convolution strides, as in torchvision.
    Pooled shortcuts: He et al. 2019 (arXiv 1812.01187), ResNet-D.
    """

    depth: int = 18
    width: int = 64
    small_stem: bool = False
    pooled_shortcuts: bool = False

    @property
    def num_stages(self) -> int:
        return 5

    def check(self) -> None:
        if self.depth not in BLOCKS:
            raise InvalidValue(f"depth is {self.depth}; it must be one of {', '.join(map(str, BLOCKS))}")
        if self.width < 1:
            raise InvalidValue(f"width is {self.width}; it must be at least 1")

    def build(self, *, dtype: Any, activation: Activation = nn.relu) -> nn.Module:
        return ResNetModule(
            blocks=BLOCKS[self.depth],
            bottleneck=self.depth >= 50,
            width=self.width,
            small_stem=self.small_stem,
            pooled_shortcuts=self.pooled_shortcuts,
            dtype=dtype,
            activation=activation,
        )

    def torch_name(self, path: tuple[str, ...]) -> str:
        """Name of the module at `path` in torchvision; with pooled shortcuts in timm, whose pool is "downsample.0"."""
        *place, module = path
        if place == ["stem"]:
            return {"convolution": "conv1", "norm": "bn1"}[module]
        stage, block = int(place[0].removeprefix("stage")), int(place[1].removeprefix("block"))
        if module.startswith("shortcut"):
            number = int(module == "shortcut_norm") + int(self.pooled_shortcuts)
            name = f"downsample.{number}"
        else:
            name = module.replace("convolution", "conv").replace("norm", "bn")
        return f"layer{stage}.{block - 1}.{name}"


class Stem(nn.Module):
    """Convolution and max pool on normalized images, or one 3x3 convolution if `small`."""

    width: int
    small: bool
    dtype: Any
    activation: Activation

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        size, strides = (3, 1) if self.small else (7, 2)
        x = Convolution(self.width, size, strides, dtype=self.dtype, name="convolution")(images)
        x = self.activation(batch_norm(train=train, dtype=self.dtype, name="norm")(x))
        return x if self.small else max_pool(x)


class Block(nn.Module):
    """Residual block: two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1 with 4 * `width` output channels.

    The scale of the last normalization is initialized to zero, so that the initial block equals its shortcut.
    """

    width: int
    strides: int
    bottleneck: bool
    pooled_shortcut: bool
    dtype: Any
    activation: Activation

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        if self.bottleneck:
            layers = [(self.width, 1, 1), (self.width, 3, self.strides), (4 * self.width, 1, 1)]
        else:
            layers = [(self.width, 3, self.strides), (self.width, 3, 1)]
        outputs = layers[-1][0]
        shortcut = x
        if self.strides > 1 or x.shape[-1] != outputs:
            strides = self.strides
            if self.pooled_shortcut and strides == 2:
                # At the edge of an odd map, the mean is over positions inside it.
                shortcut = nn.avg_pool(x, (2, 2), (2, 2), "SAME", count_include_pad=False)
                strides = 1
            shortcut = Convolution(outputs, 1, strides, dtype=self.dtype, name="shortcut")(shortcut)
            shortcut = batch_norm(train=train, dtype=self.dtype, name="shortcut_norm")(shortcut)
        for number, (width, size, strides) in enumerate(layers, start=1):
            is_last = number == len(layers)
            x = Convolution(width, size, strides, dtype=self.dtype, name=f"convolution{number}")(x)
            x = batch_norm(train=train, dtype=self.dtype, name=f"norm{number}", zero_scale=is_last)(x)
            x = x if is_last else self.activation(x)
        return self.activation(x + shortcut)


class Stage(nn.Module):
    """Blocks of equal width; the first may halve the resolution."""

    blocks: int
    width: int
    strides: int
    bottleneck: bool
    pooled_shortcuts: bool
    dtype: Any
    activation: Activation

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        for number in range(1, self.blocks + 1):
            strides = self.strides if number == 1 else 1
            block = Block(
                self.width,
                strides,
                self.bottleneck,
                self.pooled_shortcuts,
                self.dtype,
                self.activation,
                name=f"block{number}",
            )
            x = block(x, train=train)
        return x


class ResNetModule(StagedModule):
    """The Flax module of `ResNet`; the stem's map is that after its pool."""

    is_embedded_in_parts: ClassVar[bool] = False

    blocks: tuple[int, int, int, int]
    bottleneck: bool
    width: int
    small_stem: bool
    pooled_shortcuts: bool
    dtype: Any
    activation: Activation = nn.relu

    def parts(self, images: Float[Array, "batch height width 3"]) -> tuple[list[nn.Module], Array]:
        x = (images - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)
        stages: list[nn.Module] = [Stem(self.width, self.small_stem, self.dtype, self.activation, name="stem")]
        for number, blocks in enumerate(self.blocks, start=1):
            width, strides = self.width * 2 ** (number - 1), 1 if number == 1 else 2
            stages.append(
                Stage(
                    blocks,
                    width,
                    strides,
                    self.bottleneck,
                    self.pooled_shortcuts,
                    self.dtype,
                    self.activation,
                    name=f"stage{number}",
                )
            )
        return stages, x
