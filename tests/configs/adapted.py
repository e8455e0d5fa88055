"""A study that adapts a small network with attention by low-rank adapters, from a file of weights."""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from tests.configs import one_stage
from tll_jax.models.normalization import batch_norm
from tll_jax.models.stages import run_stages
from tll_jax.models.weights import WeightFile
from tll_jax.study.settings import Finetune, Lora, Study
from tll_jax.typing import Features

CHANNELS, HEADS = 8, 2


class Attention(nn.Module):
    """Every position looks at all positions."""

    @nn.compact
    def __call__(self, tokens):
        split = [
            nn.Dense(CHANNELS, name=name)(tokens).reshape(*tokens.shape[:2], HEADS, -1)
            for name in ("query", "key", "value")
        ]
        mixed = nn.dot_product_attention(*split)
        return nn.Dense(CHANNELS, name="out")(mixed.reshape(tokens.shape))


class Mlp(nn.Module):
    """Two layers."""

    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(CHANNELS, name="down")(nn.gelu(nn.Dense(2 * CHANNELS, name="up")(tokens)))


class Stem(nn.Module):
    """Patches of 4 pixels."""

    @nn.compact
    def __call__(self, images, *, train):
        maps = nn.Conv(CHANNELS, (4, 4), 4, padding=0, name="patches")(images)
        return batch_norm(train=train, dtype=jnp.float32, name="norm")(maps)


class Block(nn.Module):
    """Attention and two layers, each beside a shortcut."""

    @nn.compact
    def __call__(self, maps, *, train):
        tokens = maps.reshape(maps.shape[0], -1, CHANNELS)
        tokens = tokens + Attention(name="attention")(nn.LayerNorm(name="norm1")(tokens))
        tokens = tokens + Mlp(name="mlp")(nn.LayerNorm(name="norm2")(tokens))
        return tokens.reshape(maps.shape)


class Attending(nn.Module):
    """A stem and a block."""

    @nn.compact
    def __call__(self, images, *, train, frozen_stages=0, remat=False) -> Features:
        stages = [Stem(name="stem"), Block(name="stage1")]
        return run_stages(stages, images, train=train, frozen_stages=frozen_stages, remat=remat)


@dataclass(kw_only=True)
class AttendingBackbone:
    """The settings of `Attending`."""

    num_stages: int = 2

    def build(self, *, dtype: Any, activation=nn.relu):
        return Attending()

    def torch_name(self, path):
        return ".".join(path)


def get_config(weights: str = "$WEIGHTS") -> Study:
    """Twelve steps, judged after every fourth."""
    study = one_stage.get_config()
    model = study.models.pop("barlow")
    model.backbone, model.pretrain, model.weights = AttendingBackbone(), None, WeightFile(path=weights)
    finetune = model.finetune
    assert isinstance(finetune, Finetune)
    finetune.loop.num_steps, finetune.loop.evaluate_every = 12, 4
    finetune.optimizer.learning_rate = 0.05
    finetune.lora = Lora(rank=2, alpha=4.0)
    study.name, study.models, study.systems = "adapted", {"lora": model}, {}
    return study
