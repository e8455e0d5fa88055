"""Near-duplicate images: re-encoded, resized or recolored copies whose bytes differ."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image as PillowImage

from tll_jax.cache import cache_folder
from tll_jax.data.findings import cached_findings
from tll_jax.errors import InvalidValue
from tll_jax.typing import Image

ROWS_AT_ONCE = 1024


@dataclass(kw_only=True)
class NearDuplicates:
    """Near-duplicate detection with two 64-bit perceptual hashes.

    Two images count as near-duplicates if both hashes are within their Hamming distance: at most `phash_bits` differing
    bits of pHash (frequencies) and at most `dhash_bits` of dHash (differences of neighboring pixels).

    The defaults come from inspecting the closest of the 5.1 million cross-pair image combinations in 1,599 pairs of
    Totally Looks Like: all 10 within (8, 13) show the same image, and so do 13 of the 17 within (10, 14). A false
    positive costs one training pair; a false negative is a leak into the test set. Crops and mirror images are not
    detected, and flat drawings such as emoji are too similar for these hashes. Hashes are cached by image content.

    Source: the package imagehash (Buchner 2013).
    """

    phash_bits: int = 10
    dhash_bits: int = 14

    def check(self) -> None:
        for name in ("phash_bits", "dhash_bits"):
            if not 0 <= getattr(self, name) <= 32:
                raise InvalidValue(f"{name} is {getattr(self, name)}; it must be from 0 to 32")

    def __call__(self, images: Sequence[Image], hashes: Sequence[str]) -> np.ndarray:
        """Index pairs of near-duplicate images, int `[found, 2]`, the smaller index first."""
        bits, found = _bits(self.hashes_of(images, hashes)), []
        for start in range(0, len(bits), ROWS_AT_ONCE):
            first, second = np.nonzero(self._close(bits[start : start + ROWS_AT_ONCE], bits))
            first += start
            found.append(np.stack([first, second], axis=1)[first < second])
        return np.concatenate(found) if found else np.zeros((0, 2), np.int64)

    def hashes_of(self, images: Sequence[Image], hashes: Sequence[str]) -> list[str]:
        """Perceptual hashes of all images, computed only for content that is not cached yet."""
        path = cache_folder() / "perceptual-hashes.json"
        return cached_findings(
            lambda: perceptual_hash, images, hashes, path, what="perceptual hashes", check=_check_hash
        )

    def are_close(self, ours: Sequence[str], theirs: Sequence[str]) -> np.ndarray:
        """Mask of the images in `ours` with a near-duplicate in `theirs`, bool `[ours]`, from perceptual hashes."""
        rows, others = _bits(ours), _bits(theirs)
        found = [
            self._close(rows[start : start + ROWS_AT_ONCE], others).any(axis=1)
            for start in range(0, len(rows), ROWS_AT_ONCE)
        ]
        return np.concatenate(found) if found else np.zeros(0, bool)

    def _close(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        differing = np.bitwise_count(rows[:, None] ^ others[None])
        return (differing[..., 0] <= self.phash_bits) & (differing[..., 1] <= self.dhash_bits)


def _bits(perceptual: Sequence[str]) -> np.ndarray:
    return np.array([(int(one[:16], 16), int(one[16:], 16)) for one in perceptual], np.uint64).reshape(-1, 2)


def perceptual_hash(image: Image) -> str:
    """pHash followed by dHash, as 16 hexadecimal digits each."""
    picture = PillowImage.fromarray(image)
    return f"{imagehash.phash(picture)}{imagehash.dhash(picture)}"


def _check_hash(value: object) -> None:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{32}", value):
        raise InvalidValue(f"{value!r}; it must be 32 hexadecimal digits")


def count_duplicates(groups: np.ndarray) -> dict[str, int]:
    """Number of pairs that share a (nearly) identical image with another pair, and number of groups of such pairs."""
    sizes = np.unique(groups, return_counts=True)[1]
    return {"pairs": int(sizes[sizes > 1].sum()), "groups": int((sizes > 1).sum())}
