"""`tll prepare`: writes a data set once into a TFDS folder, checked, so that it can be read at random from then on."""

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
"""TFDS knows its checksum."""
IMAGENET_TARS = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
IMAGENET_COUNTS = {"train": 1_281_167, "validation": 50_000}


@dataclass(kw_only=True)
class Prepared:
    """What lies in a prepared folder, and whether this call has put it there; printing it gives the report."""

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
    """Writes data set `name` below `data_dir`, or finds it there, and checks its counts.

    A run that is killed leaves nothing that counts as prepared; the next one starts afresh, with finished downloads.
    Of two equal runs at once the second waits for the first and then finds its data set.

    Args:
      name: one of `NAMES`.
      source: a folder or zip of pairs (totally_looks_like) or with train/CLASS/ and val/CLASS/ (the others), or the
        folder of ImageNet's tars. Without it Imagenette is downloaded, and the others are looked for in the folder
        `downloads/manual` below `data_dir`.
      data_dir: TFDS's own by default.

    Raises:
      FileNotFoundError: the source is missing; says which files to put where.
      ValueError: the name is unknown, a checksum or a count differs, more than 5 % is broken, another process prepares
        the same set from another source, or what is there comes from another source.
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
            # Another process may have written it while this one waited.
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
    # What killed runs have left; the lock says that none is at work.
    for left_over in (*(root / name).glob(f"{INCOMPLETE}*"), *root.glob(f".{name}-*")):
        shutil.rmtree(left_over)
    tfds.display_progress_bar(sys.stderr.isatty())
    # What TFDS prints says less than the report.
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as scratch, redirect_stdout(io.StringIO()):
        builder, facts = _make_builder(name, path, root, Path(scratch))
        builder.info.metadata.update(facts)
        builder.download_and_prepare(
            file_format="array_record", download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )


def _make_builder(name: str, path: Path | None, root: Path, scratch: Path) -> tuple[Any, dict[str, str]]:
    """The builder, and what is known of its source."""
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
    """Compares files with the `SHA256SUMS` beside them and says what was found."""
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
    # Of many libraries' kinds: no network, a refusal, a wrong checksum.
    except Exception as error:
        raise InvalidValue(
            f"{IMAGENETTE_URL} cannot be downloaded ({error}): try again, or give --source, a folder or zip with "
            "train/CLASS/ and val/CLASS/"
        ) from error
    # Python before 3.11.4 has no filters; the archive is the one whose checksum TFDS knows.
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
    # The labels stand in the order of the pictures' names.
    validation_classes = (lists / "validation_labels.txt").read_text().split()[: len(validation.names)]
    parts = {
        "train": Part(train, train.names, [name.split("/")[0] for name in train.names]),
        "validation": Part(validation, validation.names, validation_classes),
    }
    return parts, (lists / "labels.txt").read_text().split()


def _examine(name: str, folder: Path, *, was_there: bool) -> Prepared:
    """Counts what the files in `folder` hold and compares it with what was written and what the source listed."""
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
