"""Results of a study: table rows and comparisons computed from ranks, and the pictures for the report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tll_jax import ranking
from tll_jax.data.duplicates import count_duplicates
from tll_jax.data.faces import RULES, dropped
from tll_jax.data.imaging import BrokenImage, read_image, shrink, write_image
from tll_jax.data.pairs import SIDES
from tll_jax.data.splits import Manifest
from tll_jax.evaluation import metrics
from tll_jax.study.evaluate import Evaluations
from tll_jax.study.folder import (
    PICTURES,
    picture_path,
    read_picture_index,
    starting_points,
    write_picture_index,
)
from tll_jax.study.settings import Model, Study
from tll_jax.study.train import Context
from tll_jax.typing import ImageSource

MAX_PICTURE_SIZE = 128
NUM_EXCLUDED_SHOWN = 24


def collect(
    study: Study,
    context: Context,
    manifest: Manifest,
    evaluations: Evaluations,
    ranks: Mapping[str, np.ndarray],
    sources: Mapping[str, ImageSource],
) -> dict[str, Any]:
    """The content of results.json: protocol, rows, comparisons and keys.

    Args:
      ranks: int `[seeds, 2, pairs]` of every row that was evaluated.
      sources: pretraining images by model.
    """
    num_test = len(manifest.test)
    among_all = evaluations.ranks_among_all()
    planned = [pair for pair in study.planned if set(pair) <= set(ranks)]
    starts = starting_points({name: len(of_system) for name, of_system in ranks.items()})
    taken_out = excluded_ids(study, context)
    places = {
        name: [one.folder.relative_to(context.workdir).as_posix() for one in seeds]
        for name, seeds in evaluations.rows.items()
    }
    return {
        "study": study.name,
        "data": {
            "pairs": len(context.pairs),
            "skipped": [list(item) for item in context.pairs.skipped],
            "train": len(manifest.train),
            "validation": len(manifest.validation),
            "test": num_test,
            "left_out": len(context.pairs) - len(manifest.train) - len(manifest.validation) - num_test,
            "rule": manifest.rule,
            "duplicates": count_duplicates(context.pairs.groups),
            "excluded": {RULES[study.split.faces]: len(taken_out)} if taken_out else {},
            "pretraining_saw": {
                name: what_pretraining_saw(model, sources.get(name)) for name, model in study.models.items()
            },
        },
        "protocol": {
            "queries": num_test,
            "candidates": num_test,
            "paper_k": ranking.munteanu_k(num_test),
        },
        "rows": [
            metrics.chance_row(num_test),
            *(
                metrics.metrics_row(name, evaluations.kind(name, study), of_system, starts=starts.get(name))
                for name, of_system in ranks.items()
            ),
        ],
        "faces_included": [
            metrics.chance_row(len(context.pairs)),
            *(metrics.metrics_row(name, evaluations.kind(name, study), ranks) for name, ranks in among_all.items()),
        ]
        if among_all
        else [],
        "probes": evaluations.accuracies(),
        "comparisons": metrics.compare(ranks, planned=planned, starts=starts),
        "significance": metrics.significance(ranks),
        "runs": places,
        "keys": {
            place: one.key
            for name in ranks
            for place, one in zip(places[name], evaluations.rows[name], strict=True)
            if one.is_there
        },
    }


def what_pretraining_saw(model: Model, source: ImageSource | None) -> str:
    """A phrase for the results: the images of pretraining, and whether the test pairs' images were among them."""
    if model.weights is not None:
        return f"another's images: pretrained weights, {model.weights.find().name}"
    if model.pretrain is None or source is None:
        return "nothing: random initial weights"
    tests = "the test pairs' images included" if model.pretrain.sees_test_images else "no image of a test pair"
    return f"{len(source):,} images, {tests}"


def write_pictures(study: Study, context: Context, manifest: Manifest) -> None:
    """Writes small copies of the test pictures, and of some pairs that the face filter dropped, for the report.

    Readable pictures of the same pairs from an earlier run are not written again.
    """
    taken_out = excluded_ids(study, context)
    spread = taken_out[:: max(len(taken_out) // NUM_EXCLUDED_SHOWN, 1)][:NUM_EXCLUDED_SHOWN]
    index, digest = context.workdir / PICTURES, context.pairs.digest()
    are_of_these = read_picture_index(context.workdir).get("pairs") == digest
    if not are_of_these:
        # Removed first: if this is interrupted, the folder holds pictures of both sets of pairs.
        index.unlink(missing_ok=True)
    for identities, excluded in ((manifest.test, False), (spread, True)):
        for position, identity in zip(context.pairs.indices(identities), identities, strict=True):
            paths = [picture_path(context.workdir, side, identity, excluded=excluded) for side in SIDES]
            if are_of_these and all(map(_is_picture, paths)):
                continue
            pair = context.pairs[position]
            for path, image in zip(paths, (pair.left, pair.right), strict=True):
                write_image(path, shrink(image, MAX_PICTURE_SIZE))
    write_picture_index(context.workdir, pairs=digest, excluded=spread)


def _is_picture(path: Path) -> bool:
    try:
        read_image(path)
    except (BrokenImage, OSError):
        return False
    return True


def excluded_ids(study: Study, context: Context) -> list[str]:
    """Ids of pairs that the face rule keeps out of the test set; empty if the split includes faces."""
    if study.split.faces == "include":
        return []
    out = dropped(context.pairs.num_faces(), study.split.faces)
    return [context.pairs.ids[index] for index in np.flatnonzero(out)]
