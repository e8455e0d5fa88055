"""The recipe of [Munteanu 2022] at full scale: ResNet-50, ImageNet at 224 pixels, batch 2048, then Totally Looks Like.

pip install -e '.[faces]'; export TLL_DATA=FOLDER    (holds imagenet/train/<wnid>/*.JPEG and totally-looks-like.zip)
python -m tll_jax.main --config=configs/imagenet_tll.py --workdir=runs/imagenet_tll

Not yet run: it needs accelerators. The tests check the shapes of its steps.
"""

from tll_jax.augment.recipes import barlow_view_a, barlow_view_b, pair_photometric
from tll_jax.data.faces import DlibFaces
from tll_jax.data.folder import ClassFolder
from tll_jax.data.geometry import RandomResizedCrop, Resize
from tll_jax.data.splits import Split
from tll_jax.data.totally_looks_like import TotallyLooksLike
from tll_jax.models.heads import Projection
from tll_jax.models.resnet import ResNet
from tll_jax.objectives.barlow_twins import BarlowTwins
from tll_jax.objectives.classification import Classification
from tll_jax.objectives.triplet import Triplet
from tll_jax.study.settings import Evaluate, Finetune, Loop, Model, Pretrain, Study
from tll_jax.systems.baselines import ColorHistogram, Hog, Pixels
from tll_jax.training.optimizers import AdamW, Lars

SIZE = 224
BATCH = 2048
IMAGENET_IMAGES = 1_281_167
EPOCHS = 1000


def get_config() -> Study:
    """A study of Barlow Twins, classification and random weights, each fine-tuned on the pairs."""

    def pretrain(objective: BarlowTwins | Classification) -> Pretrain:
        return Pretrain(
            images=ClassFolder(path="$TLL_DATA/imagenet", subfolder="train"),
            objective=objective,
            geometry=RandomResizedCrop(size=SIZE, interpolation="bicubic"),
            augment_a=barlow_view_a(),
            augment_b=barlow_view_b(),
            optimizer=Lars(
                learning_rate=0.2, bias_learning_rate=0.0048, weight_decay=1e-6, warmup_fraction=10 / EPOCHS
            ),
            loop=Loop(
                num_steps=EPOCHS * IMAGENET_IMAGES // BATCH,
                batch_size=BATCH,
                log_every=100,
                save_every=2000,
                dtype="bfloat16",
            ),
        )

    def model(pretraining: Pretrain | None) -> Model:
        return Model(
            backbone=ResNet(depth=50),
            head=Projection(widths=(1024, 256), batch_norm=True),
            pretrain=pretraining,
            finetune=Finetune(
                objective=Triplet(margin=0.2, mining="semi_hard"),
                geometry=RandomResizedCrop(size=SIZE, scale=(0.5, 1.0)),
                augment=pair_photometric(),
                optimizer=AdamW(learning_rate=3e-4, backbone_lr_multiplier=0.1),
                loop=Loop(num_steps=1000, batch_size=256, evaluate_every=100, dtype="bfloat16"),
            ),
        )

    return Study(
        name="imagenet_tll",
        pairs=TotallyLooksLike(path="$TLL_DATA/totally-looks-like.zip", faces=DlibFaces()),
        split=Split(validation_fraction=0.15),
        models={
            "barlow": model(pretrain(BarlowTwins(projector=(8192, 8192, 8192), redundancy_weight=0.0051))),
            "classification": model(pretrain(Classification())),
            "random": model(None),
        },
        systems={"pixels": Pixels(), "histogram": ColorHistogram(), "hog": Hog()},
        evaluate=Evaluate(geometry=Resize(size=SIZE)),
        seeds=(0, 1, 2),
        planned=(("barlow", "classification"), ("barlow", "hog"), ("barlow", "barlow-frozen")),
    )
