"""What a trained model or a fitted system says of pairs and images that its study did not have."""

import dataclasses
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tll_jax import ranking, serialize
from tll_jax.data.course_edition import Candidates, read_candidates, write_submission
from tll_jax.data.faces import dropped
from tll_jax.data.folder import ImagesOfPairs
from tll_jax.data.pairs import in_threads
from tll_jax.data.seen import Overlap, SeenPictures, overlap
from tll_jax.data.splits import Manifest
from tll_jax.errors import InvalidValue, MissingFile, UserError
from tll_jax.evaluation import metrics
from tll_jax.evaluation.embed import Embedding
from tll_jax.model_files import model_path, read_model_file
from tll_jax.report import numbers
from tll_jax.settings import validate
from tll_jax.study.folder import RunFolder, read_settings
from tll_jax.study.load import MODEL_FILE, load_system
from tll_jax.typing import PairImages, PairSource, System

logger = logging.getLogger(__name__)


class Learned(NamedTuple):
    """What a run was trained, validated or pretrained on, as far as it can be told."""

    pictures: list[SeenPictures]
    untold: list[str]
    """Sentences that say what cannot be told."""


def learned_from(folder: Path, kind: str, system: System) -> Learned:
    """The pictures that what `load_system` found in a run folder has learned from, by the split of its study."""
    if kind == MODEL_FILE:
        return _told_by_file(folder)
    if kind != "model" and _learns_nothing(system):
        return Learned([], [])
    return learned_in_study(folder)


def learned_in_study(folder: Path) -> Learned:
    """The pictures of the training and validation pairs of a run, and those that a model was pretrained on."""
    run = RunFolder(folder)
    path = run.split()
    if path is None:
        return Learned([], [f"Whether it has learned from some of them cannot be told: {folder} lies in no study."])
    manifest = Manifest.load(path)
    if not manifest.hashes:
        return Learned([], [f"Whether it has learned from some of them cannot be told: {path} has no content hashes."])
    hashes = [content for identity in (*manifest.train, *manifest.validation) for content in manifest.hashes[identity]]

    def open_pairs() -> PairSource:
        return serialize.from_json(read_settings(run.study)["settings"]["pairs"]).open()

    learned = Learned([SeenPictures(hashes=hashes, open=open_pairs)], [])
    model = None if run.is_of_a_system else serialize.from_json(run.settings()["settings"])
    if model is None or model.pretrain is None:
        return learned
    images = model.pretrain.images
    if not isinstance(images, ImagesOfPairs):
        return learned._replace(untold=["The images of its pretraining, which are no pairs, were not compared."])
    held_out = frozenset() if model.pretrain.sees_test_images else frozenset(manifest.test)
    try:
        hashes = images.open(held_out=held_out).hashes
    except (UserError, OSError) as error:
        return learned._replace(untold=[f"The images of its pretraining could not be compared: {error}."])
    return learned._replace(pictures=[*learned.pictures, SeenPictures(hashes=hashes, open=images.pairs.open)])


def _told_by_file(path: Path) -> Learned:
    file = read_model_file(model_path(path))

    def open_pairs() -> PairSource:
        raise MissingFile("a model file holds none")

    told = file.provenance.get("not_compared", [])
    return Learned([SeenPictures(hashes=file.pictures, open=open_pairs)] if file.pictures else [], list(told))


def _learns_nothing(system: Any) -> bool:
    """Whether a system that is not a trained model says the same without having seen any pair."""
    nothing = PairImages(ids=[], left=[], right=[], groups=np.zeros(0, np.int32))
    try:
        dataclasses.replace(system).fit(nothing, nothing)
    except ValueError:
        return False
    return True


def evaluate_on(
    folder: Path, pairs_settings: Any, *, exclude_faces: bool, include_training: bool = False
) -> dict[str, Any]:
    """Scores a trained model or a fitted system on any pair set: all its pairs are queries and each other's candidates.

    Pairs that share a picture with those that it was trained, validated or pretrained on are left out, unless
    `include_training`; the figures would be too good for them.

    Returns:
      The same row that a study's results hold, with chance beside it, and under "learned_from" how many such pairs
      there are, None where it cannot be told.

    Raises:
      ValueError: no pair is left.
    """
    if exclude_faces:
        # Before minutes of reading, whether faces can be found.
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
    told = _learned_words(found, known, keep, include_training=include_training)
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
        "learned_from": told,
        "protocol": {"queries": num, "candidates": num, "paper_k": ranking.munteanu_k(num), "queried": "pair"},
        "rows": [metrics.chance_row(num), metrics.metrics_row(name, kind, ranks[None])],
        "comparisons": [],
    }


def _learned_words(overlap: Overlap, known: Learned, keep: np.ndarray, *, include_training: bool) -> dict[str, Any]:
    """How many of the pairs that are to be scored were learned from, in numbers and sentences."""
    equal, similar = (int(np.sum(which & keep)) for which in (overlap.equal, overlap.similar))
    words, seen, of = list(known.untold), equal + similar, f"of {numbers.plural(int(keep.sum()), 'pair')}"
    how = f"({equal:,} the same by content, {similar:,} nearly the same)"
    if known.pictures and overlap.not_looked_for:
        words.insert(0, f"Pictures that are nearly the same were not looked for: {overlap.not_looked_for}.")
        how = "(the same by content)"
    if seen and include_training:
        words.insert(0, f"{seen:,} {of} show a picture that it has learned from {how}: expect less of new pairs.")
    elif seen:
        words.insert(0, f"{seen:,} {of} are left out: they show a picture that it has learned from {how}.")
    elif known.pictures:
        words.insert(0, f"None {of} shows a picture that it has learned from.")
    counts = {"pairs": seen, "equal": equal, "similar": None if overlap.not_looked_for else similar}
    told = counts if known.pictures or not known.untold else dict.fromkeys(counts)
    return told | {"left_out": not include_training, "words": words}


def submit(folder: Path, candidates_path: Path, out: Path) -> int:
    """Writes what a trained model or a fitted system says of the course edition's test; see `data/course_edition.py`.

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
    """Warns of pictures, equal by content, that the run has learned from."""
    known = {content for part in learned.pictures for content in part.hashes}
    sides = (candidates.left, candidates.right)
    crops = [(crop, side.archive) for side in sides for crop in side.crops]
    hashes = in_threads(lambda item: item[0].check(item[1]), crops, "compare pictures")
    if count := sum(content in known for content in hashes):
        logger.warning("%s has learned from %d of the %d pictures that it is asked about", folder, count, len(hashes))
