"""AlexNet and VGG-16 without their classifiers: plain convolutional networks, whose feature maps LPIPS compares."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tll_jax.models.ops.convolution import Convolution
from tll_jax.models.resnet import IMAGENET_MEAN, IMAGENET_STD
from tll_jax.models.stages import StagedModule, stage_of
from tll_jax.typing import Activation


class PlainConvolution(NamedTuple):
    """A convolution followed by a ReLU."""

    features: int
    kernel_size: int
    torch_place: int
    """Index in torchvision's `features`."""


@dataclass(kw_only=True)
class AlexNet:
    """AlexNet without settings: five stages of one convolution each, for images of at least 32 pixels.

    The first two stages are followed by a max pool; `pooled` is the mean of the last feature map over all positions.

    Source: Krizhevsky 2014 (arXiv 1404.5997), as implemented in torchvision.
    """

    @property
    def num_stages(self) -> int:
        return 5

    def build(self, *, dtype: Any, activation: Activation = nn.relu) -> nn.Module:
        return PlainNetwork(
            stages=ALEXNET, strided_stem=True, num_pools=2, pool_size=3, dtype=dtype, activation=activation
        )

    def torch_name(self, path: tuple[str, ...]) -> str:
        """Name of the module at `path` in torchvision."""
        return _torch_name(ALEXNET, path)


@dataclass(kw_only=True)
class Vgg16:
    """VGG-16 without settings: five stages of two or three convolutions, for images of at least 16 pixels.

    There is a max pool between stages; `pooled` is the mean of the last feature map over all positions.

    Source: Simonyan and Zisserman 2015 (arXiv 1409.1556), as implemented in torchvision, without batch normalization.
    """

    @property
    def num_stages(self) -> int:
        return 5

    def build(self, *, dtype: Any, activation: Activation = nn.relu) -> nn.Module:
        return PlainNetwork(
            stages=VGG16, strided_stem=False, num_pools=4, pool_size=2, dtype=dtype, activation=activation
        )

    def torch_name(self, path: tuple[str, ...]) -> str:
        """Name of the module at `path` in torchvision."""
        return _torch_name(VGG16, path)


ALEXNET = (
    (PlainConvolution(64, 11, 0),),
    (PlainConvolution(192, 5, 3),),
    (PlainConvolution(384, 3, 6),),
    (PlainConvolution(256, 3, 8),),
    (PlainConvolution(256, 3, 10),),
)
VGG16 = (
    (PlainConvolution(64, 3, 0), PlainConvolution(64, 3, 2)),
    (PlainConvolution(128, 3, 5), PlainConvolution(128, 3, 7)),
    (PlainConvolution(256, 3, 10), PlainConvolution(256, 3, 12), PlainConvolution(256, 3, 14)),
    (PlainConvolution(512, 3, 17), PlainConvolution(512, 3, 19), PlainConvolution(512, 3, 21)),
    (PlainConvolution(512, 3, 24), PlainConvolution(512, 3, 26), PlainConvolution(512, 3, 28)),
)


def _torch_name(stages: tuple[tuple[PlainConvolution, ...], ...], path: tuple[str, ...]) -> str:
    stage, number = stage_of(path[0]), int(path[1].removeprefix("convolution"))
    return f"features.{stages[stage][number - 1].torch_place}"


class Stage(nn.Module):
    """Convolutions of one resolution, each before a ReLU, after a stride-2 max pool over `pool_size` (0 for none)."""

    convolutions: tuple[PlainConvolution, ...]
    strided: bool
    pool_size: int
    dtype: Any
    activation: Activation

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        del train
        if self.pool_size:
            x = nn.max_pool(x, (self.pool_size, self.pool_size), (2, 2))
        for number, (features, size, _) in enumerate(self.convolutions, start=1):
            name = f"convolution{number}"
            if self.strided:
                # Its padding is less than half the kernel, which `Convolution` does not support.
                x = nn.Conv(features, (size, size), 4, padding=2, dtype=self.dtype, name=name)(x)
            else:
                x = Convolution(features, size, use_bias=True, dtype=self.dtype, name=name)(x)
            x = self.activation(x)
        return x


class PlainNetwork(StagedModule):
    """Stages of convolutions, with max pools of stride 2 after the first `num_pools` stages; maps are those before."""

    is_embedded_in_parts: ClassVar[bool] = False

    stages: tuple[tuple[PlainConvolution, ...], ...]
    strided_stem: bool
    num_pools: int
    pool_size: int
    dtype: Any
    activation: Activation = nn.relu

    def parts(self, images: Float[Array, "batch height width 3"]) -> tuple[list[nn.Module], Array]:
        x = (images - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)
        stages: list[nn.Module] = []
        for number, convolutions in enumerate(self.stages):
            strided, name = self.strided_stem and number == 0, f"stage{number}" if number else "stem"
            pool_size = self.pool_size if 1 <= number <= self.num_pools else 0
            stages.append(Stage(convolutions, strided, pool_size, self.dtype, self.activation, name=name))
        return stages, x
