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


class Overlap(NamedTuple):
    """Which pairs share a picture with those that were seen, bool `[pairs]`."""

    equal: np.ndarray
    """The same picture, by its content."""
    similar: np.ndarray
    """No equal one, but one that is nearly the same by perceptual hashes."""
    not_looked_for: str
    """Why no similar ones were looked for; empty where they were."""


def overlap(pairs: PairSource, seen: Sequence[SeenPictures], find_similar: NearDuplicates | None) -> Overlap:
    """Compares both pictures of every pair with all that were seen."""
    num = len(pairs)
    if not seen:
        return Overlap(np.zeros(num, bool), np.zeros(num, bool), "")
    known = {content for part in seen for content in part.hashes}
    equal = np.array([not known.isdisjoint(both) for both in pairs.hashes], bool)
    if find_similar is None:
        return Overlap(equal, np.zeros(num, bool), "these pairs are compared by content alone")
    images = pairs.images(range(num))
    pictures = _Joined([images.left, images.right, *seen])
    sides = [content for side in zip(*pairs.hashes, strict=True) for content in side]
    try:
        linked = find_similar(pictures, [*sides, *(content for part in seen for content in part.hashes)])
    except PicturesGone as error:
        return Overlap(equal, np.zeros(num, bool), f"the pictures that were trained on are gone ({error})")
    across = linked[(linked[:, 0] < 2 * num) & (linked[:, 1] >= 2 * num), 0]
    similar = np.zeros(num, bool)
    similar[across % num] = True
    return Overlap(equal, similar & ~equal, "")


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
