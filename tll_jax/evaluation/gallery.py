"""Sharded galleries as written by `tll embed` of version 0.1: reading, and conversion by `tll gallery import`.

A gallery's folder contains `gallery.json` (network, settings and images) and one ArrayRecord file for each slice of
`shard_size` images in the order of their names. Its records are a description of the shard, its ids, and the
embeddings, `ROWS_PER_RECORD` rows per record.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from jaxtyping import Float32, Int

from tll_jax.data.archive import first_few
from tll_jax.errors import DamagedFile, FileProblem, InvalidValue, MissingFile
from tll_jax.files import read_json
from tll_jax.serialize import fingerprint, with_tags
from tll_jax.typing import Skipped

logger = logging.getLogger(__name__)

DESCRIPTION = "gallery.json"

ROWS_PER_RECORD = 1024

MEND = "copy it whole again, or embed the images anew with tll embed RUN IMAGES --out DIR"

READ = "readahead_buffer_size:0,max_parallelism:0"


def content_hash(variables: Any) -> str:
    """SHA-256 over the names, dtypes, shapes and values of a network's variables."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        values = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _key(description: dict[str, Any]) -> str:
    """Fingerprint of a gallery's description, independent of the command that wrote it."""
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


def _read_description(path: Path) -> dict[str, Any] | None:
    """Description of a shard, or None if it is missing or, with a warning, damaged."""
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
    """Selected records of a shard, by a list of indices or a start and an end, and its number of records.

    Raises:
      OSError: the file cannot be read, but may be intact.
      DamagedFile: the file's content is damaged.
    """
    try:
        # The reader treats a file that it cannot open as empty.
        with path.open("rb") as file:
            file.read(1)
        try:
            reader = ArrayRecordReader(str(path), READ)
            return reader.read(*which), reader.num_records()
        except (ValueError, RuntimeError, IndexError) as error:
            # The reader raises the same error for a failing disk as for a damaged file; reading the bytes raises
            # OSError instead.
            path.read_bytes()
            raise DamagedFile(f"{path} is damaged ({str(error).splitlines()[0][:100]})") from error
    except OSError as error:
        raise FileProblem(
            f"{path} cannot be read: {error.strerror}. Get permission to read it, or look after the disk; then run the "
            "same command again"
        ) from error


class StoredGallery:
    """Embeddings of a complete gallery, read on access, and the ids of its images.

    `gallery[start:stop]` are rows, float32 `[stop - start, dim]`, in the order of the ids; broken images have no row.
    """

    def __init__(self, folder: Path, description: dict[str, Any], shards: list[dict[str, Any]]) -> None:
        self.folder = folder
        self.embedded_by = fingerprint(with_tags([description["network"], description["settings"]]))
        """Fingerprint of network and settings, equal for galleries whose embeddings are comparable."""
        self.broken = [Skipped(*item) for shard in shards for item in shard["broken"]]
        self._starts = np.cumsum([0, *(shard["num_rows"] for shard in shards)])
        self._dim = shards[0]["dim"]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (rows, dim)."""
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
        """Ids of rows, such as the columns of a ranking: strings of the same shape as `rows`."""
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
            raise DamagedFile(f"{error}: {MEND}") from error


def open_gallery(folder: str | Path) -> StoredGallery:
    """Opens a sharded gallery, whose embeddings are read on access.

    Raises:
      FileNotFoundError: the folder is not a gallery, or shards are missing or damaged.
      ValueError: a shard belongs to another gallery, or the gallery's description is damaged. Later access to rows and
        ids of a damaged shard raises it too.
    """
    folder = Path(folder)
    path = folder / DESCRIPTION
    if not path.exists():
        raise MissingFile(f"{folder} holds no {DESCRIPTION}: make a gallery with tll embed RUN IMAGES --out DIR")
    description = _read_gallery(folder)
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
        raise MissingFile(f"{folder} lacks {len(missing)} of {num_shards} shards: {first_few(missing)}: {MEND}")
    found = [shard for shard in shards if shard is not None]
    others = [str(shard["shard"]) for shard in found if shard["gallery"] != _key(description)]
    if others:
        raise InvalidValue(
            f"{folder} is mixed: shards {first_few(others)} are not of the network, settings and images in "
            f"{DESCRIPTION}: {MEND}"
        )
    return StoredGallery(folder, description, found)
