"""The tiny study with two pretrainings of two steps, three fine-tuning seeds, and probes of the frozen backbones."""

from tests.configs import tiny
from tll_jax.config import Probe, Study
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.folder import ImagesOfPairs
from tll_jax.data.geometry import Resize


def get_config() -> Study:
    """Every pretraining step is watched."""
    settings = tiny.get_config()
    images = ImagesOfPairs(pairs=EmojiPairs(), label="subcategories")
    settings.probe = Probe(train=images, test=images, geometry=Resize(size=tiny.SIZE), num_neighbors=1)
    settings.seeds, settings.num_pretrainings = (0, 1, 2), 2
    for arm in settings.arms.values():
        arm.finetune.loop.num_steps = 2
    loop = settings.arms["barlow"].pretrain.loop
    loop.num_steps, loop.evaluate_every = 2, 1
    return settings
