"""Embeddings of many images on disk, in shards that any number of processes write without talking to each other.

A gallery's folder holds `gallery.json` (which network, settings and images) and one ArrayRecord file for each slice of
`shard_size` images in the order of their names: a record that describes the shard, one with its ids, and the
embeddings, `ROWS_PER_RECORD` rows a record. A shard appears whole or not at all, and what is there is never done again.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jaxtyping import Float32, Int

from tll_jax.data.archive import first_few, named
from tll_jax.data.folder import FolderSource
from tll_jax.errors import DamagedFile, FileProblem, InvalidValue, MissingFile
from tll_jax.evaluation.embed import Embedder
from tll_jax.files import PARTIAL, locked_part, read_json, replacing, write_json
from tll_jax.serialize import fingerprint, with_tags
from tll_jax.typing import Image, Skipped

logger = logging.getLogger(__name__)

FORMAT = 1
DESCRIPTION = "gallery.json"

ROWS_PER_RECORD = 1024
"""65,536 x 256 float32 were read in 77 ms so, in 183 ms at one row a record, from one .npy file in 194 ms. Compression
saves 7 % and takes 1.7 times as long."""

WRITTEN, READ = "group_size:1,uncompressed", "readahead_buffer_size:0,max_parallelism:0"


class Shard(NamedTuple):
    """What has become of one shard: how many images it holds, which of them are broken, and whether it was there."""

    number: int
    num_images: int
    broken: list[Skipped]
    was_there: bool


@dataclass(kw_only=True)
class GallerySpec:
    """Which gallery is wanted: all that its embeddings follow from, and how it is cut.

    `settings` is JSON that says how an image becomes an embedding, but for the variables; `command` is what a message
    tells to run.
    """

    network: str
    """Of the variables: `content_hash`."""
    settings: dict[str, Any]
    images: FolderSource
    shard_size: int
    command: str

    @property
    def num_shards(self) -> int:
        return -(-len(self.images) // self.shard_size)

    def describe(self) -> dict[str, Any]:
        """What `gallery.json` holds."""
        names = "\n".join(self.images.names).encode("utf-8", "surrogateescape")
        return {
            "format": FORMAT,
            "network": self.network,
            "settings": self.settings,
            "num_images": len(self.images),
            "names": hashlib.sha256(names).hexdigest(),
            "shard_size": self.shard_size,
            "command": self.command,
        }


def content_hash(variables: Any) -> str:
    """SHA-256 over the names, shapes and values of a network's variables."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        values = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def write_gallery(
    spec: GallerySpec, folder: Path, embedder: Embedder, variables: Any, *, process: int, num_processes: int
) -> Iterator[Shard]:
    """Embeds the shards `process`, `process + num_processes`, ... that are not there yet, one after the other.

    A shard is there where it belongs to the same network and settings, and its images have the same names and sizes in
    bytes; a damaged one is not. A broken image is left out and named in its shard's description.

    Of processes that want the same shard at once one makes it and the others wait for it.

    Raises:
      ValueError: there is no such process, the folder holds another gallery or a damaged description of one, or of a
        shard no image can be read.
      OSError: the folder cannot be written, or a shard that is there cannot be read.
    """
    if not 0 <= process < num_processes:
        raise InvalidValue(f"--process is {process}; of {num_processes} it must be from 0 to {num_processes - 1}")
    if spec.shard_size < 1:
        raise InvalidValue(f"--shard-size is {spec.shard_size}; it must be at least 1")
    description = spec.describe()
    with locked_part(folder, 0):
        _check_same(folder, description)
        if not (folder / DESCRIPTION).exists():
            _remove_partials(folder / DESCRIPTION)
            write_json(folder / DESCRIPTION, description)
        # What an earlier version began goes on under its own key.
        description = _read_gallery(folder)
    for number in range(process, spec.num_shards, num_processes):
        start = number * spec.shard_size
        names = spec.images.names[start : start + spec.shard_size]
        images = FolderSource(spec.images.archive, names, shortest_side=spec.images.shortest_side)
        path = folder / _file_name(number, spec.num_shards)
        wanted = {"gallery": _key(description), "shard": number, "images": images.digest()}
        with locked_part(folder, 1 + number):
            there = _read_description(path)
            was_there = there is not None and wanted.items() <= there.items()
            if there is not None and was_there:
                broken = [Skipped(*item) for item in there["broken"]]
            else:
                _remove_partials(path)
                broken = _write_shard(path, wanted, images, embedder, variables)
        yield Shard(number, len(names), broken, was_there=was_there)


