"""Settings shared by the configs on Totally Looks Like: pairs, split, and a small network that is pretrained on
Imagenette and fine-tuned at 64 pixels on two CPU cores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tll_jax.augment.recipes import Photometric
from tll_jax.data.faces import DlibFaces
from tll_jax.data.folder import ClassFolder
from tll_jax.data.geometry import RandomResizedCrop
from tll_jax.data.splits import Split
from tll_jax.data.totally_looks_like import TotallyLooksLike
from tll_jax.errors import UnknownName
from tll_jax.models.heads import SpatialProjection
from tll_jax.models.resnet import ResNet
from tll_jax.objectives.barlow_twins import BarlowTwins
from tll_jax.objectives.classification import Classification
from tll_jax.objectives.simclr import SimCLR
from tll_jax.objectives.triplet import Triplet
from tll_jax.objectives.vicreg import VICReg
from tll_jax.study.settings import Finetune, Loop, Model, Pretrain
from tll_jax.training.optimizers import AdamW, Lars
from tll_jax.typing import Objective

SIZE = 64
"""Side of the small network's input, in pixels."""


def pairs() -> TotallyLooksLike:
    """All pairs of Totally Looks Like, with face detection."""
    return TotallyLooksLike(path="$TLL_DATA/totally-looks-like.zip", faces=DlibFaces())


def split(config: str) -> Split:
    """The split with the 325 fixed test pairs without faces; each seed validates on another tenth of the rest.

    Args:
      config: the `__file__` of the config, which has the list of test pairs beside it. A relative path stays relative,
        so that it is equal on all hosts.
    """
    path = str(Path(config).parent / "splits" / "tll_no_face.json")
    # Validation pairs may show faces: only 73 pairs without faces are left, too few for several seeds.
    return Split(path=path, validation_fraction=0.1, validation_faces="include")


def imagenette(part: str) -> ClassFolder:
    """Imagenette, photographs of ten classes; `part` is "train" or "val"."""
    return ClassFolder(path="$TLL_DATA/imagenette-128.zip", subfolder=f"imagenette/{part}")


def crops() -> RandomResizedCrop:
    """Mild random crops for pairs, without flips."""
    return RandomResizedCrop(size=SIZE, scale=(0.7, 1.0), flip_probability=0.0)


def colors() -> Photometric:
    """Mild color augmentation for pairs."""
    return Photometric(hue=0.05, blur_probability=0.0)


def objectives(width: int) -> dict[str, Objective | None]:
    """The ways to pretrain that are compared, with projectors of this width; "random" is none."""
    return {
        "barlow": BarlowTwins(projector=(width,) * 3, scale=0.1),
        "classification": Classification(),
        "simclr": SimCLR(projector=(width, 128)),
        "vicreg": VICReg(projector=(width,) * 3),
        "random": None,
    }


def chosen(names: Sequence[str], *, width: int) -> dict[str, Objective | None]:
    """Those of `objectives` with these names.

    Raises:
      UnknownName: there is no such objective.
    """
    known = objectives(width)
    if unknown := sorted(set(names) - set(known)):
        raise UnknownName(f"there is no model {', '.join(unknown)}; there are {', '.join(known)}")
    return {name: known[name] for name in names}


def pretrain(objective: Objective, **loop: Any) -> Pretrain:
    """Pretraining on Imagenette; `loop` are fields of `Loop` beside batch size and saving interval."""
    return Pretrain(
        images=imagenette("train"),
        objective=objective,
        geometry=RandomResizedCrop(size=SIZE, scale=(0.2, 1.0), interpolation="bicubic"),
        augment_a=Photometric(blur_probability=0.5, blur_sigma=(0.1, 1.5)),
        augment_b=Photometric(blur_probability=0.1, blur_sigma=(0.1, 1.5), solarize_probability=0.2),
        optimizer=Lars(learning_rate=0.3, bias_learning_rate=0.0072, weight_decay=1e-4, warmup_fraction=0.1),
        loop=Loop(batch_size=128, save_every=100, **loop),
    )


def model(pretraining: Pretrain | None) -> Model:
    """The small network, fine-tuned with semi-hard triplets; starts from random weights if `pretraining` is None.

    Whole feature maps and crops without flips were chosen on 60 validation pairs: mean reciprocal rank .28 after Barlow
    Twins, .18 from pooled features with flips, .30 for HOG.
    """
    return Model(
        backbone=ResNet(depth=18, width=32, pooled_shortcuts=True),
        head=SpatialProjection(stages=(2, 3, 4)),
        pretrain=pretraining,
        finetune=Finetune(
            objective=Triplet(margin=0.2, mining="semi_hard"),
            geometry=crops(),
            augment=colors(),
            optimizer=AdamW(learning_rate=5e-4),
            loop=Loop(num_steps=120, batch_size=128, evaluate_every=40),
        ),
    )
