"""Pictures that models and systems were trained, validated or pretrained on; scores on those would be too high."""

import contextlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tll_jax import serialize
from tll_jax.data.duplicates import NearDuplicates
from tll_jax.data.folder import ImagesOfPairs
from tll_jax.data.seen import Overlap, PicturesGone, SeenHashes, SeenPictures, overlap_of_images, perceptual_hashes
from tll_jax.data.splits import Manifest
from tll_jax.errors import UserError
from tll_jax.model_files import is_model_file, model_path, read_model_file
from tll_jax.study.folder import SPLIT, RunFolder, StudyFolder, read_settings
from tll_jax.study.settings import Model
from tll_jax.typing import PairSource, System


class Learned(NamedTuple):
    """The pictures that a system was trained, validated or pretrained on, as far as they are known."""

    pictures: Sequence[SeenPictures | SeenHashes]
    not_known: list[str]
    """Sentences for the user on what is not known."""

    def hashes(self, find_similar: NearDuplicates | None) -> dict[str, str]:
        """Perceptual hashes by content hashes, as a model file holds them.

        A perceptual hash is empty where the picture is gone, or where `find_similar` is None.
        """
        kept: dict[str, str] = {}
        for part in self.pictures:
            perceptual = [""] * len(part.hashes)
            with contextlib.suppress(PicturesGone):
                if find_similar is not None:
                    perceptual = perceptual_hashes(part, find_similar)
            kept |= dict(zip(part.hashes, perceptual, strict=True))
        return kept


def learned_from(path: Path, kind: str, system: System | None) -> Learned:
    """The pictures that a system has learned from, by its model file or the split of its study.

    Args:
      path: model file or run folder.
      kind: as `load_system` returns it.
      system: likewise.
    """
    if is_model_file(model_path(path)):
        file = read_model_file(model_path(path))
        kept = SeenHashes(hashes=file.pictures, perceptual=file.perceptual)
        return Learned([kept] if kept.hashes else [], list(file.provenance.get("not_compared", [])))
    if kind != "model" and system is not None and system.fits == "nothing":
        return Learned([], [])
    return learned_in_study(path)


def learned_in_study(folder: Path) -> Learned:
    """The pictures of the training and validation pairs of a run, and those that a model was pretrained on."""
    run = RunFolder(folder)
    path = run.split()
    if path is None:
        return Learned([], [_unknown_because(f"{folder} lies in no study")])
    manifest = Manifest.load(path)
    if not manifest.hashes:
        return Learned([], [_unknown_because(f"{path} has no content hashes")])

    def open_pairs() -> PairSource:
        return serialize.from_json(read_settings(run.study)["settings"]["pairs"]).open()

    pictures = [SeenPictures(hashes=_hashes(manifest, [*manifest.train, *manifest.validation]), open=open_pairs)]
    if run.is_of_a_system:
        return Learned(pictures, [])
    before = _pretrained_on(serialize.from_json(run.settings()["settings"]), manifest)
    return Learned([*pictures, *before.pictures], before.not_known)


def learned_by_study(study: StudyFolder) -> Learned:
    """The pictures that any system of a study has learned from, whatever its seed."""
    reason = "a study keeps no config.json, or no split.json with content hashes"
    unknown = Learned([], [_unknown_because(reason, who="a system")])
    try:
        settings = serialize.from_json(read_settings(study.path)["settings"])
        manifest = Manifest.load(study.path / SPLIT)
    except (UserError, OSError, KeyError):
        return unknown
    if not manifest.hashes:
        return unknown
    runs = [RunFolder(run).split() for name in study.models for run in study.runs(name)]
    manifests = [Manifest.load(path) for path in runs if path is not None]
    if any(name in study.systems and system.fits != "nothing" for name, system in settings.systems.items()):
        # All seeds together train and choose on the same pairs.
        manifests.append(manifest)
    ids = sorted({identity for one in manifests for identity in (*one.train, *one.validation)})
    parts = [_pretrained_on(model, manifest) for model in settings.models.values()]
    fitted = [SeenPictures(hashes=_hashes(manifest, ids), open=cache(settings.pairs.open))] if ids else []
    pictures = [*fitted, *(picture for part in parts for picture in part.pictures)]
    return Learned(pictures, list(dict.fromkeys(words for part in parts for words in part.not_known)))


