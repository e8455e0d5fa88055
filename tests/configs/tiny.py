"""A study small enough for tests: real emoji, two models, a few steps of a very narrow network."""

from tll_jax.augment.recipes import Photometric
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.folder import ImagesOfPairs
from tll_jax.data.geometry import RandomResizedCrop, Resize
from tll_jax.data.splits import Split
from tll_jax.models.heads import Projection
from tll_jax.models.resnet import ResNet
from tll_jax.objectives.barlow_twins import BarlowTwins
from tll_jax.objectives.triplet import Triplet
from tll_jax.study.settings import Evaluate, Explain, Finetune, Loop, Model, Pretrain, Study
from tll_jax.systems.baselines import ColorHistogram, Hog, Pixels
from tll_jax.training.optimizers import AdamW, Lars

SIZE = 32
NUM_STEPS = 24


def get_config() -> Study:
    """Every stage is trained for 24 steps."""
    # Without the blur, which takes longer to compile than the network.
    colors = Photometric(blur_probability=0.0)

    def model(pretrain: Pretrain | None) -> Model:
        return Model(
            backbone=ResNet(depth=10, width=4),
            head=Projection(widths=(16,)),
            pretrain=pretrain,
            finetune=Finetune(
                objective=Triplet(mining="random"),
                geometry=RandomResizedCrop(size=SIZE, scale=(0.5, 1.0)),
                augment=colors,
                optimizer=AdamW(),
                loop=Loop(
                    num_steps=NUM_STEPS,
                    batch_size=16,
                    log_every=2,
                    save_every=12,
                    evaluate_every=NUM_STEPS // 4,
                ),
            ),
        )

    barlow = Pretrain(
        images=ImagesOfPairs(pairs=EmojiPairs(), label="subcategories"),
        objective=BarlowTwins(projector=(16, 16), scale=0.1),
        geometry=RandomResizedCrop(size=SIZE, scale=(0.5, 1.0)),
        augment_a=colors,
        augment_b=colors,
        optimizer=Lars(),
        loop=Loop(num_steps=NUM_STEPS, batch_size=16, log_every=2, save_every=12),
    )
    return Study(
        name="tiny",
        pairs=EmojiPairs(),
        split=Split(num_test=40, validation_fraction=0.03),
        models={"barlow": model(barlow), "random": model(None)},
        systems={"pixels": Pixels(), "histogram": ColorHistogram(), "hog": Hog()},
        evaluate=Evaluate(geometry=Resize(size=SIZE), batch_size=64),
        explain=Explain(num_best=2, num_worst=1),
        planned=(("barlow", "random"),),
    )