def _remove_partials(path: Path) -> None:
    """What processes left that were killed while they wrote this file."""
    for partial in path.parent.glob(f"{path.name}.*{PARTIAL}"):
        partial.unlink()


def _key(description: dict[str, Any]) -> str:
    """Of the gallery whose description is as given, whatever command made it."""
    return fingerprint({name: value for name, value in description.items() if name != "command"})


def _file_name(number: int, num_shards: int) -> str:
    return f"embeddings-{number:05}-of-{num_shards:05}.array_record"


def _read_gallery(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    found = read_json(path)
    is_whole = isinstance(found, dict) and {"network", "settings", "command"} <= found.keys()
    sizes = [found.get(name) for name in ("num_images", "shard_size")] if is_whole else []
    if not is_whole or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise DamagedFile(
            f"{path} is damaged (it describes no gallery): delete it and run the command that wrote it again"
        )
    return found


def _check_same(folder: Path, wanted: dict[str, Any]) -> None:
    path = folder / DESCRIPTION
    there = _read_gallery(folder) if path.exists() else wanted
    if _key(with_tags(there)) == _key(wanted):
        return
    words = {
        "network": "another network",
        "settings": "other settings",
        "num_images": f"{there.get('num_images')} images, not {wanted['num_images']}",
        "names": "images of other names",
        "shard_size": f"shards of {there.get('shard_size')}, not {wanted['shard_size']}",
    }
    differ = [text for name, text in words.items() if with_tags(there.get(name)) != wanted[name]]
    raise InvalidValue(
        f"{folder} holds another gallery ({'; '.join(differ) or 'of another format'}): give another --out, or delete "
        f"the folder. It was made by `{there.get('command')}`"
    )


class _Pictures(Sequence[Image]):
    """The images of a shard without their labels."""

    def __init__(self, images: FolderSource) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: Any) -> Any:
        return self.images.read(position).image


def _write_shard(
    path: Path, wanted: dict[str, Any], images: FolderSource, embedder: Embedder, variables: Any
) -> list[Skipped]:
    reasons: dict[int, str] = {}
    embeddings = np.asarray(embedder(variables, _Pictures(images), broken=reasons), np.dtype("<f4"))
    named_broken = ((images.name(position), reasons[position]) for position in sorted(reasons))
    broken = [Skipped(name, reason.removeprefix(f"{name}: ")) for name, reason in named_broken]
    if len(broken) == len(images) > 1:
        # More likely the disk is gone than that every picture is broken: such a shard must not count as done.
        raise InvalidValue(f"no image of shard {wanted['shard']} can be read: {named(broken)}. Is the data whole?")
    kept = [position for position in range(len(images)) if position not in reasons]
    embeddings = embeddings[kept]
    description = wanted | {
        "num_rows": len(kept),
        "dim": embeddings.shape[1],
        "broken": [list(item) for item in broken],
    }
    with replacing(path) as partial:
        writer = ArrayRecordWriter(str(partial), WRITTEN)
        writer.write(json.dumps(description).encode())
        writer.write(json.dumps([images.name(position) for position in kept]).encode())
        for start in range(0, len(kept), ROWS_PER_RECORD):
            writer.write(embeddings[start : start + ROWS_PER_RECORD].tobytes())
        writer.close()
    return broken


