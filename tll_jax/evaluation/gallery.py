"""Embeddings of many images on disk, in shards that any number of processes write without talking to each other.

A gallery's folder holds `gallery.json` (which network, settings and images) and one ArrayRecord file for each slice of
`shard_size` images in the order of their names: a record that describes the shard, one with its ids, and the
embeddings, `ROWS_PER_RECORD` rows a record. A shard appears whole or not at all, and what is there is never done again.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jaxtyping import Float32, Int

from tll_jax.config import fingerprint
from tll_jax.contracts import Image, Skipped
from tll_jax.data.archive import first_few, named
from tll_jax.data.folder import FolderSource
from tll_jax.data.imaging import BrokenImage
from tll_jax.errors import InvalidValue, MissingFile
from tll_jax.evaluation.embed import Embedder
from tll_jax.files import replacing, write_whole

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
class Plan:
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
    plan: Plan, folder: Path, embedder: Embedder, variables: Any, *, process: int, num_processes: int
) -> Iterator[Shard]:
    """Embeds the shards `process`, `process + num_processes`, ... that are not there yet, one after the other.

    A shard is there where it belongs to the same network and settings, and its images have the same names and sizes in
    bytes. A broken image is left out and named in its shard's description.

    Raises:
      ValueError: there is no such process, the folder holds another gallery, or of a shard no image can be read.
    """
    if not 0 <= process < num_processes:
        raise InvalidValue(f"--process is {process}; of {num_processes} it must be from 0 to {num_processes - 1}")
    if plan.shard_size < 1:
        raise InvalidValue(f"--shard-size is {plan.shard_size}; it must be at least 1")
    description = plan.describe()
    _refuse_another(folder, description)
    if not (folder / DESCRIPTION).exists():
        write_whole(folder / DESCRIPTION, json.dumps(description, indent=1) + "\n")
    for number in range(process, plan.num_shards, num_processes):
        start = number * plan.shard_size
        names = plan.images.names[start : start + plan.shard_size]
        images = FolderSource(plan.images.archive, names, shortest_side=plan.images.shortest_side)
        path = folder / _file_name(number, plan.num_shards)
        wanted = {"gallery": _key(description), "shard": number, "images": images.digest()}
        there = _read_description(path)
        if there is not None and wanted.items() <= there.items():
            yield Shard(number, len(names), [Skipped(*item) for item in there["broken"]], was_there=True)
            continue
        # What a process left that was killed while it wrote.
        for partial in folder.glob(f"{path.name}.*.partial"):
            partial.unlink()
        broken = _write_shard(path, wanted, images, embedder, variables)
        yield Shard(number, len(names), broken, was_there=False)


def _key(description: dict[str, Any]) -> str:
    """Of the gallery, whatever command made it."""
    return fingerprint({name: value for name, value in description.items() if name != "command"})


def _file_name(number: int, num_shards: int) -> str:
    return f"embeddings-{number:05}-of-{num_shards:05}.array_record"


def _refuse_another(folder: Path, wanted: dict[str, Any]) -> None:
    path = folder / DESCRIPTION
    there = json.loads(path.read_text()) if path.exists() else wanted
    if _key(there) == _key(wanted):
        return
    words = {
        "network": "another network",
        "settings": "other settings",
        "num_images": f"{there.get('num_images')} images, not {wanted['num_images']}",
        "names": "images of other names",
        "shard_size": f"shards of {there.get('shard_size')}, not {wanted['shard_size']}",
    }
    differ = [text for name, text in words.items() if there.get(name) != wanted[name]]
    raise InvalidValue(
        f"{folder} holds another gallery ({'; '.join(differ) or 'of another format'}): give another --out, or delete "
        f"the folder. It was made by `{there.get('command')}`"
    )


class _Readable:
    """Images of which those that cannot be read are black, and named in `broken` by their position."""

    def __init__(self, images: FolderSource, size: int) -> None:
        self.images = images
        self.size = size
        self.broken: dict[int, Skipped] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Image:
        try:
            return self.images.read(position).image
        except (BrokenImage, OSError) as error:
            name = self.images.name(position)
            self.broken[position] = Skipped(name, str(error).removeprefix(f"{name}: "))
            return np.zeros((self.size, self.size, 3), np.uint8)


def _write_shard(
    path: Path, wanted: dict[str, Any], images: FolderSource, embedder: Embedder, variables: Any
) -> list[Skipped]:
    readable = _Readable(images, embedder.geometry.size)
    embeddings = np.asarray(embedder(variables, readable), np.dtype("<f4"))  # type: ignore[arg-type]
    broken = [readable.broken[position] for position in sorted(readable.broken)]
    if len(broken) == len(images) > 1:
        # More likely the disk is gone than that every picture is broken: such a shard must not count as done.
        raise InvalidValue(f"no image of shard {wanted['shard']} can be read: {named(broken)}. Is the data whole?")
    kept = [position for position in range(len(images)) if position not in readable.broken]
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
    """None where no whole shard is."""
    if not path.exists():
        return None
    try:
        return json.loads(ArrayRecordReader(str(path), READ).read([0])[0])
    except (ValueError, RuntimeError, IndexError):
        return None  # Cut short: a machine may lose its power before all is on the disk.


class StoredGallery:
    """The embeddings of a complete gallery, read a part at a time, and the ids of the images that they are of.

    `gallery[start:stop]` are rows, float32 `[stop - start, dim]`; rows are in the order of ids, without broken images.
    """

    def __init__(self, folder: Path, description: dict[str, Any], shards: list[dict[str, Any]]) -> None:
        self.folder = folder
        self.embedded_by = fingerprint([description["network"], description["settings"]])
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
            records = self._reader(shard).read(2 + begin, 2 + -(-end // ROWS_PER_RECORD))
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
            names = np.array(json.loads(self._reader(shard).read([1])[0]), object)
            found[shards == shard] = names[rows[shards == shard] - self._starts[shard]]
        return found

    def _reader(self, shard: int) -> ArrayRecordReader:
        return ArrayRecordReader(str(self.folder / _file_name(shard, len(self._starts) - 1)), READ)


def open_gallery(folder: str | Path) -> StoredGallery:
    """Opens a gallery that `tll embed` has made; embeddings are read when they are asked for.

    Raises:
      FileNotFoundError: the folder is no gallery, or shards are missing.
      ValueError: a shard is of another gallery.
    """
    folder = Path(folder)
    path = folder / DESCRIPTION
    if not path.exists():
        raise MissingFile(f"{folder} holds no {DESCRIPTION}: make a gallery with tll embed RUN IMAGES --out DIR")
    description = json.loads(path.read_text())
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
