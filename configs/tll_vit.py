"""A small vision transformer beside a ResNet of equal cost, both pretrained here, by Barlow Twins and classification.

pip install -e '.[faces]'; export TLL_DATA=FOLDER_WITH_THE_ZIPS
python -m tll_jax.main --config=configs/tll_vit.py --workdir=runs/tll_vit
mkdir runs/emoji_vit; cp -r runs/tll_vit/stages runs/emoji_vit
python -m tll_jax.main --config=configs/tll_vit.py:emoji --workdir=runs/emoji_vit

The transformer has patches of 8 pixels, six blocks, 4.8 million parameters and .32 billion multiply-adds at 64 pixels;
ResNet-18 of width 96 has as many multiply-adds (.33 billion) and 25 million parameters. Pretraining is on Imagenette,
as in tll_pretraining.py; the second study fine-tunes the same pretrained networks on pairs of emoji. Two fast CPU
cores: an hour and three quarters, then half an hour. The transformer is behind the ResNet: mean reciprocal ranks of .11
and .15 on Totally Looks Like (HOG .20), .57 and .67 on emoji (.66). No difference between the pretrainings is seen.
"""

from itertools import product

import tll

from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.geometry import Resize
from tll_jax.data.splits import Split
from tll_jax.errors import UnknownName
from tll_jax.models.heads import SpatialProjection
from tll_jax.models.resnet import ResNet
from tll_jax.models.vit import VisionTransformer
from tll_jax.study.settings import Evaluate, Model, Study
from tll_jax.systems.baselines import Hog
from tll_jax.training.optimizers import AdamW
from tll_jax.typing import Objective

NUM_STEPS = 400
"""Steps of 128 pictures, two views each: 5.4 epochs of Imagenette, as in tll_pretraining.py."""

NETWORKS = ("vit", "resnet")
OBJECTIVES = ("barlow", "classification")


def get_config(pairs: str = "tll") -> Study:
    """The study on the pairs of Totally Looks Like, or of "emoji"."""
    if pairs not in ("tll", "emoji"):
        raise UnknownName(f"there are no pairs {pairs}; there are tll, emoji")
    is_emoji = pairs == "emoji"
    return Study(
        name=f"{pairs}_vit",
        pairs=EmojiPairs() if is_emoji else tll.pairs(),
        split=Split(num_test=216) if is_emoji else tll.split(__file__),
        models={
            f"{network}-{name}": make_model(network, tll.objectives(width=512)[name], num_steps=80 if is_emoji else 120)
            for network, name in product(NETWORKS, OBJECTIVES)
        },
        systems={"hog": Hog()},
        evaluate=Evaluate(geometry=Resize(size=tll.SIZE)),
        seeds=(0, 1, 2),
        planned=(
            *((f"vit-{name}", f"resnet-{name}") for name in OBJECTIVES),
            *((f"{network}-barlow", f"{network}-classification") for network in NETWORKS),
            *((f"{network}-{name}", f"{network}-{name}-frozen") for network, name in product(NETWORKS, OBJECTIVES)),
        ),
    )


def make_model(network: str, objective: Objective | None, *, num_steps: int) -> Model:
    """The model of tll_pretraining.py with another backbone, fine-tuned for `num_steps`.

    Transformers are pretrained by AdamW, ResNets by LARS.
    """
    assert objective is not None
    pretraining = tll.pretrain(objective, num_steps=NUM_STEPS)
    model = tll.model(pretraining)
    assert model.finetune is not None
    model.finetune.loop.num_steps = num_steps
    if network == "resnet":
        model.backbone = ResNet(depth=18, width=96, pooled_shortcuts=True)
        return model
    pretraining.optimizer = AdamW(learning_rate=5e-4, weight_decay=0.05, warmup_fraction=0.1)
    model.backbone = VisionTransformer(
        width=256,
        depth=6,
        num_heads=4,
        mlp_width=1024,
        patch_size=8,
        image_size=tll.SIZE,
        class_token=False,
        pooling="mean",
    )
    # Maps after two, four and all six blocks, as the ResNet's after its last three stages.
    model.head = SpatialProjection(stages=(2, 4, 7))
    return model
