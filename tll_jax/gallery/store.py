"""Embeddings of pictures in LanceDB, by content, so that a renamed file is not embedded again.

A store is a folder, or an address of object storage, with the table `files` (which content a file has) and one table
for each model (contents, with their embeddings). A commit is there whole or not at all; one process writes at a time.
"""

import contextlib
import datetime
import errno
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tll_jax.cache import cache_folder
from tll_jax.errors import DamagedFile, FileProblem, InvalidValue, UserError, missing_package
from tll_jax.files import cannot_write, locked
from tll_jax.gallery.arrow import pa

logger = logging.getLogger(__name__)

FORMAT = "1"
COMMITS_KEPT = 64
"""After so many commits small fragments are joined and old versions removed, and once more at the end."""

FILES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("root", pa.string()),
        pa.field("path", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("mtime_ns", pa.int64()),
        pa.field("content", pa.string()),
        pa.field("broken", pa.string()),
        pa.field("decoder", pa.string()),
    ],
)
"""`id` is a hash of root and path, whose bytes need not be text; `content` is the BLAKE2b-128 of the file; `broken` is
why `decoder` cannot read it."""


def contents_schema(dim: int) -> pa.Schema:
    """Schema of a model's table: a row a content, and for an animation a row a frame."""
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("content", pa.string()),
            pa.field("frame", pa.int32()),
            pa.field("embedding", pa.list_(pa.float16(), dim)),
            pa.field("phash", pa.uint64()),
            pa.field("dhash", pa.uint64()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("taken", pa.string()),
            pa.field("cut_short", pa.bool_()),
        ]
    )


class Table(Protocol):
    """Contract of a gallery with a database."""

    def upsert(self, rows: pa.Table) -> None:
        """Adds rows, or replaces those of equal `id`, in one commit."""

    def rows(self, columns: Sequence[str]) -> pa.Table:
        """Selected columns of all rows."""

    def delete(self, ids: Sequence[str]) -> None:
        """Removes rows by `id`."""

    def nearest(self, vectors: np.ndarray, k: int) -> tuple[list[list[str]], np.ndarray]:
        """The ids and cosines of the `k` rows nearest to each vector."""


def store_place(cache: str | None) -> str:
    """Location of the embeddings of `tll find`: a folder or address as given, or a folder in the cache folder."""
    return cache if cache is not None else str(cache_folder() / "find")


class Store:
    """The tables in one place.

    Raises:
      MissingPackage: `tll_jax[find]` is not installed.
      FileProblem: the place cannot be written.
    """

    def __init__(self, place: str) -> None:
        try:
            import lancedb
        except ImportError as error:
            raise missing_package("a gallery on disk", "find") from error
        self.place = place
        self.is_remote = "://" in place
        if not self.is_remote:
            try:
                Path(place).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write(Path(place), error) from error
        self._database = lancedb.connect(place)

    def files(self) -> "LanceTable":
        return self._table("files", FILES)

    def contents(self, fingerprint: str, dim: int | None = None) -> "LanceTable":
        """The table of a model; without `dim`, one that is there."""
        if dim is None:
            with _problems(self._place_of(fingerprint)):
                return LanceTable(self._database.open_table(fingerprint), self._place_of(fingerprint))
        return self._table(fingerprint, contents_schema(dim))

    def models(self) -> list[str]:
        """The fingerprints of the models that have tables."""
        with _problems(self.place):
            return sorted(set(self._database.list_tables().tables) - {"files"})

    def _place_of(self, name: str) -> str:
        return f"{self.place.rstrip('/')}/{name}.lance"

    def roots(self) -> set[str]:
        """The places whose pictures are known, spelled out."""
        return set(self.files().rows(["root"])["root"].to_pylist())

    @contextmanager
    def writing(self, command: str) -> Iterator[None]:
        """Locks out other writers until the block ends; on object storage the caller has to."""
        if self.is_remote:
            yield
            return
        with locked(Path(self.place), identity="tll find", command=command):
            yield

    def _table(self, name: str, schema: pa.Schema) -> "LanceTable":
        where = self._place_of(name)
        wanted = schema.with_metadata({"tll_jax": FORMAT})
        with _problems(where):
            try:
                table = self._database.open_table(name)
            except (ValueError, FileNotFoundError) as error:
                if not self.is_remote and Path(where).exists() and any(Path(where).iterdir()):
                    raise DamagedFile(_damaged(where, error)) from error
                table = self._database.create_table(name, schema=wanted)
            there = table.schema
        if (there.metadata or {}).get(b"tll_jax") != FORMAT.encode() or not there.equals(schema):
            raise InvalidValue(
                f"{where} is no table of this version of tll_jax: give another --cache, or delete it; the pictures are "
                "then embedded anew"
            )
        return LanceTable(table, where)


