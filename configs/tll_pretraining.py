"""Is Barlow Twins better than classification for look-alikes? Equal backbone, data, steps, head and fine-tuning.

pip install -e '.[faces]'; export TLL_DATA=FOLDER_WITH_THE_ZIPS
python -m tll_jax.main --config=configs/tll_pretraining.py --workdir=runs/tll_pretraining

As many images pass the backbone in either model: classification names the class of both views. Three pretrainings
each, on which five fine-tuning seeds take turns; random weights are fine-tuned alike, and every backbone is evaluated
frozen too.
`--config=configs/tll_pretraining.py:simclr,vicreg` (in another workdir) does the same with other models, and
`make tll-longer` pretrains two of them eight times as long.

Two CPU cores, beside other work: 45 minutes, and 53 for the other two. No difference between the models is shown (made
by 0.1.0): see the README.
Systems without training stand in configs/tll_systems.py, on the same test pairs; `tll compare` (`make tll-table`) puts
them side by side.
"""

from collections.abc import Callable
from pathlib import Path

from tll_jax.augment.recipes import Photometric
from tll_jax.data.faces import DlibFaces
from tll_jax.data.folder import ClassFolder
from tll_jax.data.geometry import RandomResizedCrop, Resize
from tll_jax.data.splits import Split
from tll_jax.data.totally_looks_like import TotallyLooksLike
from tll_jax.errors import UnknownName
from tll_jax.models.heads import SpatialProjection
from tll_jax.models.resnet import ResNet
from tll_jax.objectives.barlow_twins import BarlowTwins
from tll_jax.objectives.classification import Classify
from tll_jax.objectives.simclr import SimClr
from tll_jax.objectives.triplet import Triplet
from tll_jax.objectives.vicreg import VicReg
from tll_jax.study.settings import Evaluate, Explain, Finetune, Loop, Model, Pretrain, Probe, Study
from tll_jax.training.optimizers import AdamW, Lars
from tll_jax.typing import Objective

SIZE = 64
TEST_PAIRS = Path(__file__).parent / "splits" / "tll_no_face.json"
OBJECTIVES: dict[str, Callable[[], Objective | None]] = {
    "barlow": lambda: BarlowTwins(projector=(512, 512, 512), scale=0.1),
    "classification": Classify,
    "simclr": lambda: SimClr(projector=(512, 128)),
    "vicreg": lambda: VicReg(projector=(512, 512, 512)),
    "random": lambda: None,
}


def get_config(models: str = "barlow,classification,random") -> Study:
    """Models by name, joined by commas: of `OBJECTIVES`."""
    names = models.split(",")
    unknown = sorted(set(names) - set(OBJECTIVES))
    if unknown:
        raise UnknownName(f"there is no model {', '.join(unknown)}; there are {', '.join(OBJECTIVES)}")
    planned = [("barlow", "classification"), *((name, f"{name}-frozen") for name in names)]
    planned += [(name, "random") for name in names if name != "random"]
    return Study(
        name="tll_pretraining",
        pairs=TotallyLooksLike(path="$TLL_DATA/totally-looks-like.zip", faces=DlibFaces()),
        split=Split(path=str(TEST_PAIRS), validation_fraction=0.1, validation_faces="include"),
        models={name: make_model(OBJECTIVES[name]()) for name in names},
        systems={},
        evaluate=Evaluate(geometry=Resize(size=SIZE)),
        explain=Explain(),
        probe=Probe(train=imagenette("train"), test=imagenette("val"), geometry=Resize(size=SIZE)),
        seeds=(0, 1, 2, 3, 4),
        num_pretrainings=3,
        planned=tuple(pair for pair in planned if {one.removesuffix("-frozen") for one in pair} <= set(names)),
    )


def imagenette(part: str) -> ClassFolder:
    return ClassFolder(path="$TLL_DATA/imagenette-128.zip", subfolder=f"imagenette/{part}")


def make_model(objective: Objective | None) -> Model:
    pretrain = None
    if objective is not None:
        pretrain = Pretrain(
            images=imagenette("train"),
            objective=objective,
            geometry=RandomResizedCrop(size=SIZE, scale=(0.2, 1.0), interpolation="bicubic"),
            augment_a=Photometric(blur_probability=0.5, blur_sigma=(0.1, 1.5)),
            augment_b=Photometric(blur_probability=0.1, blur_sigma=(0.1, 1.5), solarize_probability=0.2),
            optimizer=Lars(learning_rate=0.3, bias_learning_rate=0.0072, weight_decay=1e-4, warmup_share=0.1),
            loop=Loop(num_steps=400, batch_size=128, save_every=100, evaluate_every=200),
        )
    return Model(
        backbone=ResNet(depth=18, width=32, pooled_shortcuts=True),
        head=SpatialProjection(stages=(2, 3, 4)),
        pretrain=pretrain,
        finetune=Finetune(
            objective=Triplet(margin=0.2, mining="semi_hard"),
            geometry=RandomResizedCrop(size=SIZE, scale=(0.7, 1.0), flip_probability=0.0),
            augment=Photometric(hue=0.05, blur_probability=0.0),
            optimizer=AdamW(learning_rate=5e-4),
            loop=Loop(num_steps=120, batch_size=128, evaluate_every=40),
        ),
    )
