"""Search for systems on Totally Looks Like, by cross-validation inside the training part.

TLL_DATA=FOLDER python benchmarks/tll_search.py --out benchmarks/results/tll_search.json

Five folds of the pairs that `configs/tll_systems.py` trains and chooses on, faces included; no group of duplicates is
cut, and no test pair is opened. Each fold is the others' gallery in turn, after fitting on the other four (a tenth of
them kept to choose on). Variants that the log holds already, with equal settings, are not computed again.
"""

import argparse
import importlib.util
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import write_results
from tll_search_systems import (
    VIEWS,
    BestOfMirrored,
    CellWeights,
    CellWhitening,
    QueryExpansion,
    Reciprocal,
    Transport,
    TwoCovariances,
    View,
)

from tll_jax import ranking, serialize
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.faces import dropped
from tll_jax.data.splits import Manifest
from tll_jax.devices import keep_compiled_programs
from tll_jax.evaluation.metrics import estimate
from tll_jax.files import write_arrays
from tll_jax.models.efficientnet_lite import EfficientNetLite2
from tll_jax.models.heads import Diagonal, Projection, RectifiedProjection
from tll_jax.objectives.contrastive import Contrastive
from tll_jax.objectives.info_nce import InfoNCE
from tll_jax.objectives.multi_similarity import MultiSimilarity
from tll_jax.objectives.triplet import Triplet
from tll_jax.program import start_with_huge_pages
from tll_jax.statistics import paired_difference
from tll_jax.systems.baselines import Hog, Pixels
from tll_jax.systems.csls import CSLS
from tll_jax.systems.ensemble import Ensemble
from tll_jax.systems.metric_learning import MaximumMargin, RelevantComponents
from tll_jax.systems.mirrored import Mirrored, MirrorImages
from tll_jax.typing import PairImages, System

CONFIG = Path(__file__).parents[1] / "configs" / "tll_systems.py"
NUM_FOLDS = 5
SINGLE = "4x4 standardized cells of stages 4-7, RCA whitening"
"""The system that variants called "the same" change."""
REFERENCES = (SINGLE, "Lite0, CSLS")
"""Systems with which every variant is compared on the same pairs."""


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
    families = (baselines, pooled, heads, cells, ensembles, reranked, views, whitened_cells)
    return {name: system for family in families for name, system in family(c).items()}


def standardized(c: Any, *stages: int, grid: int = 4, **fields: Any) -> Any:
    return c.lite0(*(stages or (4, 5, 6, 7)), grid=grid, standardize=True, **fields)


def linear(c: Any, features: Any) -> System:
    return c.adapter(Projection(widths=(512,)), features=features, num_steps=100)


def baselines(c: Any) -> dict[str, System]:
    """Descriptors without a network."""
    return {
        "pixels": Pixels(),
        "hog": Hog(),
        "hog, principal components": c.compact(Hog()),
        "hog, metric": RelevantComponents(features=Hog()),
        "hog, RCA whitening": c.rca_whitening(Hog(), width=256),
    }


def pooled(c: Any) -> dict[str, System]:
    """Pooled features, and closed-form maps of them."""
    tried = {f"pooled stage {stage}": c.lite0(stage) for stage in range(4, 9)}
    tried |= {f"pooled stage {stage}, principal components": c.compact(c.lite0(stage)) for stage in range(4, 9)}
    tried |= {
        f"pooled stage 7, {width} components, whitening {whitening}": c.compact(
            c.lite0(7), width=width, whitening=whitening
        )
        for width, whitening in ((128, 0.5), (320, 0.5), (256, 0.0), (256, 1.0))
    }
    return tried | {
        "pooled stages 5-7, principal components": c.compact(c.lite0(5, 6, 7)),
        "pooled stage 7 at 288 pixels, principal components": c.compact(c.lite0(7, size=288)),
        "pooled stage 7, flip at test": Mirrored(features=c.compact(c.lite0(7))),
        "pooled stage 7, maximum margin": MaximumMargin(features=c.lite0(7)),
        "pooled stage 7, RCA whitening": c.rca_whitening(c.lite0(7), width=256),
    }


def heads(c: Any) -> dict[str, System]:
    """Heads trained on pooled features."""
    one_layer = Projection(widths=(256,))
    every = {"diagonal": Diagonal(), "rectified": RectifiedProjection(), "linear": one_layer}
    every |= {
        "two layers": Projection(widths=(512, 256)),
        "mlp, batch normalization": Projection(widths=(512, 256), batch_norm=True),
    }
    losses = {"triplet": Triplet(), "contrastive": Contrastive(), "multi-similarity": MultiSimilarity()}
    tried = {f"pooled stage 7, {name} by InfoNCE": c.adapter(head) for name, head in every.items()}
    tried |= {f"pooled stage 7, linear by {name}": c.adapter(one_layer, loss) for name, loss in losses.items()}
    tried |= {
        f"pooled stage 7, linear by InfoNCE at logit scale {value}": c.adapter(one_layer, InfoNCE(logit_scale=value))
        for value in (5.0, 30.0)
    }
    return tried


