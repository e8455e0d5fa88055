"""Barlow Twins against classification, pretrained long at full width: the question of [Munteanu 2022] on a GPU.

launch/gpu_study.sh --epochs 100 OUT barlow,classification
python -m tll_jax.main --config=configs/tll_scale.py --workdir=runs/tll_scale      (the same without a time limit)

ResNet-18 at 64 pixels, pretrained on Imagenette in bfloat16 and fine-tuned on Totally Looks Like; three pretrainings
and five fine-tuning seeds a model, as in tll_pretraining.py. The argument is the number of epochs and the models:
`400,barlow,classification` by default. 100 epochs: no difference (mean reciprocal rank .151 and .159), in five minutes
on an NVIDIA H200; see docs/results_tll.md. 400 epochs are not yet run.
"""

import dataclasses
from itertools import combinations

import tll

from tll_jax.data.geometry import Resize
from tll_jax.errors import InvalidValue
from tll_jax.models.resnet import ResNet
from tll_jax.study.settings import Evaluate, Model, Probe, Study
from tll_jax.typing import Objective

BATCH = 256
IMAGENETTE_IMAGES = 9_469

# The widths of solo-learn (da Costa et al. 2022) for ResNet-18 on 100 classes of ImageNet.
PROJECTOR_WIDTH = 2048


def get_config(argument: str = "400,barlow,classification") -> Study:
    """The study of `EPOCHS,MODEL,...`, models being keys of `tll.objectives`."""
    epochs, *names = argument.split(",")
    if not epochs.isdecimal() or not int(epochs) or not names:
        raise InvalidValue(f"{argument!r} is not a number of epochs and models, such as 400,barlow,classification")
    objectives = tll.chosen(names, width=PROJECTOR_WIDTH)
    return Study(
        name="tll_scale",
        pairs=tll.pairs(),
        split=tll.split(__file__),
        models={name: make_model(objective, num_epochs=int(epochs)) for name, objective in objectives.items()},
        systems={},
        evaluate=Evaluate(geometry=Resize(size=tll.SIZE)),
        probe=Probe(train=tll.imagenette("train"), test=tll.imagenette("val"), geometry=Resize(size=tll.SIZE)),
        seeds=(0, 1, 2, 3, 4),
        num_pretrainings=3,
        planned=(*combinations(names, 2), *((name, f"{name}-frozen") for name in names)),
    )


def make_model(objective: Objective | None, *, num_epochs: int) -> Model:
    """The network of tll_pretraining.py at full width."""
    pretraining = None
    if objective is not None:
        pretraining = tll.pretrain(objective, num_steps=num_epochs * IMAGENETTE_IMAGES // BATCH)
        pretraining.loop = dataclasses.replace(
            pretraining.loop, batch_size=BATCH, dtype="bfloat16", log_every=100, save_every=2000
        )
    model = tll.model(pretraining)
    model.backbone = ResNet(depth=18, width=64, pooled_shortcuts=True)
    assert model.finetune is not None
    model.finetune.loop = dataclasses.replace(model.finetune.loop, dtype="bfloat16")
    return model
