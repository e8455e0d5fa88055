"""Look-alike pairs of any layout: validated when opened, decoded on access."""

import hashlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tqdm

from tll_jax.data.archive import Archive, named
from tll_jax.data.imaging import BrokenImage, content_hash, decode
from tll_jax.errors import InvalidValue
from tll_jax.typing import FaceDetector, Image, Pair, PairImages, Skipped

logger = logging.getLogger(__name__)

SIDES = ("left", "right")


@dataclass(frozen=True)
class Crop:
    """An image in an archive: a whole file, or columns `left` to `right` of its first `height` rows."""

    name: str
    columns: tuple[int, int] | None = None
    height: int | None = None

    def read(self, archive: Archive) -> Image:
        """Decodes the image; raises BrokenImage."""
        return self._decode(self._load(archive))

    def check(self, archive: Archive) -> str:
        """SHA-256 of the encoded image and the crop, after checking that it decodes; raises BrokenImage."""
        data = self._load(archive)
        self._decode(data)
        return hashlib.sha256(f"{self.columns} {self.height} ".encode() + data).hexdigest()

    def _load(self, archive: Archive) -> bytes:
        try:
            return archive.read(self.name)
        except (KeyError, OSError) as error:
            raise BrokenImage(f"{self.name}: cannot be read ({error})") from error

    def _decode(self, data: bytes) -> Image:
        image = decode(data, self.name)
        if self.columns is None:
            return image
        left, right = self.columns
        if image.shape[1] < right:
            raise BrokenImage(f"{self.name}: {image.shape[1]} pixels wide; a joint image has at least {right}")
        return np.ascontiguousarray(image[: self.height, left:right])


@dataclass(frozen=True)
class Entry:
    """A pair as listed by a layout."""

    id: str
    left: Crop
    right: Crop


class ImageSequence(Sequence[Image]):
    """Sequence of images that are decoded on access.

    Sequences may share `known`, a cache of content hashes, so that no image is decoded twice to be hashed.
    """

    def __init__(self, archive: Archive, crops: Sequence[Crop], known: dict[Crop, str] | None = None) -> None:
        self.archive = archive
        self.crops = crops
        self._known = {} if known is None else known

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return ImageSequence(self.archive, self.crops[index], self._known)
        return self.crops[index].read(self.archive)

    def content_hashes(self) -> list[str]:
        """Content hashes of the pixels of all images (see `imaging.content_hash`)."""
        new = [crop for crop in dict.fromkeys(self.crops) if crop not in self._known]
        hashes = in_threads(lambda crop: content_hash(crop.read(self.archive)), new, "hash images")
        self._known.update(zip(new, hashes, strict=True))
        return [self._known[crop] for crop in self.crops]


FindDuplicates = Callable[[Sequence[Image], Sequence[str]], np.ndarray]
"""Function from images and their content hashes to int `[found, 2]`, the index pairs of near-duplicates."""


