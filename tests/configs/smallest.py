"""The smallest study of all stages, whose finished folders by earlier versions lie in tests/data/studies."""

from tll_jax.augment.recipes import Photometric
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.folder import ImagesOfPairs
from tll_jax.data.geometry import Resize
from tll_jax.data.splits import Split
from tll_jax.models.heads import Projection
from tll_jax.models.resnet import ResNet
from tll_jax.objectives.barlow_twins import BarlowTwins
from tll_jax.objectives.triplet import Triplet
from tll_jax.study.settings import Evaluate, Explain, Finetune, Loop, Model, Pretrain, Study
from tll_jax.systems.baselines import ColorHistogram
from tll_jax.training.optimizers import AdamW, Lars


def get_config() -> Study:
    """Two steps a stage, four test pairs."""
    brightness = Photometric(contrast=0.0, saturation=0.0, hue=0.0, gray_probability=0.0, blur_probability=0.0)
    model = Model(
        backbone=ResNet(depth=10, width=2),
        head=Projection(widths=(4,)),
        pretrain=Pretrain(
            images=ImagesOfPairs(pairs=EmojiPairs(), label="subcategories"),
            objective=BarlowTwins(projector=(8,)),
            geometry=Resize(size=16),
            augment_a=brightness,
            augment_b=brightness,
            optimizer=Lars(),
            loop=Loop(num_steps=2, batch_size=8, log_every=1),
        ),
        finetune=Finetune(
            objective=Triplet(mining="random"),
            geometry=Resize(size=16),
            augment=brightness,
            optimizer=AdamW(),
            loop=Loop(num_steps=2, batch_size=8, log_every=1),
        ),
    )
    return Study(
        name="smallest",
        pairs=EmojiPairs(),
        split=Split(num_test=4, validation_fraction=0.01),
        models={"barlow": model},
        systems={"histogram": ColorHistogram()},
        evaluate=Evaluate(geometry=Resize(size=16), batch_size=8),
        explain=Explain(num_best=1, num_worst=0),
    )
