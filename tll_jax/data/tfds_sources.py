"""Images and pairs from prepared TFDS data sets, with random access and without TensorFlow."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from tll_jax.data.archive import Archive
from tll_jax.data.duplicates import NearDuplicates
from tll_jax.data.faces import read_overrides
from tll_jax.data.imaging import START_BYTES, decode
from tll_jax.data.pairs import Crop, Entry, Pairs
from tll_jax.data.skipping import SkippingSource
from tll_jax.data.tfds_builders import MAX_BROKEN_FRACTION
from tll_jax.errors import FileProblem, InvalidValue, MissingFile
from tll_jax.files import expand
from tll_jax.typing import FaceDetector, LabeledImage, Skipped

INCOMPLETE = "incomplete."
"""Prefix of folder names that TFDS is still writing."""


def data_root(data_dir: str | None) -> Path:
    """Folder of TFDS data sets: `data_dir`, `$TFDS_DATA_DIR` or ~/tensorflow_datasets."""
    return expand(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))


def find_prepared(name: str, data_dir: str | None) -> Path | None:
    """Folder of a prepared data set, or None. `name` is NAME, NAME/CONFIG or NAME/CONFIG/VERSION.

    Raises:
      ValueError: several configs or versions match.
    """
    found = sorted(path.parent for path in (data_root(data_dir) / name).glob("**/dataset_info.json"))
    found = [folder for folder in found if not folder.name.startswith(INCOMPLETE)]
    if len(found) > 1:
        raise InvalidValue(
            f"{data_root(data_dir)} holds {', '.join(map(str, found))}: give the name up to the one meant"
        )
    return found[0] if found else None


def check_format(info: tfds.core.DatasetInfo, folder: Path) -> None:
    """Checks that a data set is stored as ArrayRecord; raises ValueError otherwise."""
    if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise InvalidValue(
            f"{folder} is written as {info.file_format.value}, which is not read here: prepare it with "
            "file_format='array_record', in another folder of datasets"
        )


class Records:
    """Random access to the examples of a split, as mappings of features with images still encoded.

    Reading is thread-safe. An instance can be pickled; the copy reopens its files.

    Raises:
      FileNotFoundError: the data set is not prepared.
      ValueError: the data set has no such split, or is not stored as ArrayRecord.
    """

    def __init__(self, name: str, split: str, data_dir: str | None) -> None:
        folder = find_prepared(name, data_dir)
        if folder is None:
            raise MissingFile(
                f"{name} is not prepared in {data_root(data_dir)}: run `tll prepare {name.split('/')[0]}`, or for sets "
                "that it does not know TFDS's download_and_prepare with file_format='array_record', or give the "
                "data_dir that holds it"
            )
        self.folder = folder
        self.split = split
        self._open()

    def _open(self) -> None:
        builder = tfds.builder_from_directory(self.folder)
        self.info = builder.info
        check_format(self.info, self.folder)
        if self.split.split("[")[0] not in self.info.splits:
            raise InvalidValue(f"{self.folder} has no split {self.split!r}; it has {', '.join(self.info.splits)}")
        features = self.info.features.items()
        pictures = [name for name, feature in features if isinstance(feature, tfds.features.Image)]
        decoders = {name: tfds.decode.SkipDecoding() for name in pictures}
        self._source = builder.as_data_source(self.split, decoders=decoders)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "split": self.split}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example; raises OSError if its record is damaged."""
        try:
            return self._source[index]
        except RuntimeError as error:
            raise FileProblem(f"record {index} of {self.folder} is damaged ({error})") from error

    def digest(self) -> str:
        """SHA-256 over the data set's full name, the split, and the names, sizes and ranges of its files."""
        files = self.info.splits[self.split].file_instructions
        lines = [self.info.full_name, self.split]
        lines += [f"{Path(f.filename).name} {Path(f.filename).stat().st_size} {f.skip} {f.take}" for f in files]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(kw_only=True)
