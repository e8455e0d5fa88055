"""Neighbor lists of a folder between runs: where little is new among many pictures, only that is compared with all."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tll_jax.errors import UserError
from tll_jax.files import read_arrays, write_arrays
from tll_jax.gallery.neighbors import Neighbors, Points, updated, within

logger = logging.getLogger(__name__)

LEAST_PICTURES = 20_000
"""Lists of fewer are made anew in less time than they take to read."""
MOST_NEW = 0.2
"""Fraction of new pictures above which making all lists anew is faster."""


class KnownLists:
    """Neighbor lists in a file of a store's folder, by model and roots; without a folder, none are stored."""

    def __init__(self, folder: Path | None, model: str, roots: Sequence[str]) -> None:
        digest = hashlib.blake2b("\0".join([model, *sorted(roots)]).encode("utf-8", "surrogateescape"), digest_size=16)
        self.path = None if folder is None else folder / f"neighbors-{digest.hexdigest()}.npz"

    def within(self, contents: np.ndarray, points: Points, k: int, tell: Callable[[float], None]) -> Neighbors:
        """The lists of `neighbors.within`, updated from stored ones where that is faster; stores them."""
        if self.path is None or len(points) < LEAST_PICTURES:
            return within(points, k, tell=tell)
        keys = _keys(contents)
        found = self._from_known(keys, points, k) or within(points, k, tell=tell)
        try:
            write_arrays(self.path, keys=keys, indices=found.indices, cosines=found.cosines, bound=found.bound)
        except OSError as error:
            logger.warning("neighbor lists are not kept: %s", error)
        return found

    def _from_known(self, keys: np.ndarray, points: Points, k: int) -> Neighbors | None:
        assert self.path is not None
        try:
            kept = read_arrays(self.path)
            old = Neighbors(indices=kept["indices"], cosines=kept["cosines"], bound=kept["bound"])
            former = kept["keys"]
        except (UserError, OSError, KeyError):
            return None
        places = np.searchsorted(keys, former)
        places = np.where(keys[np.minimum(places, len(keys) - 1)] == former, places, -1).astype(np.int32)
        num_new = len(keys) - int(np.sum(places >= 0))
        if old.indices.shape[1] != k or num_new > MOST_NEW * len(keys):
            return None
        return updated(old, places, points)


def _keys(contents: np.ndarray) -> np.ndarray:
    """Sorted contents as text of fixed width, which NumPy compares fast."""
    return contents.astype("S32")
