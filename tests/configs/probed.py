"""The study of one stage with two pretrainings of two steps, three fine-tuning seeds, and probes of its backbones."""

import dataclasses

from tests.configs import one_stage
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.folder import ImagesOfPairs
from tll_jax.data.geometry import Resize
from tll_jax.study.settings import Probe, Study


def get_config() -> Study:
    """Every pretraining step is watched; the second model does not pretrain."""
    settings = one_stage.get_config()
    images = ImagesOfPairs(pairs=EmojiPairs(), label="subcategories")
    settings.probe = Probe(train=images, test=images, geometry=Resize(size=one_stage.SIZE), num_neighbors=5)
    settings.seeds, settings.num_pretrainings = (0, 1, 2), 2
    barlow = settings.models["barlow"]
    barlow.pretrain.loop = dataclasses.replace(barlow.pretrain.loop, num_steps=2, evaluate_every=1)
    barlow.finetune.loop = dataclasses.replace(barlow.finetune.loop, num_steps=2, evaluate_every=0)
    settings.models["random"] = dataclasses.replace(barlow, pretrain=None)
    return settings
