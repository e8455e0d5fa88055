"""Low-rank adapters on the 1x1 convolutions of EfficientNet-Lite0, beside a head on the frozen network and all of it.

pip install -e '.[faces,weights]'; export TLL_DATA=FOLDER_WITH_THE_ZIPS
python -m tll_jax.main --config=configs/tll_lora.py --workdir=runs/tll_lora --stages=finetune
python configs/tll_lora.py runs/tll_lora

Two CPU cores, beside other work: an hour and a half with `"--config.seeds=(0,1,2)"`, and 10 GiB. Each seed validates on
another tenth of the training part, so that the second command, which prints the best validation MRR of each fold,
chooses without a look at the test pairs: rank 16 (.361; rank 4 .354, the head alone .340, the whole network .327).
Only the one chosen was then evaluated, by `--config=configs/tll_lora.py:lite0-lora-16` without `--stages`: see
docs/results_tll.md.
"""

import sys
from pathlib import Path

import tll

from tll_jax.data.geometry import RandomResizedCrop, Resize
from tll_jax.errors import UnknownName
from tll_jax.models.efficientnet_lite import EfficientNetLite0
from tll_jax.models.heads import SpatialProjection
from tll_jax.models.weights import EfficientNetLite0ImageNet
from tll_jax.objectives.info_nce import InfoNCE
from tll_jax.study.settings import Evaluate, Explain, Finetune, Loop, Lora, Model, Study
from tll_jax.training import records
from tll_jax.training.optimizers import AdamW

SIZE = 128


def get_config(chosen: str = "") -> Study:
    """The head alone, adapters of two ranks, and the whole network as in configs/tll_unfrozen.py; or one of them."""

    def model(lora: Lora | None, *, backbone_lr_multiplier: float) -> Model:
        return Model(
            backbone=EfficientNetLite0(),
            weights=EfficientNetLite0ImageNet(),
            head=SpatialProjection(stages=(5, 6, 7), width=256),
            finetune=Finetune(
                objective=InfoNCE(),
                geometry=RandomResizedCrop(size=SIZE, scale=(0.7, 1.0), flip_probability=0.0),
                augment=tll.colors(),
                optimizer=AdamW(learning_rate=5e-4, backbone_lr_multiplier=backbone_lr_multiplier),
                loop=Loop(num_steps=60, batch_size=64, evaluate_every=20, remat=True),
                lora=lora,
            ),
        )

    def lora(rank: int) -> Lora:
        return Lora(rank=rank, alpha=2.0 * max(rank, 1), targets=("expand", "project"))

    models = {
        "lite0-head": model(lora(0), backbone_lr_multiplier=1.0),
        "lite0-lora-4": model(lora(4), backbone_lr_multiplier=1.0),
        "lite0-lora-16": model(lora(16), backbone_lr_multiplier=1.0),
        "lite0-full": model(None, backbone_lr_multiplier=0.1),
    }
    if chosen and chosen not in models:
        raise UnknownName(f"there is no model {chosen}; there are {', '.join(models)}")
    return Study(
        name="tll_lora",
        pairs=tll.pairs(),
        split=tll.split(__file__),
        models={chosen: models[chosen]} if chosen else models,
        systems={},
        evaluate=Evaluate(geometry=Resize(size=SIZE), batch_size=64),
        explain=Explain(),
        seeds=(0, 1, 2, 3, 4),
    )


def print_validation(workdir: Path) -> None:
    """One line a model: its best validation MRR on average over the folds, and in each of them."""
    for folder in sorted((workdir / "models").iterdir()):
        found = [
            records.best(records.read(path), "validation/mrr") for path in sorted(folder.glob("seed-*/finetune.jsonl"))
        ]
        values = [best[1] for best in found if best is not None]
        print(f"{folder.name:16} {sum(values) / len(values):.3f} of", *(f"{value:.3f}" for value in values))


if __name__ == "__main__":
    print_validation(Path(sys.argv[1]))
