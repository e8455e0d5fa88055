"""Search for systems on Totally Looks Like, by cross-validation inside the training part.

TLL_DATA=FOLDER python benchmarks/tll_search.py --out benchmarks/results/tll_search.json

Five folds of the pairs that `configs/tll_systems.py` trains and chooses on, faces included; no group of duplicates is
cut, and no test pair is opened. Each fold is the others' gallery in turn, after fitting on the other four (a tenth of
them kept to choose on). Variants that the log holds already, with equal settings, are not computed again.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import write_results

from tll_jax import ranking, serialize
from tll_jax.data.faces import dropped
from tll_jax.devices import keep_compiled_programs, keep_freed_memory
from tll_jax.evaluation.metrics import estimate
from tll_jax.models.efficientnet_lite import EfficientNetLite2
from tll_jax.models.heads import Diagonal, Projection, RectifiedProjection
from tll_jax.objectives.contrastive import Contrastive
from tll_jax.objectives.info_nce import InfoNCE
from tll_jax.objectives.multi_similarity import MultiSimilarity
from tll_jax.objectives.triplet import Triplet
from tll_jax.systems.baselines import Hog, Pixels
from tll_jax.systems.csls import CSLS
from tll_jax.systems.ensemble import Ensemble
from tll_jax.systems.metric_learning import MaximumMargin, RelevantComponents
from tll_jax.systems.mirrored import Mirrored, MirrorImages
from tll_jax.typing import PairImages, System

CONFIG = Path(__file__).parents[1] / "configs" / "tll_systems.py"
NUM_FOLDS = 5


def load_config() -> Any:
    """The module of the config, whose builders the variants are made with."""
    sys.path.append(str(CONFIG.parent))
    spec = importlib.util.spec_from_file_location("tll_systems", CONFIG)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def variants() -> dict[str, System]:
    """Everything that was tried, by name."""
    c = load_config()

    def standardized(*stages: int, grid: int = 4, **fields: Any) -> Any:
        return c.lite0(*stages, grid=grid, standardize=True, **fields)

    def linear(features: Any) -> System:
        return c.adapter(Projection(widths=(512,)), features=features, num_steps=100)

    pooled = c.compact(c.lite0(7))
    spatial = c.compact(c.lite0(5, 6, 7, grid=4), width=512)
    tried: dict[str, System] = {
        "pixels": Pixels(),
        "hog": Hog(),
        "hog, principal components": c.compact(Hog()),
        "hog, metric": RelevantComponents(features=Hog()),
    }
    tried |= {f"pooled stage {stage}": c.lite0(stage) for stage in range(4, 9)}
    tried |= {f"pooled stage {stage}, principal components": c.compact(c.lite0(stage)) for stage in range(4, 9)}
    tried |= {
        f"pooled stage 7, {width} components, whitening {whitening}": c.compact(
            c.lite0(7), width=width, whitening=whitening
        )
        for width, whitening in ((128, 0.5), (320, 0.5), (256, 0.0), (256, 1.0))
    }
    tried |= {
        "pooled stages 5-7, principal components": c.compact(c.lite0(5, 6, 7)),
        "pooled stage 7 at 288 pixels, principal components": c.compact(c.lite0(7, size=288)),
        "pooled stage 7, flip at test": Mirrored(features=pooled),
        "pooled stage 7, maximum margin": MaximumMargin(features=c.lite0(7)),
        "pooled stage 7, RCA whitening": c.rca_whitening(c.lite0(7), width=256),
    }
    heads = {"diagonal": Diagonal(), "rectified": RectifiedProjection(), "linear": Projection(widths=(256,))}
    heads |= {
        "two layers": Projection(widths=(512, 256)),
        "mlp, batch normalization": Projection(widths=(512, 256), batch_norm=True),
    }
    tried |= {f"pooled stage 7, {name} by InfoNCE": c.adapter(head) for name, head in heads.items()}
    losses = {"triplet": Triplet(), "contrastive": Contrastive(), "multi-similarity": MultiSimilarity()}
    tried |= {
        f"pooled stage 7, linear by {name}": c.adapter(Projection(widths=(256,)), loss) for name, loss in losses.items()
    }
    tried |= {
        f"pooled stage 7, linear by InfoNCE at logit scale {value}": c.adapter(
            Projection(widths=(256,)), InfoNCE(logit_scale=value)
        )
        for value in (5.0, 30.0)
    }
    tried |= {
        f"{grid}x{grid} cells of stages 5-7": c.compact(c.lite0(5, 6, 7, grid=grid), width=512) for grid in (2, 3)
    }
    tried |= {
        "4x4 cells of stages 5-7": spatial,
        "4x4 cells of stages 5-7, linear by InfoNCE": linear(spatial),
        "4x4 cells of stages 5-7, RCA whitening": c.rca_whitening(c.lite0(5, 6, 7, grid=4)),
        "4x4 standardized cells of stages 5-7, RCA whitening": c.rca_whitening(standardized(5, 6, 7)),
        "4x4 standardized cells of stages 4-7, principal components": c.compact(standardized(4, 5, 6, 7), width=512),
        "4x4 standardized cells of stages 4-7, RCA whitening": c.lite0_rca(),
        "the same, 3x3 cells": c.rca_whitening(standardized(4, 5, 6, 7, grid=3)),
        "the same, 5x5 cells": c.rca_whitening(standardized(4, 5, 6, 7, grid=5)),
        "the same, stages 3-7": c.rca_whitening(standardized(3, 4, 5, 6, 7)),
        "the same, 288 pixels": c.rca_whitening(standardized(4, 5, 6, 7, size=288)),
        "the same, 256 components": c.rca_whitening(standardized(4, 5, 6, 7), width=256),
        "the same, 1024 components": c.rca_whitening(standardized(4, 5, 6, 7), width=1024),
        "the same, shrinkage 0.2": c.rca_whitening(standardized(4, 5, 6, 7), shrinkage=0.2),
        "the same, shrinkage 1": c.rca_whitening(standardized(4, 5, 6, 7), shrinkage=1.0),
        "the same, linear by InfoNCE after it": linear(c.lite0_rca()),
        "the same, flip at test": Mirrored(features=c.lite0_rca()),
        "the same, of EfficientNet-Lite2 at 256 pixels": c.lite2_rca(),
        "the same, of EfficientNet-Lite2 at 224 pixels": c.rca_whitening(
            standardized(4, 5, 6, 7, backbone=EfficientNetLite2())
        ),
        "AlexNet of LPIPS, stages 1-4, RCA whitening": c.alexnet_rca(),
        "VGG-16 of LPIPS, stages 2-4, RCA whitening": c.vgg16_rca(),
        "hog, RCA whitening": c.rca_whitening(Hog(), width=256),
    }
    networks = {
        "Lite0": c.lite0_rca(),
        "Lite2": c.lite2_rca(),
        "AlexNet": c.alexnet_rca(),
        "VGG-16": c.vgg16_rca(),
    }

    def together(*names: str, scaled: bool, weights: tuple[float, ...] = ()) -> Ensemble:
        members = {name: CSLS(features=networks[name]) if scaled else networks[name] for name in names}
        return Ensemble(members=members, weights=dict(zip(names, weights or (1.0,) * len(names), strict=True)))

    tried |= {f"{name}, CSLS": CSLS(features=features) for name, features in networks.items()}
    tried |= {
        f"Lite0, CSLS by {count} neighbors": CSLS(features=c.lite0_rca(), num_neighbors=count) for count in (5, 100)
    }
    tried |= {
        f"ensemble of {', '.join(names)}{', CSLS' * scaled}": together(*names, scaled=scaled)
        for names in (
            ("Lite0", "AlexNet"),
            ("Lite0", "Lite2", "AlexNet"),
            ("Lite0", "Lite2", "VGG-16"),
            tuple(networks),
        )
        for scaled in (False, True)
    }
    tried |= {
        "ensemble of Lite0, Lite2, half AlexNet and half VGG-16, CSLS": c.csls_ensemble(),
        "ensemble of Lite0, Lite2, half AlexNet and half VGG-16": together(
            *networks, scaled=False, weights=(1.0, 1.0, 0.5, 0.5)
        ),
        "ensemble of Lite0, Lite2 and a quarter of HOG by score": c.ensemble(weights=c.WEIGHTS),
        "ensemble of Lite0, Lite2 and HOG by score": c.ensemble(),
        "ensemble of Lite0, Lite2 and HOG by rank": c.ensemble("rank"),
        "ensemble of Lite0 and Lite2 by score": Ensemble(
            members={"lite0": c.lite0_rca(), "lite2": c.lite2_rca()}, by="score"
        ),
        "ensemble of Lite0, Lite2 with flips, and HOG by score": Ensemble(
            members={
                "lite0": Mirrored(features=c.lite0_rca()),
                "lite2": Mirrored(features=c.lite2_rca()),
                "hog": c.compact(Hog()),
            }
        ),
    }
    return tried


Trained = Callable[[PairImages, np.ndarray], PairImages]
"""Training pairs, and a mask of those that show a face."""


def as_they_are(pairs: PairImages, _: np.ndarray) -> PairImages:
    return pairs


def without_faces(pairs: PairImages, has_face: np.ndarray) -> PairImages:
    return chosen(pairs, np.flatnonzero(~has_face))


def with_mirror_images(pairs: PairImages, _: np.ndarray) -> PairImages:
    both = (list(side) + list(MirrorImages(side)) for side in (pairs.left, pairs.right))
    return PairImages([*pairs.ids, *(f"{one}-mirrored" for one in pairs.ids)], *both, np.tile(pairs.groups, 2))


def swapped_too(pairs: PairImages, _: np.ndarray) -> PairImages:
    left, right = list(pairs.left), list(pairs.right)
    ids = [*pairs.ids, *(f"{one}-swapped" for one in pairs.ids)]
    return PairImages(ids, left + right, right + left, np.tile(pairs.groups, 2))


OTHER_TRAINING: dict[str, Trained] = {
    "without face pairs in training": without_faces,
    "mirror images of training pairs too": with_mirror_images,
    "sides of training pairs swapped too": swapped_too,
}
"""Tried with the best single model."""


def chosen(pairs: PairImages, positions: Sequence[int] | np.ndarray) -> PairImages:
    """Some of the pairs, decoded."""
    left, right = ([side[i] for i in positions] for side in (pairs.left, pairs.right))
    return PairImages([pairs.ids[i] for i in positions], left, right, pairs.groups[np.asarray(positions, int)])


def deal(groups: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """The fold of every pair: groups in random order, each to the smallest fold so far."""
    folds, sizes = np.zeros(len(groups), int), np.zeros(count, int)
    for group in np.random.default_rng(seed).permutation(np.unique(groups)):
        members = groups == group
        smallest = sizes.argmin()
        folds[members] = smallest
        sizes[smallest] += members.sum()
    return folds


def cross_validate(
    make: Callable[[], System], pairs: PairImages, has_face: np.ndarray, *, training: Trained
) -> np.ndarray:
    """The ranks of all pairs' matches in their folds, `[2, pairs]`."""
    folds = deal(pairs.groups, NUM_FOLDS, seed=0)
    ranks = np.zeros((2, len(pairs.ids)), int)
    for fold in range(NUM_FOLDS):
        tested, rest = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        is_kept = deal(pairs.groups[rest], 10, seed=1) == 0
        train, kept = rest[~is_kept], rest[is_kept]
        system = make()
        system.fit(training(chosen(pairs, train), has_face[train]), chosen(pairs, kept))
        gallery = chosen(pairs, tested)
        for way, sides in enumerate(((gallery.left, gallery.right), (gallery.right, gallery.left))):
            ranks[way, tested] = ranking.ranks(system.score(*sides), np.arange(len(tested)))
    return ranks