class LanceTable:
    """A `Table` of LanceDB."""

    def __init__(self, table: Any, where: str) -> None:
        self._table = table
        self.where = where
        self._commits = 0

    def __len__(self) -> int:
        with _problems(self.where):
            return int(self._table.count_rows())

    def upsert(self, rows: pa.Table) -> None:
        if not rows.num_rows:
            return
        with _problems(self.where):
            merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(rows)
        self._commits += 1
        if self._commits >= COMMITS_KEPT:
            self.tidy()

    def rows(self, columns: Sequence[str]) -> pa.Table:
        with _problems(self.where):
            return self._table.search().select(list(columns)).to_arrow()

    def delete(self, ids: Sequence[str]) -> None:
        with _problems(self.where):
            for start in range(0, len(ids), 1000):
                some = ", ".join(f"'{one}'" for one in ids[start : start + 1000])
                self._table.delete(f"id IN ({some})")
        self._commits += 1

    def nearest(self, vectors: np.ndarray, k: int) -> tuple[list[list[str]], np.ndarray]:
        """Searches by the index of `make_index`, or without one compares every row."""
        ids, cosines = [], np.full((len(vectors), k), -np.inf, np.float32)
        with _problems(self.where):
            for row, vector in enumerate(vectors):
                search = self._table.search(vector.astype(np.float32), vector_column_name="embedding")
                search = search.distance_type("cosine").nprobes(PROBES).refine_factor(REFINE)
                found = search.limit(k).select(["id", "_distance"]).to_arrow()
                ids.append(found["id"].to_pylist())
                cosines[row, : found.num_rows] = 1 - found["_distance"].to_numpy()
        return ids, cosines

    def make_index(self) -> None:
        """Makes an IVF-PQ index of stated size, where there is none: by its defaults, recall was .16 in a published
        test. Later rows are added to it by `tidy`, and searched one by one until then."""
        num_rows = len(self)
        with _problems(self.where):
            if self._table.list_indices():
                return
            from lancedb.index import IvfPq

            config = IvfPq(
                distance_type="cosine",
                num_partitions=max(1, round(num_rows**0.5)),
                num_sub_vectors=max(1, self._table.schema.field("embedding").type.list_size // 4),
            )
            self._table.create_index("embedding", config=config)

    def tidy(self) -> None:
        """Joins small fragments and removes old versions, where there was a commit since the last time."""
        if not self._commits:
            return
        with _problems(self.where), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._table.optimize(cleanup_older_than=datetime.timedelta(0))
        self._commits = 0


PROBES = 40
"""Partitions of the index that a query looks into."""
REFINE = 10
"""Times `k` rows whose exact cosines are computed."""


def _damaged(where: str, error: object) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return f"{where} is damaged ({reason}): delete it; the pictures are then embedded anew"


@contextmanager
def _problems(where: str) -> Iterator[None]:
    """LanceDB's errors as one line for the user."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DamagedFile(_damaged(where, error)) from error
    except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
        text = str(error)
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            if f"os error {number}" in text or getattr(error, "errno", None) == number:
                raise cannot_write(Path(where), OSError(number, _strerror(number))) from error
        if isinstance(error, OSError) and error.errno is not None:
            raise FileProblem(f"{where} cannot be read ({error.strerror})") from error
        raise DamagedFile(_damaged(where, error)) from error


def _strerror(number: int) -> str:
    import os

    with contextlib.suppress(ValueError):
        return os.strerror(number)
    return str(number)
