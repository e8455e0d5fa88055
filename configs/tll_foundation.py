"""Your own weights of DINOv2, DINOv3, CLIP, SigLIP or ConvNeXt on the 325 look-alikes without faces: frozen, whitened,
adapted, and fine-tuned by low-rank adapters.

pip install -e '.[faces,weights]'; export TLL_DATA=FOLDER_WITH_THE_ZIPS
python -m tll_jax.main --config=configs/tll_foundation.py --workdir=runs/tll_foundation
python -m tll_jax.main --config=configs/tll_foundation.py:FILE_OR_FOLDER_OF_WEIGHTS --workdir=runs/tll_foundation

The first command takes a DINOv2 ViT-S/14 from $TLL_DATA/dinov2-small. Not yet run: no such weights here. The protocol,
the pairs and the five seeds are those of configs/tll_systems.py, so `tll compare` puts the rows beside its rows.
"""

import tll

from tll_jax.data.geometry import PillowResize, Resize
from tll_jax.models.convnext import ConvNeXt
from tll_jax.models.heads import Identity, Projection
from tll_jax.models.vit import VisionTransformer
from tll_jax.models.weight_files import describe, from_weights
from tll_jax.models.weights import WeightFile
from tll_jax.objectives.info_nce import InfoNCE
from tll_jax.objectives.triplet import Triplet
from tll_jax.study.settings import Evaluate, Explain, Finetune, Loop, Lora, Model, Study
from tll_jax.systems.adapter import Adapter
from tll_jax.systems.csls import CSLS
from tll_jax.systems.frozen_features import FrozenFeatures
from tll_jax.systems.metric_learning import PrincipalComponents, RelevantComponents
from tll_jax.training.optimizers import AdamW
from tll_jax.typing import Backbone, Geometry, Objective

COSINE = ("cosine",)


def backbone_of(weights: str) -> Backbone:
    """A fresh value, for every model and system has its own."""
    if weights:
        return from_weights(weights)
    return VisionTransformer(
        patch_size=14,
        image_size=518,
        layer_scale=True,
        names="transformers-dinov2",
        weights=WeightFile(path="$TLL_DATA/dinov2-small"),
    )


def geometry_of(weights: str) -> Geometry:
    """As the weights' reference prepares pictures, but without cutting off their ends."""
    if not weights:
        return PillowResize(size=224)
    _, preprocessing, _ = describe(weights)
    return PillowResize(size=preprocessing.size, interpolation=preprocessing.interpolation)


def lora_of(weights: str) -> Lora:
    """Adapters of all dense layers of the blocks."""
    targets = ("expand", "project") if isinstance(backbone_of(weights), ConvNeXt) else ("attention", "mlp")
    return Lora(rank=8, alpha=16.0, targets=targets)


def get_config(weights: str = "") -> Study:
    """`weights` is a file or folder of weights."""

    def frozen(*stages: int, grid: int) -> FrozenFeatures:
        return FrozenFeatures(
            backbone=backbone_of(weights),
            stages=stages,
            grid=grid,
            standardize=grid > 1,
            geometry=geometry_of(weights),
        )

    def compact(features: FrozenFeatures | RelevantComponents, *, whitening: float = 0.5) -> PrincipalComponents:
        return PrincipalComponents(features=features, widths=(512,), whitenings=(whitening,), comparisons=COSINE)

    def rca() -> PrincipalComponents:
        features = frozen(last - 4, last - 2, last, grid=4)
        metric = RelevantComponents(features=compact(features), shrinkages=(0.43,), comparisons=COSINE)
        return compact(metric, whitening=-0.5)

    def fine_tuned(objective: Objective) -> Model:
        return Model(
            backbone=backbone_of(weights),
            head=Projection(widths=(256,)),
            finetune=Finetune(
                objective=objective,
                geometry=Resize(size=geometry_of(weights).size),
                augment=tll.colors(),
                optimizer=AdamW(learning_rate=5e-4),
                loop=Loop(num_steps=200, batch_size=64, evaluate_every=20, remat=True),
                lora=lora_of(weights),
            ),
        )

    last = backbone_of(weights).num_stages - 1
    models = {
        "pooled": Model(backbone=backbone_of(weights), head=Identity()),
        "lora-infonce": fine_tuned(InfoNCE()),
        "lora-triplet": fine_tuned(Triplet()),
    }
    linear = Adapter(
        features=compact(frozen(last, grid=4)),
        head=Projection(widths=(256,)),
        objective=InfoNCE(),
        optimizer=AdamW(learning_rate=1e-3),
        num_steps=150,
        batch_size=512,
    )
    return Study(
        name="tll_foundation",
        pairs=tll.pairs(),
        split=tll.split(__file__),
        models=models,
        systems={
            "grid": compact(frozen(last, grid=4)),
            "grid-rca": rca(),
            "grid-rca-csls": CSLS(features=rca()),
            "linear": linear,
        },
        evaluate=Evaluate(geometry=geometry_of(weights), batch_size=32),
        explain=Explain(),
        seeds=(0, 1, 2, 3, 4),
        planned=(("grid-rca", "pooled-frozen"), ("lora-infonce", "pooled-frozen")),
    )
