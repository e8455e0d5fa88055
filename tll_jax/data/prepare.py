"""`tll prepare`: converts a data set once to a checked TFDS folder with random access."""

import hashlib
import io
import shlex
import shutil
import sys
import tarfile
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader

from tll_jax.data.archive import Archive, printable
from tll_jax.data.tfds_builders import totally_looks_like
from tll_jax.data.tfds_builders.class_folders import ClassFolders, Part, TarFiles, find_parts
from tll_jax.data.tfds_sources import INCOMPLETE, check_format, data_root, find_prepared
from tll_jax.errors import InvalidValue, MissingFile
from tll_jax.files import expand, locked
from tll_jax.typing import Skipped

NAMES = (totally_looks_like.NAME, "imagenette", "imagenet2012")
VERSIONS = {"imagenette": "1.0.0", "imagenet2012": "5.1.0"}
IMAGENETTE_URL = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz"
"""Archive of Imagenette (320 px), whose checksum TFDS has."""
IMAGENET_TARS = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
IMAGENET_COUNTS = {"train": 1_281_167, "validation": 50_000}


@dataclass(kw_only=True)
class Prepared:
    """Summary of a prepared data set; its string form is the report."""

    name: str
    folder: Path
    was_there: bool
    num_bytes: int
    num_examples: dict[str, int]
    source: str
    checksum: str
    broken: list[Skipped]

    def __str__(self) -> str:
        examples = ", ".join(f"{split} {count:,}" for split, count in self.num_examples.items())
        lines = [
            f"{self.name} is already there" if self.was_there else f"{self.name} is prepared",
            f"  folder    {self.folder}",
            f"  size      {self.num_bytes:,} bytes",
            f"  examples  {examples}",
            f"  source    {self.source}",
            f"  checksum  {self.checksum}",
            f"  broken    {len(self.broken) or 'none'}",
        ]
        return "\n".join(
            printable(line) for line in [*lines, *(f"    {name}: {reason}" for name, reason in self.broken)]
        )


def prepare(name: str, *, source: str | None = None, data_dir: str | None = None) -> Prepared:
    """Writes data set `name` below `data_dir` unless it exists, and checks its counts.

    A killed run leaves nothing that counts as prepared; the next run starts afresh but reuses finished downloads. If
    two runs are concurrent, the second waits for the first and uses its data set.

    Args:
      name: one of `NAMES`.
      source: a folder or zip of pairs (totally_looks_like) or with train/CLASS/ and val/CLASS/ (the others), or the
        folder of ImageNet's tars. By default Imagenette is downloaded, and the others are looked for in the folder
        `downloads/manual` below `data_dir`.
      data_dir: folder of TFDS data sets, TFDS's default if None.

    Raises:
      FileNotFoundError: the source is missing; the message lists the files that are needed and where.
      ValueError: the name is unknown, a checksum or a count differs, more than 5 % is broken, another process prepares
        the same set from another source, or the existing data set comes from another source.
    """
    if name not in NAMES:
        raise InvalidValue(f"cannot prepare {name!r}; it can be {', '.join(NAMES)}")
    root = data_root(data_dir)
    path = None if source is None else expand(source).absolute()
    folder = find_prepared(name, str(root))
    was_there = folder is not None
    if folder is None:
        command = shlex.join(["tll", "prepare", name, *(["--source", str(path)] if path else [])])
        with locked(root, identity=command, command=command, name=f".{name}.lock"):
            # Another process may have written it while this one waited for the lock.
            folder = find_prepared(name, str(root))
            was_there = folder is not None
            if folder is None:
                _write(name, path, root)
                folder = find_prepared(name, str(root))
        assert folder is not None
    found = _examine(name, folder, was_there=was_there)
    if path is not None and found.source != str(path):
        raise InvalidValue(
            f"{folder} was prepared from {found.source}, not from {path}: give another --data-dir, or delete the "
            "folder first"
        )
    return found


def _write(name: str, path: Path | None, root: Path) -> None:
    # Leftovers of killed runs; the lock guarantees that none is still running.
    for left_over in (*(root / name).glob(f"{INCOMPLETE}*"), *root.glob(f".{name}-*")):
        shutil.rmtree(left_over)
    tfds.display_progress_bar(sys.stderr.isatty())
    # TFDS's own output is hidden because the report has more information.
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as scratch, redirect_stdout(io.StringIO()):
        builder, facts = _make_builder(name, path, root, Path(scratch))
        builder.info.metadata.update(facts)
        builder.download_and_prepare(
            file_format="array_record", download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )


