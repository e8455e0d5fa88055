"""Networks of inverted residual blocks: what EfficientNet-Lite0 and MobileNetV2 share."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tll_jax.models.normalization import batch_norm
from tll_jax.models.ops.convolution import Convolution, DepthwiseConvolution
from tll_jax.models.stages import run_stages
from tll_jax.typing import Activation, Features

STEM_CHANNELS, LAST_CHANNELS = 32, 1280


class StageSettings(NamedTuple):
    """A stage: so many blocks of equal `channels`, of which the first has `strides`."""

    blocks: int
    kernel_size: int
    strides: int
    expansion: int
    channels: int


class Design(NamedTuple):
    """A whole network: its stages, how images in [0, 1] are normalized, how strided convolutions pad."""

    stages: tuple[StageSettings, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    symmetric: bool
    """Equal zeros on all sides, as PyTorch models pad; else as TensorFlow's SAME."""
    epsilon: float
    """Of batch normalization."""

    @property
    def num_stages(self) -> int:
        """With the stem and, as the last, the 1x1 convolution to the channels that are pooled."""
        return len(self.stages) + 2

    def block_number(self, path: tuple[str, ...]) -> int:
        """How many blocks come before the one at ("stage3", "block2", ...)."""
        stage, block = int(path[0].removeprefix("stage")), int(path[1].removeprefix("block"))
        return sum(settings.blocks for settings in self.stages[: stage - 1]) + block - 1


def capped(activation: Activation, x: Array) -> Array:
    """ReLU6 out of a ReLU."""
    return jnp.minimum(activation(x), 6)


class Stem(nn.Module):
    """From normalized images to 32 channels at half the resolution."""

    design: Design
    dtype: Any
    activation: Activation

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        padding = 1 if self.design.symmetric else "SAME"
        x = nn.Conv(STEM_CHANNELS, (3, 3), 2, padding=padding, use_bias=False, dtype=self.dtype, name="convolution")(
            images
        )
        x = batch_norm(train=train, dtype=self.dtype, name="norm", epsilon=self.design.epsilon)(x)
        return capped(self.activation, x)


class Block(nn.Module):
    """An inverted residual block: 1x1 to more channels, depthwise, 1x1 to fewer, and the shortcut if it fits."""

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
    """From the last blocks to the channels that are pooled."""

    design: Design
    dtype: Any
    activation: Activation

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        x = Convolution(LAST_CHANNELS, 1, dtype=self.dtype, name="convolution")(x)
        x = batch_norm(train=train, dtype=self.dtype, name="norm", epsilon=self.design.epsilon)(x)
        return capped(self.activation, x)


class InvertedResidualNetwork(nn.Module):
    """The network of a design."""

    design: Design
    dtype: Any
    activation: Activation = nn.relu

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width 3"],
        *,
        train: bool,
        frozen_stages: int = 0,
        remat: bool = False,
    ) -> Features:
        """Images in [0, 1]. All stages in `dtype`; see `run_stages`."""
        x = (images - jnp.array(self.design.mean)) / jnp.array(self.design.std)
        stages: list[nn.Module] = [Stem(self.design, self.dtype, self.activation, name="stem")]
        for number, settings in enumerate(self.design.stages, start=1):
            stages.append(Stage(settings, self.design, self.dtype, self.activation, name=f"stage{number}"))
        stages.append(Last(self.design, self.dtype, self.activation, name=f"stage{len(self.design.stages) + 1}"))
        return run_stages(stages, x, train=train, frozen_stages=frozen_stages, remat=remat)