def _read_description(path: Path) -> dict[str, Any] | None:
    """None where no whole shard is; a warning names a damaged one."""
    if not path.exists():
        return None
    try:
        (record,), num_records = _read_records(path, [0])
        found = json.loads(record)
        if num_records != 2 + -(-found["num_rows"] // ROWS_PER_RECORD):
            raise DamagedFile(f"{path} is damaged (records are missing)")
        return found
    except (ValueError, TypeError, KeyError):
        logger.warning("%s is damaged: it counts as missing", path)
        return None


def _read_records(path: Path, *which: Any) -> tuple[list[bytes], int]:
    """Some records of a shard, by a list of numbers or a first one and an end, and how many it has.

    Raises:
      OSError: the file cannot be read; it may be whole.
      DamagedFile: its content is damaged.
    """
    try:
        # The reader takes a file that it cannot open for an empty one.
        with path.open("rb") as file:
            file.read(1)
        try:
            reader = ArrayRecordReader(str(path), READ)
            return reader.read(*which), reader.num_records()
        except (ValueError, RuntimeError, IndexError) as error:
            # It also says of a disk that fails what it says of damage.
            path.read_bytes()
            raise DamagedFile(f"{path} is damaged ({str(error).splitlines()[0][:100]})") from error
    except OSError as error:
        raise FileProblem(
            f"{path} cannot be read: {error.strerror}. Get permission to read it, or look after the disk; then run the "
            "same command again"
        ) from error


class StoredGallery:
    """The embeddings of a complete gallery, read a part at a time, and the ids of the images that they are of.

    `gallery[start:stop]` are rows, float32 `[stop - start, dim]`; rows are in the order of ids, without broken images.
    """

    def __init__(self, folder: Path, description: dict[str, Any], shards: list[dict[str, Any]]) -> None:
        self.folder = folder
        self._command = description["command"]
        self.embedded_by = fingerprint(with_tags([description["network"], description["settings"]]))
        """Equal for galleries whose embeddings can be compared."""
        self.broken = [Skipped(*item) for shard in shards for item in shard["broken"]]
        self._starts = np.cumsum([0, *(shard["num_rows"] for shard in shards)])
        self._dim = shards[0]["dim"]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, dim)."""
        return int(self._starts[-1]), self._dim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Float32[np.ndarray, "rows dim"]:
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise InvalidValue(f"rows are read in order, and not at steps of {step}")
        found = np.empty((max(0, stop - start), self._dim), np.float32)
        at = start
        while at < stop:
            shard = int(np.searchsorted(self._starts, at, side="right")) - 1
            first, end = at - self._starts[shard], min(stop, self._starts[shard + 1]) - self._starts[shard]
            begin = first // ROWS_PER_RECORD
            records = self._read(shard, 2 + begin, 2 + -(-end // ROWS_PER_RECORD))
            for number, record in enumerate(records, begin):
                block = np.frombuffer(record, np.dtype("<f4")).reshape(-1, self._dim)
                offset = number * ROWS_PER_RECORD
                block = block[max(0, first - offset) : end - offset]
                found[at - start : at - start + len(block)] = block
                at += len(block)
        return found

    def ids(self, rows: Int[np.ndarray, "*shape"] | range) -> np.ndarray:
        """The ids of rows, such as the columns that a ranking found: strings of the same shape."""
        rows = np.asarray(rows)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        found = np.empty(rows.shape, object)
        for shard in np.unique(shards):
            names = np.array(json.loads(self._read(shard, [1])[0]), object)
            found[shards == shard] = names[rows[shards == shard] - self._starts[shard]]
        return found

    def _read(self, shard: int, *which: Any) -> list[bytes]:
        try:
            return _read_records(self.folder / _file_name(shard, len(self._starts) - 1), *which)[0]
        except DamagedFile as error:
            raise DamagedFile(f"{error}: delete it; `{self._command}` makes it anew") from error


def open_gallery(folder: str | Path) -> StoredGallery:
    """Opens a gallery that `tll embed` has made; embeddings are read when they are asked for.

    Raises:
      FileNotFoundError: the folder is no gallery, or shards are missing or damaged.
      ValueError: a shard is of another gallery, or the gallery's description is damaged. Rows and ids that are asked
        for later raise it where their shard is damaged.
    """
    folder = Path(folder)
    path = folder / DESCRIPTION
    if not path.exists():
        raise MissingFile(f"{folder} holds no {DESCRIPTION}: make a gallery with tll embed RUN IMAGES --out DIR")
    description = _read_gallery(folder)
    command = description["command"]
    num_shards = -(-description["num_images"] // description["shard_size"])
    names = [_file_name(number, num_shards) for number in range(num_shards)]
    strange = sorted({found.name for found in folder.glob("*.array_record")} - set(names))
    if strange:
        raise InvalidValue(
            f"{folder} also holds {first_few(strange)}, which its {DESCRIPTION} does not know: delete them"
        )
    shards = [_read_description(folder / name) for name in names]
    missing = [str(number) for number, shard in enumerate(shards) if shard is None]
    if missing:
        raise MissingFile(
            f"{folder} lacks {len(missing)} of {num_shards} shards: {first_few(missing)}. Make them with `{command}`, "
            "or shard s, where N processes share the work, with --process (s modulo N) --num-processes N"
        )
    found = [shard for shard in shards if shard is not None]
    others = [str(shard["shard"]) for shard in found if shard["gallery"] != _key(description)]
    if others:
        raise InvalidValue(
            f"{folder} is mixed: shards {first_few(others)} are not of the network, settings and images in "
            f"{DESCRIPTION}. `{command}` makes them anew"
        )
    return StoredGallery(folder, description, found)