def seen_test_pairs(study: StudyFolder, learned: Learned) -> Overlap:
    """Masks of the test pairs of a study, in the order of its ids, that show a picture that was learned from."""
    num = len(study.ids)
    if not learned.pictures:
        return Overlap(np.zeros(num, bool), np.zeros(num, bool), "")
    manifest, pairs = Manifest.load(study.path / SPLIT), read_settings(study.path)["settings"]["pairs"]
    hashes = _hashes(manifest, study.ids)
    settings = serialize.from_json(pairs)
    shown = SeenPictures(hashes=hashes, open=settings.open)
    found = overlap_of_images(shown, hashes, learned.pictures, getattr(settings, "duplicates", None))
    # Left and right picture of each pair in turn.
    equal, similar = (np.any(which.reshape(num, 2), axis=1) for which in (found.equal, found.similar))
    return Overlap(equal, similar & ~equal, found.not_looked_for)


def overlap_facts(
    found: Overlap, known: Learned, keep: np.ndarray, *, include_training: bool, who: str
) -> dict[str, Any]:
    """Counts of the pairs to be scored that show a learned picture, as numbers and sentences.

    Args:
      keep: bool `[pairs]`: the pairs that would be scored otherwise.
      who: the subject of the sentences, such as "it".

    Returns:
      "pairs", "equal" and "similar" are counts, None where unknown; "left_out" is a bool, "words" the sentences.
    """
    equal, similar = (int(np.sum(which & keep)) for which in (found.equal, found.similar))
    counts: dict[str, Any] = {
        "pairs": equal + similar,
        "equal": equal,
        "similar": similar,
        "left_out": not include_training,
    }
    if not known.pictures:
        unknown = dict.fromkeys(("pairs", "equal", "similar")) if known.not_known else {}
        return counts | unknown | {"words": list(known.not_known)}
    seen, count = equal + similar, int(keep.sum())
    of = f"of {count:,} pair{'' if count == 1 else 's'}"
    how = f"({equal:,} the same by content, {similar:,} nearly the same)"
    words = list(known.not_known)
    if found.not_looked_for:
        words.insert(0, f"Pictures that are nearly the same were not looked for: {found.not_looked_for}.")
        how, counts["similar"] = "(the same by content)", None
    if seen and include_training:
        words.insert(0, f"{seen:,} {of} show a picture that {who} has learned from {how}: expect less of new pairs.")
    elif seen:
        words.insert(0, f"{seen:,} {of} are left out: they show a picture that {who} has learned from {how}.")
    else:
        words.insert(0, f"None {of} shows a picture that {who} has learned from.")
    return counts | {"words": words}


def _pretrained_on(model: Model, manifest: Manifest) -> Learned:
    if model.pretrain is None:
        return Learned([], [])
    images = model.pretrain.images
    if not isinstance(images, ImagesOfPairs):
        return Learned([], ["The images of its pretraining, which are no pairs, were not compared."])
    held_out = frozenset() if model.pretrain.sees_test_images else frozenset(manifest.test)
    try:
        hashes = images.open(held_out=held_out).hashes
    except (UserError, OSError) as error:
        return Learned([], [f"The images of its pretraining could not be compared: {error}."])
    return Learned([SeenPictures(hashes=hashes, open=images.pairs.open)], [])


def _hashes(manifest: Manifest, ids: Sequence[str]) -> list[str]:
    return [content for identity in ids for content in manifest.hashes[identity]]


def _unknown_because(reason: str, *, who: str = "it") -> str:
    return f"Whether {who} has learned from some of them cannot be told: {reason}."