def cells(c: Any) -> dict[str, System]:
    """Grids of cells, and the networks."""
    spatial = c.compact(c.lite0(5, 6, 7, grid=4), width=512)
    tried = {f"{grid}x{grid} cells of stages 5-7": c.compact(c.lite0(5, 6, 7, grid=grid), width=512) for grid in (2, 3)}
    return tried | {
        "4x4 cells of stages 5-7": spatial,
        "4x4 cells of stages 5-7, linear by InfoNCE": linear(c, spatial),
        "4x4 cells of stages 5-7, RCA whitening": c.rca_whitening(c.lite0(5, 6, 7, grid=4)),
        "4x4 standardized cells of stages 5-7, RCA whitening": c.rca_whitening(standardized(c, 5, 6, 7)),
        "4x4 standardized cells of stages 4-7, principal components": c.compact(standardized(c), width=512),
        SINGLE: c.lite0_rca(),
        "the same, 3x3 cells": c.rca_whitening(standardized(c, grid=3)),
        "the same, 5x5 cells": c.rca_whitening(standardized(c, grid=5)),
        "the same, stages 3-7": c.rca_whitening(standardized(c, 3, 4, 5, 6, 7)),
        "the same, 288 pixels": c.rca_whitening(standardized(c, size=288)),
        "the same, 256 components": c.rca_whitening(standardized(c), width=256),
        "the same, 1024 components": c.rca_whitening(standardized(c), width=1024),
        "the same, shrinkage 0.2": c.rca_whitening(standardized(c), shrinkage=0.2),
        "the same, shrinkage 1": c.rca_whitening(standardized(c), shrinkage=1.0),
        "the same, linear by InfoNCE after it": linear(c, c.lite0_rca()),
        "the same, flip at test": Mirrored(features=c.lite0_rca()),
        "the same, of EfficientNet-Lite2 at 256 pixels": c.lite2_rca(),
        "the same, of EfficientNet-Lite2 at 224 pixels": c.rca_whitening(standardized(c, backbone=EfficientNetLite2())),
        "AlexNet of LPIPS, stages 1-4, RCA whitening": c.alexnet_rca(),
        "VGG-16 of LPIPS, stages 2-4, RCA whitening": c.vgg16_rca(),
    }


