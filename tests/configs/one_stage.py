"""A study that compiles in seconds: real emoji and a backbone of one stage, to test what goes on around training."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import flax.linen as nn

from tll_jax.augment.recipes import Photometric
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.folder import ImagesOfPairs
from tll_jax.data.geometry import Resize
from tll_jax.data.splits import Split
from tll_jax.models.heads import Projection
from tll_jax.models.resnet import Stem
from tll_jax.models.stages import run_stages
from tll_jax.objectives.barlow_twins import BarlowTwins
from tll_jax.objectives.triplet import Triplet
from tll_jax.study.settings import Evaluate, Explain, Finetune, Loop, Model, Pretrain, Study
from tll_jax.systems.baselines import Pixels
from tll_jax.training.optimizers import AdamW, Lars
from tll_jax.typing import Features

SIZE, BATCH = 16, 16
NUM_STEPS = 80


class OneStage(nn.Module):
    """A convolution, batch statistics, a ReLU and a pool."""

    dtype: Any

    @nn.compact
    def __call__(self, images, *, train, frozen_stages=0, remat=False) -> Features:
        stem = Stem(8, small=False, dtype=self.dtype, activation=nn.relu, name="stem")
        return run_stages([stem], images, train=train, frozen_stages=frozen_stages, remat=remat)


@dataclass(kw_only=True)
class OneStageBackbone:
    """The settings of `OneStage`."""

    num_stages: int = 1

    def build(self, *, dtype, activation=nn.relu):
        return OneStage(dtype)

    def torch_name(self, path):
        return ".".join(path)


def get_config() -> Study:
    """Steps of a millisecond or a few: enough of them to be stopped on the way."""
    # Brightness alone: the rest takes longer to compile than the network.
    brightness = Photometric(contrast=0.0, saturation=0.0, hue=0.0, gray_probability=0.0, blur_probability=0.0)
    loop = Loop(num_steps=NUM_STEPS, batch_size=BATCH, log_every=2, save_every=16)
    model = Model(
        backbone=OneStageBackbone(),
        head=Projection(widths=(16,)),
        pretrain=Pretrain(
            images=ImagesOfPairs(pairs=EmojiPairs(), label="subcategories"),
            objective=BarlowTwins(projector=(16, 16), scale=0.1),
            geometry=Resize(size=SIZE),
            augment_a=brightness,
            augment_b=brightness,
            optimizer=Lars(),
            loop=loop,
        ),
        finetune=Finetune(
            objective=Triplet(mining="random"),
            geometry=Resize(size=SIZE),
            augment=brightness,
            optimizer=AdamW(),
            loop=dataclasses.replace(loop, evaluate_every=NUM_STEPS // 4),
        ),
    )
    return Study(
        name="one_stage",
        pairs=EmojiPairs(),
        split=Split(num_test=40, validation_fraction=0.03),
        models={"barlow": model},
        systems={"pixels": Pixels()},
        evaluate=Evaluate(geometry=Resize(size=SIZE), batch_size=64),
        explain=Explain(num_best=1, num_worst=1),
    )
