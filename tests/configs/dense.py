"""One dense layer on flattened pixels: a step whose numbers can be counted by hand, and that compiles in seconds."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn

from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.folder import ImagesOfPairs
from tll_jax.data.geometry import Resize
from tll_jax.data.splits import Split
from tll_jax.models.heads import Identity
from tll_jax.models.normalization import batch_norm
from tll_jax.objectives.classification import Classification
from tll_jax.objectives.triplet import Triplet
from tll_jax.study.settings import Evaluate, Finetune, Loop, Model, Pretrain, Study
from tll_jax.training.optimizers import Lars
from tll_jax.typing import Features

SIZE = 8
WIDTH = 64


@dataclass(kw_only=True)
class Unchanged:
    """No augmentation."""

    def __call__(self, key, image):
        return image


@dataclass(kw_only=True)
class Dense:
    """A backbone of one layer."""

    width: int = WIDTH
    num_stages: int = 2

    def build(self, *, dtype, activation=nn.relu):
        return DenseModule(self.width, dtype)

    def torch_name(self, path):
        return ".".join(path)


class DenseModule(nn.Module):
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, images, *, train, frozen_stages=0, remat=False):
        outputs = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name="stem")(
            images.reshape(images.shape[0], -1)
        )
        outputs = batch_norm(train=train, dtype=self.dtype, name="stage1")(outputs)
        return Features(stages=(outputs[:, None, None, :],), pooled=outputs)


def get_config() -> Study:
    """A model that pretrains, and one that does not."""
    finetune = Finetune(
        objective=Triplet(),
        geometry=Resize(size=SIZE),
        augment=Unchanged(),
        optimizer=Lars(),
        loop=Loop(num_steps=10, batch_size=16),
    )
    pretrain = Pretrain(
        images=ImagesOfPairs(pairs=EmojiPairs(), label="subcategories"),
        objective=Classification(),
        geometry=Resize(size=SIZE),
        augment_a=Unchanged(),
        augment_b=Unchanged(),
        optimizer=Lars(),
        loop=Loop(num_steps=10, batch_size=512),
    )
    return Study(
        name="dense",
        pairs=EmojiPairs(),
        split=Split(),
        models={
            "pretrained": Model(backbone=Dense(), head=Identity(), pretrain=pretrain, finetune=finetune),
            "random": Model(backbone=Dense(), head=Identity(), finetune=finetune),
        },
        systems={},
        evaluate=Evaluate(geometry=Resize(size=SIZE)),
    )
