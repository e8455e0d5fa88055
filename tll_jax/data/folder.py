"""Single images for pretraining: class folders, a folder without classes, or the images of pairs."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from tll_jax.data.archive import Archive, as_listed
from tll_jax.data.imaging import decode
from tll_jax.data.pairs import Pairs, check_fraction
from tll_jax.data.skipping import SkippingSource
from tll_jax.errors import InvalidValue
from tll_jax.files import expand
from tll_jax.renamed import with_first_names
from tll_jax.serialize import renamed
from tll_jax.typing import LabeledImage, PairSettings, Skipped


@dataclass(kw_only=True)
class Folder:
    """Base class of image folders: images below `subfolder` of the folder or zip at `path`.

    Environment `$VARIABLES` in `path` are expanded. Broken images are replaced, up to `max_broken_fraction` of all (see
    `SkippingSource`).
    """

    path: str
    subfolder: str = ""
    max_broken_fraction: float = field(default=0.05, metadata=renamed("max_broken_share"))

    def check(self) -> None:
        check_fraction(self.max_broken_fraction)


@with_first_names
@dataclass(kw_only=True)
class ClassFolder(Folder):
    """Images in one folder per class; classes are numbered in the order of their names.

    `subfolder` is the folder that contains the class folders, such as "imagenette/train".
    """

    def open(self, *, held_out: frozenset[str], shortest_side: int | None = None) -> "FolderSource":
        """Lists the images, which are decoded on access. `held_out`, a set of pair ids, is ignored."""
        del held_out
        archive = Archive(expand(self.path))
        inside = ((name, below.split("/")) for name, below in _images_below(archive, self.subfolder))
        listed = [(name, parts[0]) for name, parts in inside if len(parts) == 2]
        if not listed:
            raise InvalidValue(
                f"{archive.path} holds no images in class folders below {self.subfolder or 'its top'!r}; it should "
                f"hold {PurePosixPath(self.subfolder) / 'CLASS' / 'IMAGE.jpg'}, and holds {archive.summary}"
            )
        names, classes = zip(*listed, strict=True)
        return FolderSource(
            archive, names, classes=classes, max_broken_fraction=self.max_broken_fraction, shortest_side=shortest_side
        )


@with_first_names
@dataclass(kw_only=True)
class ImageFolder(Folder):
    """Images without classes, at any depth."""

    def open(self, *, held_out: frozenset[str], shortest_side: int | None = None) -> "FolderSource":
        """Lists the images, which are decoded on access. `held_out`, a set of pair ids, is ignored."""
        del held_out
        archive = Archive(expand(self.path))
        names = [name for name, _ in _images_below(archive, self.subfolder)]
        if not names:
            raise InvalidValue(
                f"{archive.path} holds no images below {self.subfolder or 'its top'!r}; it holds {archive.summary}"
            )
        return FolderSource(archive, names, max_broken_fraction=self.max_broken_fraction, shortest_side=shortest_side)


def _images_below(archive: Archive, folder: str) -> Iterator[tuple[str, str]]:
    """Names of the images below a folder of the archive ("" for its top), and their names relative to that folder."""
    prefix = f"{as_listed(str(PurePosixPath(folder)))}/" if folder else ""
    return ((name, name[len(prefix) :]) for name in archive.images if name.startswith(prefix))


class FolderSource(SkippingSource):
    """Random access to the listed images and their class numbers, -1 without classes.

    JPEGs may be decoded at 1/2, 1/4 or 1/8 of their size as long as their shorter side keeps `shortest_side` pixels.
    """

    def __init__(
        self,
        archive: Archive,
        names: Sequence[str],
        *,
        classes: Sequence[str] | None = None,
        max_broken_fraction: float = 0.05,
        shortest_side: int | None = None,
    ) -> None:
        super().__init__(str(archive.path), max_broken_fraction=max_broken_fraction)
        self.archive = archive
        self.names = list(names)
        self.classes = sorted(set(classes or ()))
        self.num_classes = len(self.classes)
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.labels = [-1] * len(names) if classes is None else [numbers[name] for name in classes]
        self.shortest_side = shortest_side

    def __len__(self) -> int:
        return len(self.names)

    def name(self, position: int) -> str:
        return self.names[position]

    def read(self, position: int) -> LabeledImage:
        name = self.names[position]
        image = decode(self.archive.read(name), name, shortest_side=self.shortest_side)
        return LabeledImage(image, self.labels[position])

    def digest(self) -> str:
        """SHA-256 over the names, sizes in bytes and labels of all images; independent of the archive's location."""
        lines = "\n".join(
            f"{name} {self.archive.size(name)} {label}" for name, label in zip(self.names, self.labels, strict=True)
        )
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(kw_only=True)
class ImagesOfPairs:
    """Both images of every pair that is not held out, as single images.

    `label` names the attribute of the pair source that holds the classes, such as "subcategories" or "categories" of
    the emoji pairs; "none" for pairs without classes.
    """

    pairs: PairSettings
    label: Literal["none", "categories", "subcategories"] = "none"

    def open(self, *, held_out: frozenset[str], shortest_side: int | None = None) -> "ImagesOfPairsSource":
        """Opens the pairs, whose images are decoded at full size.

        Raises:
          ValueError: the pairs have no such classes.
        """
        del shortest_side
        pairs = self.pairs.open()
        assert isinstance(pairs, Pairs)
        names = [""] * len(pairs) if self.label == "none" else getattr(pairs, self.label, None)
        if names is None:
            raise InvalidValue(f"the pairs in {pairs.archive.path} have no {self.label}; use label='none'")
        return ImagesOfPairsSource(pairs, names, held_out)


class ImagesOfPairsSource:
    """Random access to the images of pairs: 2k is the left, 2k + 1 the right one of the k-th pair not held out."""

    def __init__(self, pairs: Pairs, names: list[str], held_out: frozenset[str]) -> None:
        # Every pair that shares an image with a held-out pair is held out too. Ids that these pairs lack belong to
        # another pair set, whose images are not in this one.
        groups = {int(pairs.groups[index]) for index in pairs.indices(held_out & set(pairs.ids))}
        kept = [index for index in range(len(pairs)) if int(pairs.groups[index]) not in groups]
        if not kept:
            raise InvalidValue("no picture is left to pretrain on: every pair is held out")
        self._images = pairs.images(kept)
        self.hashes = [content for index in kept for content in pairs.hashes[index]]
        """SHA-256 hashes of the encoded images, in index order."""
        classes = sorted({name for name in names if name})
        numbers = {name: number for number, name in enumerate(classes)}
        self._labels = [numbers.get(names[index], -1) for index in kept]
        self.num_classes = len(classes)
        self.skipped: list[Skipped] = []
        self._digest = _digest_of(pairs.digest(), [pairs.ids[index] for index in kept], self._labels)

    def __len__(self) -> int:
        return 2 * len(self._labels)

    def __getitem__(self, index: int) -> LabeledImage:
        side = self._images.right if index % 2 else self._images.left
        return LabeledImage(side[index // 2], self._labels[index // 2])

    def digest(self) -> str:
        """SHA-256 over the content of the pairs, the ids in use and their labels."""
        return self._digest


def _digest_of(pairs_digest: str, ids: list[str], labels: list[int]) -> str:
    lines = [pairs_digest, *(f"{identity} {label}" for identity, label in zip(ids, labels, strict=True))]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