def row(name: str, settings: Any, ranks: np.ndarray, has_face: np.ndarray, seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {"variant": name, "settings": settings, "seconds": round(seconds, 1)}
    for part, members in (("all", np.ones_like(has_face)), ("without_faces", ~has_face)):
        one = ranks[:, members]
        found[part] = {"pairs": int(members.sum())} | {
            metric: estimate(values.mean(axis=0))
            for metric, values in (("mrr", 1 / one), ("top1", one <= 1), ("top5", one <= 5))
        }
    return found


def line(row: dict[str, Any]) -> str:
    cells = [row["variant"]]
    for part in ("all", "without_faces"):
        mrr, top1, top5 = (row[part][metric] for metric in ("mrr", "top1", "top5"))
        cells += [f"{mrr['value']:.3f} [{mrr['low']:.3f}, {mrr['high']:.3f}]"]
        cells += [f"{100 * top1['value']:.1f}", f"{100 * top5['value']:.1f}"]
    return f"| {' | '.join(cells)} |"


def trials() -> Iterator[tuple[str, Callable[[], System], Trained]]:
    for name in variants():
        yield name, lambda name=name: variants()[name], as_they_are
    for name, training in OTHER_TRAINING.items():
        yield f"best single, {name}", lambda: load_config().lite0_rca(), training


def main() -> None:
    """Tries everything that the log does not hold, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="", help="only those whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("tll_search.json"), help="the log: read, and added to")
    arguments = parser.parse_args()
    keep_compiled_programs()
    keep_freed_memory()
    study = load_config().get_config()
    source = study.pairs.open()
    manifest = study.split.make(source)
    indices = source.indices(sorted([*manifest.train, *manifest.validation]))
    has_face = dropped(source.num_faces(), study.split.faces)[indices]
    lazy = source.images(indices)
    pairs = PairImages(lazy.ids, list(lazy.left), list(lazy.right), lazy.groups)
    log = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    done = {(one["variant"], one["settings"]) for one in log}
    for name, make, training in trials():
        settings = serialize.fingerprint(make())
        if arguments.variants not in name or (name, settings) in done:
            continue
        started = time.perf_counter()
        ranks = cross_validate(make, pairs, has_face, training=training)
        log = [one for one in log if one["variant"] != name]
        log.append(row(name, settings, ranks, has_face, time.perf_counter() - started))
        print(line(log[-1]), flush=True)
        write_results(arguments.out, pairs=len(pairs.ids), folds=NUM_FOLDS, rows=log)
    print("| variant | MRR | top-1 | top-5 | MRR without faces | top-1 | top-5 |\n|" + " --- |" * 7)
    for one in sorted(log, key=lambda one: -one["all"]["mrr"]["value"]):
        print(line(one))


if __name__ == "__main__":
    main()
