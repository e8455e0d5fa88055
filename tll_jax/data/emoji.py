"""The default data set, shipped with the package: 1,610 pairs of the same emoji drawn by two studios."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from tll_jax.data.archive import Archive
from tll_jax.data.pairs import Crop, Entry, Pairs
from tll_jax.typing import Image

ARCHIVE = Path(__file__).parent / "emoji_pairs" / "emoji-pairs.zip"
FACE_CATEGORIES = frozenset({"Smileys & Emotion", "People & Body"})
"""Categories that count as face pairs, which the face filter excludes from the test set."""


class EmojiPairSource(Pairs):
    """Emoji pairs with their categories (8) and subcategories (95), in the order of `ids`."""

    categories: list[str]
    subcategories: list[str]


@dataclass(kw_only=True)
class EmojiPairs:
    """Pairs of Noto (left) and Twemoji (right) drawings of the same emoji, 64 x 64 pixels, shipped with the package.

    Pairs of the categories "Smileys & Emotion" and "People & Body" count as having one face on each side.
    """

    def open(self) -> EmojiPairSource:
        """Opens and checks the pairs; cached for the process."""
        return _open()


def names_of(ids: Sequence[str]) -> dict[str, str]:
    """Names of pairs by id: those of emoji ("fox face") if all ids are of the package's set, else the ids."""
    known = _names()
    return {id: known[id] for id in ids} if known.keys() >= set(ids) else {id: id for id in ids}


@cache
def _names() -> dict[str, str]:
    return {row["id"]: row["name"].replace("_", " ") for row in _rows(Archive(ARCHIVE))}


def _rows(archive: Archive) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(archive.read("pairs.csv").decode())))


@cache
def _open() -> EmojiPairSource:
    archive = Archive(ARCHIVE)
    rows = _rows(archive)
    find_faces = partial(_faces_by_category, [row["category"] for row in rows])
    entries = [Entry(row["id"], Crop(f"left/{row['id']}.webp"), Crop(f"right/{row['id']}.webp")) for row in rows]
    # The images ship with the package, so that a single broken one means a broken installation.
    source = EmojiPairSource(archive, entries, find_faces=find_faces, max_broken_fraction=0.0)
    source.categories = [row["category"] for row in rows]
    source.subcategories = [row["subcategory"] for row in rows]
    return source


def _faces_by_category(categories: Sequence[str], images: Sequence[Image], hashes: Sequence[str]) -> np.ndarray:
    del images, hashes
    return np.repeat([int(category in FACE_CATEGORIES) for category in categories], 2)
