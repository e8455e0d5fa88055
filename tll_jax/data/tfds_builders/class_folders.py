"""Class folders as TFDS datasets, checked picture by picture and written shard by shard.

TFDS's own builders of Imagenette and ImageNet need TensorFlow to list files, to unpack them, and to shuffle more than
a gibibyte; what is written here has their names, versions and features, and needs none.
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
"""A shard is held in memory while it is written."""


class Part(NamedTuple):
    """The pictures of one split: their names in the archive, and the name of each one's class."""

    archive: Archive
    names: list[str]
    classes: list[str]


def find_parts(archive: Archive) -> dict[str, Part]:
    """The splits of an archive that holds `train/CLASS/IMAGE.jpg` and `val/CLASS/IMAGE.jpg`, however deep.

    Raises:
      ValueError: it holds none.
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
    """The files of an uncompressed tar and of the tars in it, as `INNER/NAME`, read where they lie in the file.

    Raises:
      FileNotFoundError: nothing is at `path`.
      ValueError: the file is not a tar, or one cut short.
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
        """The content of one file; raises OSError where it is larger than `MAX_BYTES`."""
        offset, size = self._places[name]
        if size > MAX_BYTES:
            raise FileProblem(f"{size:,} bytes; at most {MAX_BYTES:,} are read")
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def start(self, name: str) -> bytes:
        """The first bytes of one file."""
        return self.read(name)[:START_BYTES]

    def size(self, name: str) -> int:
        """Bytes of one file."""
        return self._places[name][1]


class ClassFolders(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Every readable picture of `parts`, in their order, with the number of its class and its file name.

    `class_names` fixes the numbers; by default the classes are numbered in the order of their names.
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
            # Written to disk when all is done; `broken` is filled until then.
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
                # Names may hold bytes that are no text.
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