class TfdsImages:
    """Images of a prepared TFDS data set with a feature "image", labeled if its feature "label" is a class.

    `name` is NAME or NAME/CONFIG; `split` is as in TFDS, such as "train" or "train[:10%]"; `data_dir` is TFDS's default
    if None, and environment `$VARIABLES` in it are expanded.
    """

    name: str
    split: str
    data_dir: str | None = None

    def open(self, *, held_out: frozenset[str], shortest_side: int | None = None) -> "TfdsImagesSource":
        """Opens the files; images are decoded on access. `held_out`, a set of pair ids, is ignored.

        Raises:
          FileNotFoundError: the data set is not prepared.
          ValueError: the data set has no such split or no images, or is not stored as ArrayRecord.
        """
        del held_out
        return TfdsImagesSource(Records(self.name, self.split, self.data_dir), shortest_side=shortest_side)


class TfdsImagesSource(SkippingSource):
    """Images of one split; up to `MAX_BROKEN_FRACTION` of them may be broken."""

    def __init__(self, records: Records, *, shortest_side: int | None = None) -> None:
        super().__init__(f"{records.folder}, split {records.split}", max_broken_fraction=MAX_BROKEN_FRACTION)
        features = dict(records.info.features.items())
        if not isinstance(features.get("image"), tfds.features.Image):
            raise InvalidValue(f"{records.folder} has no pictures in a feature 'image'; it has {', '.join(features)}")
        self.records = records
        label = features.get("label")
        self.num_classes = label.num_classes if isinstance(label, tfds.features.ClassLabel) else 0
        self.shortest_side = shortest_side

    def __len__(self) -> int:
        return len(self.records)

    def name(self, position: int) -> str:
        return f"{self.records.split} {position}"

    def read(self, position: int) -> LabeledImage:
        example = self.records[position]
        image = decode(example["image"], self.name(position), shortest_side=self.shortest_side)
        return LabeledImage(image, int(example["label"]) if self.num_classes else -1)

    def digest(self) -> str:
        """SHA-256 over the data set's name and version, the split, and the names and sizes of its files."""
        return self.records.digest()


@dataclass(kw_only=True)
class TfdsPairs:
    """The Totally Looks Like pairs as written by `tll prepare totally_looks_like`.

    Their ids, groups and digest equal those of the source from which they were prepared.
    """

    data_dir: str | None = None
    faces: FaceDetector | None = None
    face_overrides: str | None = None
    duplicates: NearDuplicates | None = field(default_factory=NearDuplicates)

    def open(self) -> Pairs:
        """Opens and checks the pairs; raises FileNotFoundError if they are not prepared."""
        archive = _PairRecords(Records("totally_looks_like", "train", self.data_dir))
        broken = [Skipped(*item) for item in archive.records.info.metadata["broken"]]
        overrides = None if self.face_overrides is None else read_overrides(expand(self.face_overrides))
        return Pairs(
            archive,
            [*archive.entries, *broken, *archive.damaged],
            find_faces=self.faces,
            face_overrides=overrides,
            find_duplicates=self.duplicates,
        )


@dataclass(frozen=True)
class _Half(Crop):
    """An image that was one half of a joint image; it keeps the content hash of its source."""

    content: str = ""

    def check(self, archive: Archive) -> str:
        super().check(archive)
        return self.content


class _PairRecords(Archive):
    """Images of prepared pairs under the names `ID/left` and `ID/right`."""

    def __init__(self, records: Records) -> None:
        self.path = records.folder
        self.records = records
        self.entries: list[Entry] = []
        self.damaged: list[Skipped] = []
        self._position: dict[str, int] = {}
        for index in range(len(records)):
            try:
                example = records[index]
            except OSError as error:
                self.damaged.append(Skipped(f"record {index}", str(error)))
                continue
            identity = example["id"].decode("utf-8", "surrogateescape")
            self._position[identity] = index
            self.entries.append(Entry(identity, *(_crop(identity, side, example) for side in ("left", "right"))))
        self.names = sorted(f"{identity}/{side}" for identity in self._position for side in ("left", "right"))

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def read(self, name: str) -> bytes:
        """Bytes of the encoded image."""
        identity, side = name.rsplit("/", 1)
        return self.records[self._position[identity]][side]

    def start(self, name: str) -> bytes:
        """First bytes of the encoded image."""
        return self.read(name)[:START_BYTES]

    def size(self, name: str) -> int:
        """Size of the encoded image in bytes."""
        return len(self.read(name))


def _crop(identity: str, side: str, example: dict[str, Any]) -> Crop:
    content = example[f"{side}_content"].decode()
    return _Half(f"{identity}/{side}", content=content) if content else Crop(f"{identity}/{side}")
