"""Evaluation of trained models and fitted systems on pairs from outside their study."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from tll_jax import ranking, serialize
from tll_jax.data.course_edition import Candidates, read_candidates, write_submission
from tll_jax.data.faces import dropped
from tll_jax.data.pairs import in_threads
from tll_jax.data.seen import overlap
from tll_jax.errors import InvalidValue
from tll_jax.evaluation import metrics
from tll_jax.evaluation.embed import Embedding
from tll_jax.settings import validate
from tll_jax.study.learned import Learned, learned_from, overlap_facts
from tll_jax.study.load import load_system

logger = logging.getLogger(__name__)


def evaluate_on(
    folder: Path, pairs_settings: Any, *, exclude_faces: bool, include_training: bool = False
) -> dict[str, Any]:
    """Evaluates a trained model or a fitted system on any set of pairs: each left image among all right ones, and back.

    Args:
      folder: run folder, or a model file.
      pairs_settings: settings of the pairs, such as `TotallyLooksLike(path=...)`.
      exclude_faces: leaves out pairs with a face on either side.
      include_training: also scores pairs that share a picture with those that the model was trained, validated or
        pretrained on, for which the metrics are too high.

    Returns:
      A row as in a study's results, a chance row, and under "learned_from" the number of pairs with learned pictures,
      None where it is unknown.

    Raises:
      ValueError: no pair is left.
    """
    if exclude_faces:
        # Checked before minutes of reading: the face detector may be missing.
        validate(pairs_settings, path="--pairs")
    pairs = pairs_settings.open()
    keep = np.ones(len(pairs), bool)
    if exclude_faces:
        keep &= ~dropped(pairs.num_faces(), "none")
    if not keep.any():
        raise InvalidValue("no pair is left to score: every pair shows a face")
    name, kind, system = load_system(folder)
    known = learned_from(folder, kind, system)
    found = overlap(pairs, known.pictures, getattr(pairs_settings, "duplicates", None))
    counted = overlap_facts(found, known, keep, include_training=include_training, who="it")
    if not include_training:
        keep &= ~(found.equal | found.similar)
    if not keep.any():
        raise InvalidValue(
            f"no pair is left to score: {folder} was trained, validated or pretrained on all of them. Give other "
            "pairs, or --include-training"
        )
    images = pairs.images(np.flatnonzero(keep))
    if isinstance(system, Embedding):
        left, right = (system.embedder(system.variables, side) for side in (images.left, images.right))
        ranks = ranking.pair_ranks(left, right, mesh=system.embedder.mesh)
    else:
        sides = (images.left, images.right), (images.right, images.left)
        ranks = np.stack([ranking.ranks(system.score(*way), np.arange(len(images.ids))) for way in sides])
    num = len(images.ids)
    return {
        "run": str(folder),
        "pairs": serialize.to_json(pairs_settings),
        "exclude_faces": exclude_faces,
        "skipped": [list(item) for item in pairs.skipped],
        "learned_from": counted,
        "protocol": {"queries": num, "candidates": num, "paper_k": ranking.munteanu_k(num), "queried": "pair"},
        "rows": [metrics.chance_row(num), metrics.metrics_row(name, kind, ranks[None])],
        "comparisons": [],
    }


def submit(folder: Path, candidates_path: Path, out: Path) -> int:
    """Writes a submission for the course edition's test set; see `data/course_edition.py`.

    Args:
      candidates_path: its test_candidates.csv, beside test/left and test/right.
      out: the CSV of confidences to write.

    Returns:
      The number of queries.
    """
    candidates = read_candidates(candidates_path)
    _, kind, system = load_system(folder)
    _warn_of_learned(folder, learned_from(folder, kind, system), candidates)
    scores = system.score(candidates.left, candidates.right)
    write_submission(out, candidates.names, np.take_along_axis(scores, candidates.columns, axis=1))
    return len(candidates.names)


def _warn_of_learned(folder: Path, learned: Learned, candidates: Candidates) -> None:
    """Warns of test pictures that are equal by content to pictures that the run has learned from."""
    known = {content for part in learned.pictures for content in part.hashes}
    sides = (candidates.left, candidates.right)
    crops = [(crop, side.archive) for side in sides for crop in side.crops]
    hashes = in_threads(lambda item: item[0].check(item[1]), crops, "compare pictures")
    if count := sum(content in known for content in hashes):
        logger.warning("%s has learned from %d of the %d pictures that it is asked about", folder, count, len(hashes))
