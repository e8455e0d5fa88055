"""Barlow Twins against classification as pretraining for look-alikes, with equal backbone, data, steps and fine-tuning.

pip install -e '.[faces]'; export TLL_DATA=FOLDER_WITH_THE_ZIPS
python -m tll_jax.main --config=configs/tll_pretraining.py --workdir=runs/tll_pretraining

Equal numbers of images pass the backbone in both models: classification is trained on both views. Each model has three
pretrainings, and five fine-tuning seeds take turns on them; random weights are fine-tuned alike, and every backbone is
also evaluated frozen.
`--config=configs/tll_pretraining.py:simclr,vicreg` (in another workdir) does the same with other models, and
`make tll-longer` pretrains two of them eight times as long.

Two CPU cores: about half an hour, and 18 minutes for the other two. No significant difference between the models: see
docs/results_tll.md.
Systems without training are in configs/tll_systems.py, on the same test pairs; `make tll-table` compares them by
`tll compare`.
"""

import tll

from tll_jax.data.geometry import Resize
from tll_jax.study.settings import Evaluate, Explain, Model, Probe, Study
from tll_jax.typing import Objective

PROJECTOR_WIDTH = 512


def get_config(models: str = "barlow,classification,random") -> Study:
    """A study of the named models: keys of `tll.objectives`, separated by commas."""
    names = models.split(",")
    objectives = tll.chosen(names, width=PROJECTOR_WIDTH)
    planned = [("barlow", "classification"), *((name, f"{name}-frozen") for name in names)]
    planned += [(name, "random") for name in names if name != "random"]
    return Study(
        name="tll_pretraining",
        pairs=tll.pairs(),
        split=tll.split(__file__),
        models={name: make_model(objective) for name, objective in objectives.items()},
        systems={},
        evaluate=Evaluate(geometry=Resize(size=tll.SIZE)),
        explain=Explain(),
        probe=Probe(train=tll.imagenette("train"), test=tll.imagenette("val"), geometry=Resize(size=tll.SIZE)),
        seeds=(0, 1, 2, 3, 4),
        num_pretrainings=3,
        planned=tuple(pair for pair in planned if {one.removesuffix("-frozen") for one in pair} <= set(names)),
    )


def make_model(objective: Objective | None) -> Model:
    return tll.model(None if objective is None else tll.pretrain(objective, num_steps=400, evaluate_every=200))
