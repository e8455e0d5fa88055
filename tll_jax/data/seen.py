"""Overlap of a data set with training images, by content and by near-duplicate detection."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tll_jax.data.duplicates import NearDuplicates
from tll_jax.errors import MissingFile, UserError
from tll_jax.typing import Image, PairSource


class PicturesGone(MissingFile):
    """Error for training images that are no longer available; the message gives the reason."""


@dataclass(kw_only=True)
class SeenPictures(Sequence[Image]):
    """Training images of pairs, by content hash; the pairs are opened on first access.

    Raises:
      PicturesGone: on access to an image that is no longer available.
    """

    hashes: list[str]
    open: Callable[[], PairSource]
    _pairs: PairSource | None = field(default=None, init=False, repr=False)
    _places: dict[str, tuple[int, int]] = field(default_factory=dict, init=False, repr=False)
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.hashes)

    def __getitem__(self, index: Any) -> Any:
        with self._lock:
            if self._pairs is None:
                self._open()
        if self.hashes[index] not in self._places:
            raise PicturesGone("the pictures have changed since")
        assert self._pairs is not None
        position, side = self._places[self.hashes[index]]
        images = self._pairs.images([position])
        return (images.left, images.right)[side][0]

    def _open(self) -> None:
        try:
            self._pairs = self.open()
        except (UserError, OSError) as error:
            raise PicturesGone(str(error)) from error
        for position, both in enumerate(self._pairs.hashes):
            self._places |= {content: (position, side) for side, content in enumerate(both)}


@dataclass(frozen=True, kw_only=True)
class SeenHashes:
    """Hashes of training images without the images, as stored in a model file."""

    hashes: list[str]
    """Content hashes."""
    perceptual: list[str]
    """Perceptual hashes (see `perceptual_hash`) of the images that were available."""


class Overlap(NamedTuple):
    """Masks of the pairs that share an image with the training set, bool `[pairs]`."""

    equal: np.ndarray
    """Pairs with an image of identical content."""
    similar: np.ndarray
    """Pairs without an identical image but with a near-duplicate by perceptual hashes."""
    not_looked_for: str
    """Reason why near-duplicates were not searched; empty if they were."""


Seen = Sequence[SeenPictures | SeenHashes]


def overlap(pairs: PairSource, seen: Seen, find_similar: NearDuplicates | None) -> Overlap:
    """Overlap of pairs with all training images; both images of every pair are compared."""
    sides = [content for side in zip(*pairs.hashes, strict=True) for content in side]
    images = pairs.images(range(len(pairs)))
    found = overlap_of_images(_Joined([images.left, images.right]), sides, seen, find_similar)
    # The first half are the left images, the second half the right ones.
    equal, similar = (np.any(which.reshape(2, -1), axis=0) for which in (found.equal, found.similar))
    return Overlap(equal, similar & ~equal, found.not_looked_for)


def overlap_of_images(
    images: Sequence[Image], hashes: Sequence[str], seen: Seen, find_similar: NearDuplicates | None
) -> Overlap:
    """Overlap of single images, such as a gallery, with all training images, bool `[images]`.

    Args:
      hashes: content hashes of `images`.
      find_similar: detector of near-duplicates; None to compare by content alone.
    """
    nothing = np.zeros(len(hashes), bool)
    if not seen:
        return Overlap(nothing, nothing.copy(), "")
    known = {content for part in seen for content in part.hashes}
    equal = np.array([content in known for content in hashes], bool)
    if find_similar is None:
        return Overlap(equal, nothing, "these pairs are compared by content alone")
    try:
        theirs = [one for part in seen for one in perceptual_hashes(part, find_similar)]
        similar = find_similar.are_close(find_similar.hashes_of(images, hashes), theirs)
    except PicturesGone as error:
        return Overlap(equal, nothing, f"the pictures that were trained on are gone ({error})")
    return Overlap(equal, similar & ~equal, "")


def perceptual_hashes(seen: SeenPictures | SeenHashes, find_similar: NearDuplicates) -> list[str]:
    """Perceptual hashes of all training images, computed unless they are cached.

    Raises:
      PicturesGone: the images are no longer available.
    """
    if isinstance(seen, SeenPictures):
        return find_similar.hashes_of(seen, seen.hashes)
    if seen.hashes and not seen.perceptual:
        raise PicturesGone("a model file that holds hashes of content alone")
    return seen.perceptual


class _Joined(Sequence[Image]):
    """Concatenation of sequences of images."""

    def __init__(self, parts: Sequence[Sequence[Image]]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: Any) -> Any:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[part][index - self._ends[part]]
