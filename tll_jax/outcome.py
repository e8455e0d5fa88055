"""What a study came to: where the ranks of every system lie in its folder, and the rows and comparisons of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tll_jax import config, ranking, stages
from tll_jax.contracts import ImageSource, System
from tll_jax.data.duplicates import count_duplicates
from tll_jax.data.faces import RULES, dropped
from tll_jax.data.imaging import BrokenImage, read_image, shrink, write_image
from tll_jax.data.pairs import SIDES
from tll_jax.data.splits import Manifest
from tll_jax.errors import InvalidValue
from tll_jax.evaluation import metrics
from tll_jax.evaluation.ensemble import has_seed, kind_of, with_seed
from tll_jax.files import write_json
from tll_jax.report.study_folder import PICTURES, picture_path, read_picture_index

FACES_INCLUDED = "faces-included"
MAX_PICTURE_SIZE = 128
NUM_EXCLUDED_SHOWN = 24


def seeded_pretrainings(name: str, arm: config.Arm, study: config.Study) -> list[tuple[config.Arm, str]]:
    """The arm with each of its pretraining seeds, and where the ranks of its frozen backbone lie.

    Fine-tuning seed number i stands on pretraining number i modulo their count.
    """
    if arm.pretrain is None or study.num_pretrainings == 1:
        return [(arm, f"systems/{name}-frozen")]
    first = arm.pretrain.seed
    return [
        (
            dataclasses.replace(arm, pretrain=dataclasses.replace(arm.pretrain, seed=seed)),
            f"systems/{name}-frozen/seed-{seed}",
        )
        for seed in range(first, first + study.num_pretrainings)
    ]


def seeded_systems(name: str, system: System, seeds: Sequence[int]) -> list[tuple[str, System]]:
    """Where the ranks of a system lie, and what is fitted: once, or once a seed if the system has a seed."""
    if not has_seed(system):
        return [(f"systems/{name}", system)]
    return [(f"systems/{name}/seed-{seed}", with_seed(system, seed)) for seed in seeds]


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """What the run folders say of every system that was evaluated, arms with their frozen backbones included."""

    folders: dict[str, list[str]]
    """Of a system's seeds, whether they were evaluated or not."""
    ranks: dict[str, np.ndarray]
    """`[seeds, 2, pairs]`: left to right, right to left."""
    kinds: dict[str, str]
    frozen: dict[str, list[str]]
    """The folders of frozen backbones alone."""

    @classmethod
    def read(cls, study: config.Study, context: stages.Context, runs: Mapping[str, Sequence[str]]) -> "Ranked":
        """Raises ValueError where nothing has been evaluated."""
        systems = {
            name: [folder for folder, _ in seeded_systems(name, system, study.seeds)]
            for name, system in study.systems.items()
        }
        frozen = {
            f"{name}-frozen": [folder for _, folder in seeded_pretrainings(name, arm, study)]
            for name, arm in study.arms.items()
        }
        folders = systems | frozen | {name: list(found) for name, found in runs.items()}
        ranks: dict[str, np.ndarray] = {}
        for name, of_seeds in folders.items():
            with_ranks = [folder for folder in of_seeds if (context.workdir / folder / "ranks.npz").exists()]
            if with_ranks:
                ranks[name] = np.stack([stages.read_ranks(context.workdir / folder) for folder in with_ranks])
        if not ranks:
            raise InvalidValue("no system has been evaluated yet: add evaluate to --stages")
        kinds = {
            name: "arm" if name in runs else "frozen" if name in frozen else kind_of(study.systems[name])
            for name in ranks
        }
        return cls(folders=folders, ranks=ranks, kinds=kinds, frozen=frozen)


