"""Class folders as TFDS data sets, checked image by image and written shard by shard.

TFDS's own builders of Imagenette and ImageNet need TensorFlow to list files, to unpack them, and to shuffle more than
one gibibyte. These builders write data sets of the same names, versions and features without it.
"""

import io
import os
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
import tqdm

from tll_jax.data.archive import Archive
from tll_jax.data.imaging import MAX_BYTES, START_BYTES, BrokenImage, decode
from tll_jax.data.tfds_builders import check_fraction_of_broken
from tll_jax.errors import FileProblem, InvalidValue
from tll_jax.typing import Skipped

SPLIT_OF_FOLDER = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
SHARD_BYTES = 128 << 20
"""Target size of a shard in bytes; a shard is held in memory while it is written."""


class Part(NamedTuple):
    """Images of one split: their names in the archive and their class names."""

    archive: Archive
    names: list[str]
    classes: list[str]


def find_parts(archive: Archive) -> dict[str, Part]:
    """Splits of an archive with `train/CLASS/IMAGE.jpg` and `val/CLASS/IMAGE.jpg` at any depth.

    Raises:
      ValueError: there are none.
    """
    parts: dict[str, Part] = {}
    for name in archive.images:
        folders = PurePosixPath(name).parts[:-1]
        split = SPLIT_OF_FOLDER.get(folders[-2]) if len(folders) >= 2 else None
        if split is not None:
            part = parts.setdefault(split, Part(archive, [], []))
            part.names.append(name)
            part.classes.append(folders[-1])
    if not parts:
        raise InvalidValue(
            f"{archive.path} holds no pictures in class folders: it should hold train/CLASS/IMAGE.jpg and "
            f"val/CLASS/IMAGE.jpg, and holds {archive.summary}"
        )
    return parts


class TarFiles(Archive):
    """Random access to the files of an uncompressed tar and, as `INNER/NAME`, of the tars inside it, without unpacking.

    Raises:
      FileNotFoundError: nothing exists at `path`.
      ValueError: the file is not a tar, or is a truncated one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(path, "r:") as outer:
                for member in filter(tarfile.TarInfo.isfile, outer):
                    if member.name.endswith(".tar"):
                        with tarfile.open(fileobj=outer.extractfile(member), mode="r:") as inner:
                            folder = member.name.removesuffix(".tar")
                            self._add(inner, f"{folder}/", member.offset_data)
                    else:
                        self._places[member.name] = (member.offset_data, member.size)
        except tarfile.TarError as error:
            raise InvalidValue(f"{path} is not a complete tar file ({error}): download or copy it again") from error
        self.names = sorted(self._places)

    def _add(self, inner: tarfile.TarFile, prefix: str, start: int) -> None:
        for member in filter(tarfile.TarInfo.isfile, inner):
            self._places[prefix + member.name] = (start + member.offset_data, member.size)

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def read(self, name: str) -> bytes:
        """Bytes of one file; raises OSError if it is larger than `MAX_BYTES`."""
        offset, size = self._places[name]
        if size > MAX_BYTES:
            raise FileProblem(f"{size:,} bytes; at most {MAX_BYTES:,} are read")
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def start(self, name: str) -> bytes:
        """First bytes of one file."""
        return self.read(name)[:START_BYTES]

    def size(self, name: str) -> int:
        """Size of one file in bytes."""
        return self._places[name][1]


class ClassFolders(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builder of all readable images of `parts`, in order, with class number and file name.

    `class_names` determines the class numbers; by default class names are sorted.
    """

    def __init__(
        self,
        *,
        name: str,
        version: str,
        parts: Mapping[str, Part],
        class_names: Sequence[str] | None = None,
        **settings: Any,
    ) -> None:
        self.name = name
        self.VERSION = tfds.core.Version(version)
        self.parts = parts
        self.class_names = class_names or sorted({name for part in parts.values() for name in part.classes})
        self.broken: list[Skipped] = []
        super().__init__(**settings)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.name} as found in class folders. For research only.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "label": tfds.features.ClassLabel(names=self.class_names),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            # Written to disk at the end; `broken` is filled until then.
            metadata=tfds.core.MetadataDict(
                listed={split: len(part.names) for split, part in self.parts.items()}, broken=self.broken
            ),
        )

    def _download_and_prepare(self, **arguments: Any) -> None:
        self.total = sum(len(part.names) for part in self.parts.values())
        quiet = not sys.stderr.isatty()
        with tqdm.tqdm(desc=f"check and write {self.name}", total=self.total, disable=quiet) as self.bar:
            super()._download_and_prepare(**arguments)

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator[Any]]]]:
        del dl_manager
        return {
            split: [partial(self._examples, part, block) for block in _blocks(part)]
            for split, part in self.parts.items()
        }

    def _examples(self, part: Part, block: range) -> Iterator[tuple[int, dict[str, Any]]]:
        def check(index: int) -> bytes | Skipped:
            name = part.names[index]
            try:
                data = part.archive.read(name)
                decode(data, name)
            except (BrokenImage, OSError) as error:
                return Skipped(name, str(error))
            return data

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for index, image in zip(block, pool.map(check, block), strict=True):
                self.bar.update()
                if isinstance(image, Skipped):
                    self.broken.append(image)
                    check_fraction_of_broken(self.broken, self.total, str(part.archive.path))
                    continue
                # File names may contain bytes that are not UTF-8.
                file_name = PurePosixPath(part.names[index]).name.encode("utf-8", "surrogateescape")
                yield index, {"image": io.BytesIO(image), "label": part.classes[index], "file_name": file_name}


def _blocks(part: Part) -> list[range]:
    blocks, start, size = [], 0, 0
    for index, name in enumerate(part.names):
        size += part.archive.size(name)
        if size >= SHARD_BYTES or index == len(part.names) - 1:
            blocks.append(range(start, index + 1))
            start, size = index + 1, 0
    return blocks