def _make_builder(name: str, path: Path | None, root: Path, scratch: Path) -> tuple[Any, dict[str, str]]:
    """The builder, and metadata of its source."""
    manual = root / "downloads" / "manual"
    if name == totally_looks_like.NAME:
        path = path or manual / "totally-looks-like.zip"
        if not path.exists():
            raise MissingFile(
                f"no pairs at {path}. They cannot be downloaded from one place: give --source, a folder or zip of them"
            )
        facts = {"source": str(path), "checksum": _check([path])}
        return totally_looks_like.TotallyLooksLikeBuilder(source=str(path), data_dir=root), facts
    if name == "imagenette" and path is None:
        parts = find_parts(Archive(_download_imagenette(root, scratch)))
        facts = {"source": IMAGENETTE_URL, "checksum": "SHA-256 as TFDS knows it"}
        return ClassFolders(name=name, version=VERSIONS[name], parts=parts, data_dir=root), facts
    tars = [(path or manual) / tar for tar in IMAGENET_TARS.values()]
    if name == "imagenet2012" and (path is None or any(tar.exists() for tar in tars)):
        parts, classes = _imagenet_parts(*tars)
        facts = {"source": str(tars[0].parent), "checksum": _check(tars)}
        return ClassFolders(name=name, version=VERSIONS[name], parts=parts, class_names=classes, data_dir=root), facts
    assert path is not None
    facts = {"source": str(path), "checksum": _check([path])}
    return ClassFolders(name=name, version=VERSIONS[name], parts=find_parts(Archive(path)), data_dir=root), facts


def _check(files: list[Path]) -> str:
    """Compares files with the `SHA256SUMS` beside them; returns the result as text."""
    known = 0
    for path in files:
        sums = path.parent / "SHA256SUMS"
        lines = [line.split(maxsplit=1) for line in sums.read_text().splitlines()] if sums.exists() else []
        expected = next((line[0] for line in lines if len(line) == 2 and line[1].lstrip("*") == path.name), None)
        if expected is not None and path.is_file():
            with path.open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
            if actual != expected:
                raise InvalidValue(f"{path} has the SHA-256 {actual}, and {sums} says {expected}: download it again")
            known += 1
    return "SHA-256 as in SHA256SUMS" if known == len(files) else "none known"


def _download_imagenette(root: Path, scratch: Path) -> Path:
    manager = tfds.download.DownloadManager(
        download_dir=root / "downloads", url_infos=tfds.builder_cls("imagenette").url_infos, dataset_name="imagenette"
    )
    try:
        archive = manager.download(IMAGENETTE_URL)
    # Exceptions of several libraries: no network, an HTTP error, a wrong checksum.
    except Exception as error:
        raise InvalidValue(
            f"{IMAGENETTE_URL} cannot be downloaded ({error}): try again, or give --source, a folder or zip with "
            "train/CLASS/ and val/CLASS/"
        ) from error
    # Python before 3.11.4 has no extraction filters; the archive's checksum has been verified by TFDS.
    harmless = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(archive) as tar:
        tar.extractall(scratch, **harmless)  # type: ignore[arg-type]
    return scratch


def _imagenet_parts(train_tar: Path, validation_tar: Path) -> tuple[dict[str, Part], list[str]]:
    missing = [str(tar) for tar in (train_tar, validation_tar) if not tar.exists()]
    if missing:
        raise MissingFile(
            f"imagenet2012 cannot be downloaded freely: register at https://image-net.org/download-images and put "
            f"{' and '.join(missing)} there, or give --source, a folder or zip with train/CLASS/ and val/CLASS/"
        )
    lists = tfds.core.tfds_path("datasets/imagenet2012")
    train, validation = TarFiles(train_tar), TarFiles(validation_tar)
    for split, tar in (("train", train), ("validation", validation)):
        if len(tar.names) != IMAGENET_COUNTS[split]:
            raise InvalidValue(
                f"{tar.path} holds {len(tar.names):,} pictures, not {IMAGENET_COUNTS[split]:,}: download it again"
            )
    # The labels are in the order of the file names.
    validation_classes = (lists / "validation_labels.txt").read_text().split()[: len(validation.names)]
    parts = {
        "train": Part(train, train.names, [name.split("/")[0] for name in train.names]),
        "validation": Part(validation, validation.names, validation_classes),
    }
    return parts, (lists / "labels.txt").read_text().split()


def _examine(name: str, folder: Path, *, was_there: bool) -> Prepared:
    """Counts the examples in `folder` and compares them with what was written and with the source."""
    info = tfds.builder_from_directory(folder).info
    check_format(info, folder)
    facts = dict(info.metadata or {})
    broken = [Skipped(*item) for item in facts.get("broken", [])]
    counts = {}
    for split in info.splits.values():
        try:
            counts[split.name] = sum(ArrayRecordReader(str(path)).num_records() for path in split.filepaths)
        except (ValueError, RuntimeError) as error:
            raise InvalidValue(f"{folder} is damaged ({error}): delete the folder and prepare it again") from error
        if counts[split.name] != split.num_examples:
            raise InvalidValue(
                f"{folder} is damaged: {split.name} holds {counts[split.name]:,} examples of {split.num_examples:,}: "
                "delete the folder and prepare it again"
            )
    listed = facts.get("listed")
    assert listed is None or sum(listed.values()) == sum(counts.values()) + len(broken)
    return Prepared(
        name=name,
        folder=folder,
        was_there=was_there,
        num_bytes=sum(path.stat().st_size for path in folder.iterdir()),
        num_examples=counts,
        source=facts.get("source", "not recorded"),
        checksum=facts.get("checksum", "not recorded"),
        broken=broken,
    )