def collect(
    study: config.Study,
    context: stages.Context,
    manifest: Manifest,
    ranked: Ranked,
    sources: Mapping[str, ImageSource],
) -> dict[str, Any]:
    """The rows and comparisons of the results file."""
    num_test = len(manifest.test)
    found, kinds = ranked.ranks, ranked.kinds
    among_all = {
        name: stages.read_ranks(folder)[None]
        for name in study.faces_included
        if ((folder := context.workdir / "systems" / name / FACES_INCLUDED) / "ranks.npz").exists()
    }
    probed = {
        name: [one for folder in folders if (one := stages.read_probe(context.workdir / folder)) is not None]
        for name, folders in ranked.frozen.items()
    }
    planned = [pair for pair in study.planned if set(pair) <= set(found)]
    taken_out = excluded_ids(study, context)
    return {
        "study": study.name,
        "data": {
            "pairs": len(context.pairs),
            "skipped": [list(item) for item in context.pairs.skipped],
            "train": len(manifest.train),
            "validation": len(manifest.validation),
            "test": num_test,
            "rule": manifest.rule,
            "duplicates": count_duplicates(context.pairs.groups),
            "excluded": {RULES[study.split.faces]: len(taken_out)} if taken_out else {},
            "pretraining_saw": {name: what_pretraining_saw(arm, sources.get(name)) for name, arm in study.arms.items()},
        },
        "protocol": {
            "queries": num_test,
            "candidates": num_test,
            "paper_k": ranking.paper_k(num_test),
        },
        "rows": [
            metrics.chance_row(num_test),
            *(metrics.metrics_row(name, kinds[name], values) for name, values in found.items()),
        ],
        "faces_included": [
            metrics.chance_row(len(context.pairs)),
            *(metrics.metrics_row(name, kinds[name], ranks) for name, ranks in among_all.items()),
        ]
        if among_all
        else [],
        "probes": {name: accuracies for name, accuracies in probed.items() if accuracies},
        "comparisons": metrics.compare(found, planned=planned),
        "significance": metrics.significance(found),
        "runs": ranked.folders,
    }


def what_pretraining_saw(arm: config.Arm, source: ImageSource | None) -> str:
    """A sentence for the results: which images, and whether the test pairs' were among them."""
    if arm.weights is not None:
        return f"another's images: ready-made weights, {arm.weights.find().name}"
    if arm.pretrain is None or source is None:
        return "nothing: random initial weights"
    tests = "the test pairs' images included" if arm.pretrain.sees_test_images else "no image of a test pair"
    return f"{len(source):,} images, {tests}"


def write_pictures(study: config.Study, context: stages.Context, manifest: Manifest) -> None:
    """The test pictures, and some pairs that the face filter took out, small, for the report.

    A picture of the same pairs that is there and can be read is kept.
    """
    taken_out = excluded_ids(study, context)
    spread = taken_out[:: max(len(taken_out) // NUM_EXCLUDED_SHOWN, 1)][:NUM_EXCLUDED_SHOWN]
    index, digest = context.workdir / PICTURES, context.pairs.digest()
    are_of_these = read_picture_index(context.workdir).get("pairs") == digest
    if not are_of_these:
        # Cut short from here on, the pictures are of no known pairs.
        index.unlink(missing_ok=True)
    for identities, excluded in ((manifest.test, False), (spread, True)):
        for position, identity in zip(context.pairs.indices(identities), identities, strict=True):
            paths = [picture_path(context.workdir, side, identity, excluded=excluded) for side in SIDES]
            if are_of_these and all(map(_is_picture, paths)):
                continue
            pair = context.pairs[position]
            for path, image in zip(paths, (pair.left, pair.right), strict=True):
                write_image(path, shrink(image, MAX_PICTURE_SIZE))
    write_json(index, {"pairs": digest, "excluded": spread})


def _is_picture(path: Path) -> bool:
    try:
        read_image(path)
    except (BrokenImage, OSError):
        return False
    return True


def excluded_ids(study: config.Study, context: stages.Context) -> list[str]:
    """Pairs that may not be test pairs because of the faces they show; empty where the split does not look at faces."""
    if study.split.faces == "include":
        return []
    out = dropped(context.pairs.num_faces(), study.split.faces)
    return [context.pairs.ids[index] for index in np.flatnonzero(out)]
