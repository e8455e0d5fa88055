"""Which pairs of a set show pictures that something was trained on, whatever the pictures are called."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tll_jax.data.duplicates import NearDuplicates
from tll_jax.errors import MissingFile, UserError
from tll_jax.typing import Image, PairSource


class PicturesGone(MissingFile):
    """Pictures that were trained on cannot be looked at any more; says why."""


@dataclass(kw_only=True)
class SeenPictures(Sequence[Image]):
    """Pictures of pairs by their content hashes; the pairs are opened when the first picture is asked for.

    Raises:
      PicturesGone: on a picture that is not there any more.
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
    """Pictures of which hashes alone are kept, as a model file keeps them; nothing has to be opened."""

    hashes: list[str]
    """Of their content."""
    perceptual: list[str]
    """As `perceptual_hash` gives them, of those that could be looked at."""


class Overlap(NamedTuple):
    """Which pairs share a picture with those that were seen, bool `[pairs]`."""

    equal: np.ndarray
    """The same picture, by its content."""
    similar: np.ndarray
    """No equal one, but one that is nearly the same by perceptual hashes."""
    not_looked_for: str
    """Why no similar ones were looked for; empty where they were."""


Seen = Sequence[SeenPictures | SeenHashes]


def overlap(pairs: PairSource, seen: Seen, find_similar: NearDuplicates | None) -> Overlap:
    """Compares both pictures of every pair with all that were seen."""
    sides = [content for side in zip(*pairs.hashes, strict=True) for content in side]
    images = pairs.images(range(len(pairs)))
    found = overlap_of_images(_Joined([images.left, images.right]), sides, seen, find_similar)
    # First all left pictures, then all right ones.
    equal, similar = (np.any(which.reshape(2, -1), axis=0) for which in (found.equal, found.similar))
    return Overlap(equal, similar & ~equal, found.not_looked_for)


def overlap_of_images(
    images: Sequence[Image], hashes: Sequence[str], seen: Seen, find_similar: NearDuplicates | None
) -> Overlap:
    """The same of single pictures, bool `[images]`, such as those of a gallery: `hashes` are of their content."""
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
    """Of all pictures that were seen, looked at where that was not done before.

    Raises:
      PicturesGone: they cannot be looked at any more.
    """
    if isinstance(seen, SeenPictures):
        return find_similar.hashes_of(seen, seen.hashes)
    if seen.hashes and not seen.perceptual:
        raise PicturesGone("a model file that holds hashes of content alone")
    return seen.perceptual


class _Joined(Sequence[Image]):
    """Some sequences of pictures, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Image]]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: Any) -> Any:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[part][index - self._ends[part]]