class Pairs:
    """The readable pairs of an archive; unreadable ones are listed in `skipped` with the reason.

    Every image is decoded once on opening, so that a broken one is skipped and counted instead of stopping a run later.

    Args:
      entries: listed pairs, and those that the layout already skips.

    Raises:
      ValueError: nothing is readable, an id is repeated or contains a NUL, more than `max_broken_fraction` of the pairs
        are broken, or `face_overrides` contains the id of an unlisted pair.
    """

    def __init__(
        self,
        archive: Archive,
        entries: Sequence[Entry | Skipped],
        *,
        find_faces: FaceDetector | None = None,
        face_overrides: Mapping[str, list[int | None]] | None = None,
        find_duplicates: FindDuplicates | None = None,
        max_broken_fraction: float = 0.05,
    ) -> None:
        self.archive = archive
        self._find_faces = find_faces
        self._find_duplicates = find_duplicates
        self.face_overrides = dict(face_overrides or {})
        self.skipped = [entry for entry in entries if isinstance(entry, Skipped)]
        listed = [entry for entry in entries if isinstance(entry, Entry)]
        self._known_hashes: dict[Crop, str] = {}
        _check_ids(archive, listed)
        checked = _hash_all(archive, listed)
        self.entries: list[Entry] = []
        self.hashes: list[tuple[str, str]] = []
        """SHA-256 hashes of the left and the right encoded image of each pair."""
        for entry, result in zip(listed, checked, strict=True):
            if isinstance(result, str):
                self.skipped.append(Skipped(entry.id, result))
            else:
                self.entries.append(entry)
                self.hashes.append(result)
        total = len(self.entries) + len(self.skipped)
        if not total:
            raise InvalidValue(f"{archive.path} lists no pairs. Is the data whole? Download or extract it again")
        if not self.entries or len(self.skipped) > max_broken_fraction * total:
            raise InvalidValue(
                f"{len(self.skipped)} of {total} pairs in {archive.path} cannot be used, more than the "
                f"{max_broken_fraction:.0%} allowed; the first: {named(self.skipped)}. Is the data whole? "
                "Download or extract it again"
            )
        if self.skipped:
            logger.warning(
                "%s: %d of %d pairs are skipped: %s",
                archive.path,
                len(self.skipped),
                total,
                named(self.skipped),
            )
        self.ids = [entry.id for entry in self.entries]
        self._position = {identity: index for index, identity in enumerate(self.ids)}
        unknown = sorted(self.face_overrides.keys() - {*self.ids, *(item.name for item in self.skipped)})
        if unknown:
            raise InvalidValue(
                f"the face overrides name {len(unknown)} pairs that {archive.path} does not list, such as "
                f"{unknown[0]!r}"
            )

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Pair:
        entry = self.entries[index]
        return Pair(entry.left.read(self.archive), entry.right.read(self.archive), int(self.groups[index]))

    def indices(self, ids: Iterable[str]) -> np.ndarray:
        """Indices of pairs from their ids; raises KeyError for an unknown id."""
        return np.array([self._position[identity] for identity in ids], dtype=np.int64)

    def images(self, indices: Iterable[int]) -> PairImages:
        """Pairs at `indices` as two aligned sequences that decode on access."""
        indices = list(indices)
        chosen = [self.entries[index] for index in indices]
        return PairImages(
            ids=[entry.id for entry in chosen],
            left=ImageSequence(self.archive, [entry.left for entry in chosen], self._known_hashes),
            right=ImageSequence(self.archive, [entry.right for entry in chosen], self._known_hashes),
            groups=self.groups[indices],
        )

    def digest(self) -> str:
        """SHA-256 over all ids and image contents."""
        lines = (f"{identity} {left} {right}" for identity, (left, right) in zip(self.ids, self.hashes, strict=True))
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def num_faces(self) -> np.ndarray:
        """Number of faces in the left and the right image of each pair, int64 `[len, 2]`; cached.

        Raises:
          ValueError: the pair set has no face detector.
        """
        return self._faces

    @cached_property
    def groups(self) -> np.ndarray:
        """Group number of each pair, int32 `[len]`: equal for pairs that share a (nearly) identical image."""
        linked = None if self._find_duplicates is None else self._find_duplicates(*self._sides())
        return group_by_shared(self.hashes, [] if linked is None else linked // 2)

    def _sides(self) -> tuple[ImageSequence, list[str]]:
        """All images and their content hashes; image 2i is the left and 2i + 1 the right one of pair i."""
        crops = [crop for entry in self.entries for crop in (entry.left, entry.right)]
        return ImageSequence(self.archive, crops), [content for both in self.hashes for content in both]

    @cached_property
    def _faces(self) -> np.ndarray:
        if self._find_faces is None:
            raise InvalidValue(
                f"{self.archive.path} has no face detector: set `faces`, or do not exclude faces from the split"
            )
        faces = np.array(self._find_faces(*self._sides())).reshape(-1, 2)
        for index, identity in enumerate(self.ids):
            for side, count in enumerate(self.face_overrides.get(identity, ())):
                if count is not None:
                    faces[index, side] = count
        return faces


def group_by_shared(hashes: Sequence[tuple[str, str]], linked: Iterable[Sequence[int] | np.ndarray] = ()) -> np.ndarray:
    """Connected components, int32 `[pairs]`: equal for pairs that share an image hash or are joined by `linked`."""
    parent = list(range(len(hashes)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[str, int] = {}
    for index, both in enumerate(hashes):
        for content in both:
            parent[root(index)] = root(first.setdefault(content, index))
    for one, other in linked:
        parent[root(int(one))] = root(int(other))
    return np.array([root(index) for index in range(len(hashes))], dtype=np.int32)


def _hash_all(archive: Archive, entries: Sequence[Entry]) -> list[tuple[str, str] | str]:
    def check(entry: Entry) -> tuple[str, str] | str:
        try:
            return entry.left.check(archive), entry.right.check(archive)
        except BrokenImage as error:
            return str(error)

    return in_threads(check, entries, "check pairs")


def check_fraction(max_broken_fraction: float) -> None:
    """Checks that a fraction is in [0, 1)."""
    if not 0 <= max_broken_fraction < 1:
        raise InvalidValue(f"max_broken_fraction is {max_broken_fraction}; it must be from 0 to below 1")


def in_threads(function: Callable[[Any], Any], items: Sequence[Any], label: str) -> list[Any]:
    """Results of `function` for all items in order, computed in threads, with a progress bar on a terminal."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        quiet = not sys.stderr.isatty()
        return list(tqdm.tqdm(pool.map(function, items), label, len(items), disable=quiet, delay=1, leave=False))


def _check_ids(archive: Archive, entries: Sequence[Entry]) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry.id in seen:
            raise InvalidValue(f"{archive.path} lists the pair {entry.id!r} twice; ids must be unique")
        if "\0" in entry.id:
            # NumPy strips trailing NULs from strings.
            raise InvalidValue(f"{archive.path} lists the pair {entry.id!r}; an id must not hold a NUL")
        seen.add(entry.id)
