"""Networks of inverted residual blocks, the common part of EfficientNet-Lite and MobileNetV2."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tll_jax.models.normalization import batch_norm
from tll_jax.models.ops.convolution import Convolution, DepthwiseConvolution, convolve_pixels
from tll_jax.models.stages import StagedModule
from tll_jax.typing import Activation

STEM_CHANNELS, LAST_CHANNELS = 32, 1280


class StageSettings(NamedTuple):
    """Settings of a stage: number of blocks with equal `channels`, of which only the first has `strides`."""

    blocks: int
    kernel_size: int
    strides: int
    expansion: int
    channels: int


class Design(NamedTuple):
    """Settings of a whole network: stages, input normalization and padding of strided convolutions."""

    stages: tuple[StageSettings, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    symmetric: bool
    """Equal padding on all sides, as in PyTorch models; if False, TensorFlow's SAME padding."""
    epsilon: float
    """Epsilon of batch normalization."""

    @property
    def num_stages(self) -> int:
        """Number of stages, with the stem and the last 1x1 convolution to the pooled channels."""
        return len(self.stages) + 2

    def block_number(self, path: tuple[str, ...]) -> int:
        """Number of blocks before the one at ("stage3", "block2", ...)."""
        stage, block = int(path[0].removeprefix("stage")), int(path[1].removeprefix("block"))
        return sum(settings.blocks for settings in self.stages[: stage - 1]) + block - 1


def capped(activation: Activation, x: Array) -> Array:
    """ReLU6, from a ReLU."""
    return jnp.minimum(activation(x), 6)


class Stem(nn.Module):
    """3x3 convolution to 32 channels with stride 2, on normalized images."""

    design: Design
    dtype: Any
    activation: Activation

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        padding = 1 if self.design.symmetric else "SAME"
        x = nn.Conv(
            STEM_CHANNELS,
            (3, 3),
            2,
            padding=padding,
            use_bias=False,
            dtype=self.dtype,
            conv_general_dilated=convolve_pixels,
            name="convolution",
        )(images)
        x = batch_norm(train=train, dtype=self.dtype, name="norm", epsilon=self.design.epsilon)(x)
        return capped(self.activation, x)


class Block(nn.Module):
    """Inverted residual block: 1x1 expansion, depthwise convolution, 1x1 projection, shortcut if shapes are equal."""

    settings: StageSettings
    strides: int
    design: Design
    dtype: Any
    activation: Activation

    @nn.compact
    def __call__(self, inputs: Array, *, train: bool) -> Array:
        def norm(name: str) -> nn.BatchNorm:
            return batch_norm(train=train, dtype=self.dtype, name=f"{name}_norm", epsilon=self.design.epsilon)

        _, kernel_size, _, expansion, channels = self.settings
        x = inputs
        if expansion > 1:
            x = Convolution(expansion * inputs.shape[-1], 1, dtype=self.dtype, name="expand")(x)
            x = capped(self.activation, norm("expand")(x))
        depthwise = DepthwiseConvolution(
            kernel_size, self.strides, symmetric=self.design.symmetric, dtype=self.dtype, name="depthwise"
        )
        x = capped(self.activation, norm("depthwise")(depthwise(x)))
        x = norm("project")(Convolution(channels, 1, dtype=self.dtype, name="project")(x))
        return x + inputs if x.shape == inputs.shape else x


class Stage(nn.Module):
    """Blocks of equal channels; the first may halve the resolution."""

    settings: StageSettings
    design: Design
    dtype: Any
    activation: Activation

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        for number in range(1, self.settings.blocks + 1):
            strides = self.settings.strides if number == 1 else 1
            block = Block(self.settings, strides, self.design, self.dtype, self.activation, name=f"block{number}")
            x = block(x, train=train)
        return x


class Last(nn.Module):
    """1x1 convolution to the channels that are pooled."""

    design: Design
    dtype: Any
    activation: Activation

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        x = Convolution(LAST_CHANNELS, 1, dtype=self.dtype, name="convolution")(x)
        x = batch_norm(train=train, dtype=self.dtype, name="norm", epsilon=self.design.epsilon)(x)
        return capped(self.activation, x)


class InvertedResidualNetwork(StagedModule):
    """The Flax module of a `Design`."""

    design: Design
    dtype: Any
    activation: Activation = nn.relu

    def parts(self, images: Float[Array, "batch height width 3"]) -> tuple[list[nn.Module], Array]:
        x = (images - jnp.array(self.design.mean)) / jnp.array(self.design.std)
        stages: list[nn.Module] = [Stem(self.design, self.dtype, self.activation, name="stem")]
        for number, settings in enumerate(self.design.stages, start=1):
            stages.append(Stage(settings, self.design, self.dtype, self.activation, name=f"stage{number}"))
        stages.append(Last(self.design, self.dtype, self.activation, name=f"stage{len(self.design.stages) + 1}"))
        return stages, x