def ensembles(c: Any) -> dict[str, System]:
    """CSLS, and several networks."""
    makers = {"Lite0": c.lite0_rca, "Lite2": c.lite2_rca, "AlexNet": c.alexnet_rca, "VGG-16": c.vgg16_rca}

    def together(*names: str, scaled: bool, weights: tuple[float, ...] = ()) -> Ensemble:
        members = {name: CSLS(features=makers[name]()) if scaled else makers[name]() for name in names}
        return Ensemble(members=members, weights=dict(zip(names, weights or (1.0,) * len(names), strict=True)))

    tried: dict[str, System] = {f"{name}, CSLS": CSLS(features=make()) for name, make in makers.items()}
    tried |= {
        f"Lite0, CSLS by {count} neighbors": CSLS(features=c.lite0_rca(), num_neighbors=count) for count in (5, 100)
    }
    tried |= {
        f"ensemble of {', '.join(names)}{', CSLS' * scaled}": together(*names, scaled=scaled)
        for names in (
            ("Lite0", "AlexNet"),
            ("Lite0", "Lite2", "AlexNet"),
            ("Lite0", "Lite2", "VGG-16"),
            tuple(makers),
        )
        for scaled in (False, True)
    }
    return tried | {
        "ensemble of Lite0, Lite2, half AlexNet and half VGG-16, CSLS": c.csls_ensemble(),
        "ensemble of Lite0, Lite2, half AlexNet and half VGG-16": together(
            *makers, scaled=False, weights=(1.0, 1.0, 0.5, 0.5)
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


def reranked(c: Any) -> dict[str, System]:
    """Candidates compared with each other, and a likelihood ratio in place of the cosine."""
    tried: dict[str, System] = {
        f"the same, query expansion by {count} of weight {weight}": QueryExpansion(
            features=c.lite0_rca(), count=count, weight=weight
        )
        for count, weight in ((1, 0.3), (3, 0.3), (10, 0.1))
    }
    tried |= {
        f"the same, k-reciprocal re-ranking by {count} of weight {weight}": Reciprocal(
            features=c.lite0_rca(), count=count, weight=weight
        )
        for count, weight in ((5, 0.1), (10, 0.1), (10, 0.3), (20, 0.1))
    }
    tried |= {
        f"the same, likelihood ratio of two covariances, shrinkage {value}": TwoCovariances(
            features=c.compact(standardized(c), width=512), shrinkage=value
        )
        for value in (0.3, 1.0, 3.0)
    }
    return tried


def views(c: Any) -> dict[str, System]:
    """Mirrored, gray, drawn, cut and larger pictures of both sides."""

    def with_view(view: str, weight: float) -> Ensemble:
        members = {"plain": c.lite0_rca(), view: View(features=c.lite0_rca(), view=view)}
        return Ensemble(members=members, weights={"plain": 1.0, view: weight})

    tried: dict[str, System] = {f"the same, {view}": View(features=c.lite0_rca(), view=view) for view in VIEWS}
    tried |= {f"the same, with half {view}": with_view(view, 0.5) for view in VIEWS}
    return tried | {
        "the same, the better of query and mirrored query": BestOfMirrored(features=c.lite0_rca()),
        "the same, 320 pixels": c.rca_whitening(standardized(c, size=320)),
        "the same, 224 and 320 pixels": Ensemble(
            members={"small": c.lite0_rca(), "large": c.rca_whitening(standardized(c, size=320))},
            weights={"small": 1.0, "large": 1.0},
        ),
        "the same, flip at test, CSLS": CSLS(features=Mirrored(features=c.lite0_rca())),
    }


def whitened_cells(c: Any) -> dict[str, System]:
    """The channels of all cells whitened by one map first; cells weighted, and moved."""

    def whitened(shrinkage: float = 1.0, *, jointly: bool = False) -> CellWhitening:
        return CellWhitening(features=standardized(c), shrinkage=shrinkage, jointly=jointly)

    tried: dict[str, System] = {
        f"the same, channels whitened over cells, shrinkage {value}": c.rca_whitening(whitened(value))
        for value in (0.1, 0.3, 1.0, 3.0)
    }
    tried |= {
        f"the same, channels whitened over cells, shrinkage 0.3, then {after}": c.rca_whitening(
            whitened(0.3), shrinkage=after
        )
        for after in (1.0, 2.0)
    }
    tried |= {
        f"a weight for each stage and cell, penalty {value}": CellWeights(features=whitened(), penalty=value)
        for value in (0.01, 0.1)
    }
    joint = c.rca_whitening(CellWeights(features=whitened(jointly=True), penalty=0.01))
    tried |= {
        "the same, a weight for each stage and cell first": c.rca_whitening(
            CellWeights(features=whitened(0.3), penalty=0.01)
        ),
        "the same, channels of all stages whitened together": c.rca_whitening(whitened(jointly=True)),
        "the same, channels of all stages whitened together, a weight for each cell": joint,
        "the same, channels of all stages whitened together, a weight for each cell, CSLS": CSLS(features=joint),
        "the same, channels whitened over cells, shrinkage 1.0, CSLS": CSLS(features=c.rca_whitening(whitened())),
    }
    tried |= {
        f"optimal transport of cells, distance {distance}": Transport(features=whitened(), distance=distance)
        for distance in (0.3, 1.0, 4.0)
    }
    return tried | {
        "the same, with half optimal transport of cells": Ensemble(
            members={"fixed": c.lite0_rca(), "moved": Transport(features=whitened(), distance=1.0)},
            weights={"fixed": 1.0, "moved": 0.5},
        ),
    }


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


def with_emoji(pairs: PairImages, _: np.ndarray) -> PairImages:
    emoji = EmojiPairs().open()
    images = emoji.images(range(len(emoji)))
    return PairImages(
        [*pairs.ids, *(f"emoji-{one}" for one in images.ids)],
        [*pairs.left, *images.left],
        [*pairs.right, *images.right],
        np.concatenate([pairs.groups, pairs.groups.max() + 1 + np.arange(len(emoji))]),
    )


OTHER_TRAINING: dict[str, Trained] = {
    "without face pairs in training": without_faces,
    "mirror images of training pairs too": with_mirror_images,
    "sides of training pairs swapped too": swapped_too,
    "emoji pairs too": with_emoji,
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
        found[part] = {"pairs": int(members.sum())} | {
            metric: estimate(values) for metric, values in by_pair(ranks[:, members]).items()
        }
    return found


def by_pair(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of every pair, over both directions."""
    return {
        metric: values.mean(axis=0)
        for metric, values in (("mrr", 1 / ranks), ("top1", ranks <= 1), ("top5", ranks <= 5))
    }


def differences(ranks: dict[str, np.ndarray], has_face: np.ndarray) -> dict[str, dict[str, Any]]:
    """Every variant less each of `REFERENCES` on the same pairs, as far as their ranks are kept."""
    found: dict[str, dict[str, Any]] = {}
    for name, one in ranks.items():
        found[name] = {
            reference: {
                part: {
                    metric: paired_difference(values, by_pair(ranks[reference][:, members])[metric], seed=0)._asdict()
                    for metric, values in by_pair(one[:, members]).items()
                }
                for part, members in (("all", np.ones_like(has_face)), ("without_faces", ~has_face))
            }
            for reference in REFERENCES
            if reference in ranks and reference != name
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


def test_row(name: str, source: Any, manifest: Manifest) -> dict[str, Any]:
    """The chosen variant and the references, fitted as `configs/tll_systems.py` fits and ranked on the test pairs."""
    train, validation, test = (
        source.images(source.indices(ids)) for ids in (manifest.train, manifest.validation, manifest.test)
    )
    ranks = {}
    for one in (name, *REFERENCES):
        system = variants()[one]
        system.fit(train, validation)
        scores = (system.score(test.left, test.right), system.score(test.right, test.left))
        ranks[one] = np.stack([ranking.ranks(each, np.arange(len(test.ids))) for each in scores])
    rows = {
        one: {metric: estimate(values) for metric, values in by_pair(found).items()} for one, found in ranks.items()
    }
    less = {
        one: {
            metric: paired_difference(values, by_pair(ranks[one])[metric], seed=0)._asdict()
            for metric, values in by_pair(ranks[name]).items()
        }
        for one in REFERENCES
    }
    return {"variant": name, "pairs": len(test.ids), "rows": rows, "less": less}


def main() -> None:
    """Tries everything that the log does not hold, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="", help="only those whose name this regular expression finds")
    parser.add_argument("--out", type=Path, default=Path("tll_search.json"), help="the log: read, and added to")
    parser.add_argument("--test", default="", metavar="VARIANT", help="rank the test pairs by the chosen variant, once")
    arguments = parser.parse_args()
    keep_compiled_programs()
    start_with_huge_pages()
    study = load_config().get_config()
    source = study.pairs.open()
    manifest = study.split.make(source)
    log = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
    if arguments.test:
        if "test" in log:
            sys.exit(
                f"the test pairs were ranked before, by {log['test']['variant']}: what is tested twice is chosen on"
            )
        found = test_row(arguments.test, source, manifest)
        print(json.dumps(found, indent=1))
        write_results(arguments.out, **{key: value for key, value in log.items() if key != "hardware"}, test=found)
        return
    search(arguments, source, manifest, dropped(source.num_faces(), study.split.faces), log)


def search(
    arguments: argparse.Namespace, source: Any, manifest: Manifest, faces: np.ndarray, log: dict[str, Any]
) -> None:
    """Cross-validates every variant that the log does not hold.

    Args:
      faces: which pairs of the source show a face.
    """
    indices = source.indices(sorted([*manifest.train, *manifest.validation]))
    has_face = faces[indices]
    lazy = source.images(indices)
    pairs = PairImages(lazy.ids, list(lazy.left), list(lazy.right), lazy.groups)
    rows, tested = log["rows"], {"test": log["test"]} if "test" in log else {}
    done = {(one["variant"], one["settings"]) for one in rows}
    kept = arguments.out.with_suffix(".npz")
    ranks = dict(np.load(kept)) if kept.exists() else {}
    for name, make, training in trials():
        settings = serialize.fingerprint(make())
        if not re.search(arguments.variants, name) or (
            (name, settings) in done and (name in ranks or name not in REFERENCES)
        ):
            continue
        started = time.perf_counter()
        ranks[name] = cross_validate(make, pairs, has_face, training=training).astype(np.int16)
        rows = [one for one in rows if one["variant"] != name]
        rows.append(row(name, settings, ranks[name], has_face, time.perf_counter() - started))
        print(line(rows[-1]), flush=True)
        compared = differences(ranks, has_face)
        rows = [one | ({"less": compared[one["variant"]]} if one["variant"] in compared else {}) for one in rows]
        write_arrays(kept, compressed=True, **ranks)
        write_results(arguments.out, pairs=len(pairs.ids), folds=NUM_FOLDS, rows=rows, **tested)
    print("| variant | MRR | top-1 | top-5 | MRR without faces | top-1 | top-5 |\n|" + " --- |" * 7)
    for one in sorted(rows, key=lambda one: -one["all"]["mrr"]["value"]):
        print(line(one))


if __name__ == "__main__":
    main()
