"""A study of seconds: `tiny.py:emoji`, or `tiny.py:table` and `tiny.py:folders` of the pairs in $PAIRS."""

import os

from tll_jax.augment.recipes import pair_photometric
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.geometry import RandomResizedCrop, Resize
from tll_jax.data.pair_folders import MatchingFolders, PairsFromTable
from tll_jax.data.splits import Split
from tll_jax.models.heads import SpatialProjection
from tll_jax.models.resnet import ResNet
from tll_jax.objectives.triplet import Triplet
from tll_jax.study.settings import Evaluate, Explain, Finetune, Loop, Model, Study
from tll_jax.systems.baselines import Pixels
from tll_jax.training.optimizers import AdamW

PAIRS = {
    "emoji": EmojiPairs,
    "table": lambda: PairsFromTable(path=os.environ["PAIRS"], duplicates=None),
    "folders": lambda: MatchingFolders(path=os.environ["PAIRS"], duplicates=None),
}


def get_config(kind: str = "emoji") -> Study:
    model = Model(
        backbone=ResNet(depth=18, width=4),
        head=SpatialProjection(stages=(2, 3)),
        finetune=Finetune(
            objective=Triplet(margin=0.2),
            geometry=RandomResizedCrop(size=16, scale=(0.7, 1.0), flip_probability=0.0),
            augment=pair_photometric(),
            optimizer=AdamW(learning_rate=1e-3),
            loop=Loop(num_steps=4, batch_size=8, log_every=2, save_every=2),
        ),
    )
    return Study(
        name="tiny",
        pairs=PAIRS[kind](),
        split=Split(num_test=40 if kind == "emoji" else 4, faces="include"),
        models={"a": model},
        systems={"pixels": Pixels()},
        evaluate=Evaluate(geometry=Resize(size=16), batch_size=32),
        explain=Explain(num_best=1, num_worst=1),
        planned=(("a", "pixels"),),
    )
