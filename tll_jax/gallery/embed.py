"""Embedding of files into a gallery: new files are read, hashed, decoded and embedded, known contents reused.

A file is known by its root, path, size and time; else by a hash of its bytes, so that renames and moves embed nothing.
"""

import hashlib
import itertools
import os
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float16, UInt64

from tll_jax.data.archive import Archive
from tll_jax.data.imaging import MAX_BYTES, BrokenImage
from tll_jax.errors import FileProblem, NotFinite, UserError
from tll_jax.files import spelled_out
from tll_jax.gallery.arrow import pa, pc
from tll_jax.gallery.pictures import Decoded, decode_all, decoder
from tll_jax.gallery.scan import UNREACHABLE, File, Root, Scan
from tll_jax.gallery.store import FILES, Store, Table, contents_schema
from tll_jax.typing import Geometry

CHUNK = 512
"""Files a commit: what a kill costs. Batches never reach over its ends, so that a run goes on as it would have gone."""
IN_FLIGHT = 64
"""Files that are read and decoded ahead."""
BYTES_IN_FLIGHT = 2**28
"""Limit of the bytes of files that are held at once, but for the first."""

_SPELLED_OUT = re.compile(r"\\u(dc[89a-f][0-9a-f])")
"""A byte of a name that is no text, as `files.spelled_out` writes it."""


class Embedder(Protocol):
    """A network compiled for one shape, as `tll_jax.load(...).embedder` is."""

    geometry: Geometry
    batch_size: int

    def __call__(self, batch: np.ndarray, /) -> Any:
        """uint8 `[batch_size, size, size, 3]` to unit vectors `[batch_size, dim]`; may return before they are computed,
        as JAX does."""


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """An embedder with the name of the table of its embeddings."""

    name: str
    fingerprint: str
    """Hash of weights, fitted maps and geometry: models of equal fingerprint give equal embeddings."""
    dim: int
    embedder: Embedder


class Progress(NamedTuple):
    """Progress of embedding: numbers of files, and seconds since the start."""

    done: int
    total: int
    seconds: float

    @property
    def rate(self) -> float:
        """Files a second."""
        return self.done / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float:
        return (self.total - self.done) / max(self.rate, 1e-9)


Tell = Callable[[Progress], None]


class Chunk(NamedTuple):
    """Rows to commit for some files, and the error that ends the run after that."""

    num_files: int
    contents: pa.Table
    files: pa.Table
    problem: UserError | None = None


@dataclass(kw_only=True)
class Index:
    """Content of each file, after everything new is embedded."""

    scanned: Scan
    contents: dict[File, str] = field(default_factory=dict)
    """BLAKE2b-128 of the files that can be read."""
    broken: dict[File, str] = field(default_factory=dict)
    """Reasons of the others."""
    kept: int = 0
    embedded: int = 0
    """Files whose content was new."""
    renamed: int = 0
    """Files of new names whose content was there."""
    num_decoded: int = 0
    """Distinct contents that were decoded and embedded."""
    seconds: float = 0.0
    """Seconds of embedding."""


@dataclass(kw_only=True)
class Rows:
    """Embedded contents, sorted by content and frame."""

    content: np.ndarray
    frame: np.ndarray
    embedding: Float16[np.ndarray, "rows dim"]
    phash: np.ndarray
    dhash: np.ndarray
    width: np.ndarray
    height: np.ndarray
    taken: np.ndarray
    cut_short: np.ndarray

    def __len__(self) -> int:
        return len(self.content)

    @property
    def starts(self) -> np.ndarray:
        """The first row of each content."""
        is_first = np.ones(len(self), bool)
        is_first[1:] = self.content[1:] != self.content[:-1]
        return np.flatnonzero(is_first)

    @cached_property
    def hashes(self) -> UInt64[np.ndarray, "rows 2"]:
        """pHash and dHash of each row."""
        return np.stack([self.phash, self.dhash], axis=1).astype(np.uint64)


class Engine(Protocol):
    """Protocol of what reads and embeds files, in this process or on other machines."""

    def __call__(
        self, index: Index, model: Embedding, known: set[str], named: Collection[str], new: Sequence[File], /
    ) -> Generator[Chunk, None, None]:
        """Chunks of the new files, each entered into `index`; a chunk is committed before the next is asked for.

        Args:
          known: contents that the model's table has.
          named: ids of files that have a row.
        """


def file_id(root: str, path: str) -> str:
    """The key of a file's name, which need not be text."""
    return hashlib.blake2b(os.fsencode(root) + b"\0" + os.fsencode(path), digest_size=16).hexdigest()


def content_key(data: bytes) -> str:
    """BLAKE2b-128 of a file, 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def embed_files(
    scanned: Scan,
    store: Store,
    model: Embedding,
    *,
    verify: bool = False,
    tell: Tell = lambda progress: None,
    engine: Engine | None = None,
) -> Index:
    """Embeds every file whose content the model's table lacks; each chunk is committed when it is done.

    With `verify` all files are read and hashed again. The caller holds the store's lock.

    Raises:
      FileProblem: the store cannot be written, or all files of a chunk are gone; what was embedded stays.
    """
    files, contents = store.files(), store.contents(model.fingerprint, model.dim)
    index = Index(scanned=scanned)
    known = set(contents.rows(["content"])["content"].to_pylist())
    named = _named(scanned, files)
    new = list(_new_files(index, named, known, verify=verify))
    if new:
        started, done = time.monotonic(), 0
        with closing((engine or in_threads)(index, model, known, named.keys(), new)) as chunks:
            for chunk in chunks:
                # A kill between the two costs a look into files, and no embedding.
                contents.upsert(chunk.contents)
                files.upsert(chunk.files)
                if chunk.problem is not None:
                    raise chunk.problem
                done += chunk.num_files
                index.seconds = time.monotonic() - started
                tell(Progress(done, len(new), index.seconds))
    for table in (files, contents):
        table.tidy()
    return index


def in_threads(
    index: Index, model: Embedding, known: set[str], named: Collection[str], new: Sequence[File]
) -> Generator[Chunk, None, None]:
    """The engine of one process, whose threads read and decode ahead."""
    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode") as pool:
        work = _Work(index, model, known, named, pool)
        try:
            yield from work.chunks(new)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _is_there(root: Root, path: str) -> bool:
    """Whether a folder still has a file; of a zip, all that is there was scanned."""
    name = _SPELLED_OUT.sub(lambda found: chr(int(found[1], 16)), path)
    return not root.is_zip and os.path.lexists(os.path.join(root.path, name))


def _named(scanned: Scan, files: Table) -> dict[str, tuple[Any, ...]]:
    """Entries of the table below the scanned roots: size, time, content, reason and decoder."""
    roots = sorted({spelled_out(root.path) for root in scanned.roots})
    rows = files.rows(["root", "id", "size", "mtime_ns", "content", "broken", "decoder"])
    rows = rows.filter(pc.is_in(rows["root"], pa.array(roots, pa.string())))
    columns = [rows[name].to_pylist() for name in rows.column_names if name not in ("root", "_rowid")]
    return {row[0]: row[1:] for row in zip(*columns, strict=True)}


def _new_files(index: Index, named: dict[str, tuple[Any, ...]], known: set[str], *, verify: bool) -> Iterator[File]:
    """The files that have to be read; the others are entered into the index."""
    current = decoder()
    for file in index.scanned.files:
        size, mtime_ns, content, broken, by = named.get(_id_of(index.scanned, file), (None,) * 5)
        if verify or (size, mtime_ns) != (file.size, file.mtime_ns):
            yield file
        elif broken is not None and by == current:
            index.broken[file] = broken
        elif broken is None and content in known:
            index.contents[file] = content
            index.kept += 1
        else:
            yield file


def _id_of(scanned: Scan, file: File) -> str:
    return file_id(scanned.roots[file.root].path, file.path)


class _Visited(NamedTuple):
    """A file that was read: its content and a decoding that may still go on, or a reason why not."""

    file: File
    content: str | None = None
    decoding: "Future[list[Decoded]] | None" = None
    reason: str | None = None
    is_gone: bool = False
    """Whether the reason is the drive's, so that the file is tried again the next time."""

    @property
    def bytes_held(self) -> int:
        return self.file.size if self.decoding is not None and not self.decoding.done() else 0


class _Work:
    """Embeds chunk after chunk, while threads read and decode ahead."""

    def __init__(
        self, index: Index, model: Embedding, known: set[str], named: Collection[str], pool: ThreadPoolExecutor
    ) -> None:
        self.index, self.model, self.known, self.named, self.pool = index, model, known, named, pool
        self.claimed: set[str] = set()
        """New contents of this run: the first file of each, in their order, is decoded."""
        self.unreadable: dict[str, str] = {}
        """Reasons by content."""
        self.archives: dict[int, Archive] = {}
        self.num_visited, self.gone = 0, list[File]()
        """In the last chunk."""

    def chunks(self, new: Sequence[File]) -> Iterator[Chunk]:
        """Files in order, `CHUNK` at a time."""
        visits = self._visits(new)
        for start in range(0, len(new), CHUNK):
            yield self._chunk(itertools.islice(visits, min(CHUNK, len(new) - start)))

    def _drive_problem(self) -> FileProblem | None:
        """The end of the run where not single files are gone, but their folder, or all of a chunk."""
        if not self.gone:
            return None
        root = self.index.scanned.roots[self.gone[0].root].path
        if os.path.exists(root) and not len(self.gone) == self.num_visited > 1:
            return None
        return FileProblem(
            f"{root}: {self.gone[0].path} {self.index.broken[self.gone[0]]}, like {len(self.gone) - 1:,} more: is "
            "the drive still there? What was embedded stays; the same command goes on with it"
        )

    def _visits(self, new: Sequence[File]) -> Iterator[_Visited]:
        """Every file in order. Contents are claimed in this order, so that batches do not depend on which thread was
        faster."""
        waiting, reads, visited = iter(new), deque[tuple[File, Future[tuple[str, bytes]]]](), deque[_Visited]()
        upcoming = next(waiting, None)
        while upcoming is not None or reads or visited:
            held = sum(file.size for file, _ in reads) + sum(one.bytes_held for one in visited)
            while upcoming is not None and len(reads) + len(visited) < IN_FLIGHT:
                held += upcoming.size
                if held > BYTES_IN_FLIGHT and (reads or visited):
                    break
                reads.append((upcoming, self.pool.submit(self._read, upcoming)))
                upcoming = next(waiting, None)
            while reads and (not visited or reads[0][1].done()):
                visited.append(self._claim(*reads.popleft()))
            yield visited.popleft()

    def _read(self, file: File) -> tuple[str, bytes]:
        root = self.index.scanned.roots[file.root]
        if file.size > MAX_BYTES:
            raise BrokenImage(f"{file.size:,} bytes; at most {MAX_BYTES:,} are read")
        if root.is_zip:
            data = self._archive(file.root).read(file.path)
        else:
            with open(os.path.join(root.path, file.path), "rb") as opened:
                data = opened.read(MAX_BYTES + 1)
        return content_key(data), data

    def _archive(self, number: int) -> Archive:
        if number not in self.archives:
            self.archives[number] = Archive(self.index.scanned.roots[number].path)
        return self.archives[number]

    def _claim(self, file: File, reading: "Future[tuple[str, bytes]]") -> _Visited:
        try:
            content, data = reading.result()
        except BrokenImage as error:
            return _Visited(file, reason=str(error))
        except OSError as error:
            reason = f"{UNREACHABLE} read ({error.strerror or error})"
            return _Visited(file, reason=reason, is_gone=error.errno is not None)
        if content in self.known or content in self.claimed:
            return _Visited(file, content)
        self.claimed.add(content)
        return _Visited(file, content, self.pool.submit(decode_all, data, file.path, self.model.embedder.geometry))

    def _chunk(self, visits: Iterator[_Visited]) -> Chunk:
        batches = _Batches(self.model)
        rows: list[dict[str, Any]] = []
        described: list[tuple[str, Decoded]] = []
        self.num_visited, self.gone = 0, []
        for visit in visits:
            self.num_visited += 1
            if visit.is_gone:
                self.gone.append(visit.file)
            reason = visit.reason
            if visit.decoding is not None:
                assert visit.content is not None
                try:
                    for decoded in visit.decoding.result():
                        batches.add(decoded.pixels)
                        described.append((visit.content, decoded._replace(pixels=_NO_PIXELS)))
                    self.index.num_decoded += 1
                except BrokenImage as error:
                    self.unreadable[visit.content] = str(error)
                except MemoryError:
                    self.unreadable[visit.content] = "decoding takes more memory than there is"
            if visit.content is not None:
                reason = self.unreadable.get(visit.content)
            self._count(visit, reason)
            if not visit.is_gone:
                rows.append(self._row(visit, reason))
        embeddings = batches.finish()
        contents = _rows_of_contents(described, embeddings, self.model)
        return Chunk(self.num_visited, contents, pa.Table.from_pylist(rows, FILES), self._drive_problem())

    def _count(self, visit: _Visited, reason: str | None) -> None:
        if reason is not None:
            self.index.broken[visit.file] = reason
            return
        assert visit.content is not None
        self.index.contents[visit.file] = visit.content
        if visit.content in self.claimed:
            self.index.embedded += 1
        else:
            self.index.kept += 1
            self.index.renamed += _id_of(self.index.scanned, visit.file) not in self.named

    def _row(self, visit: _Visited, reason: str | None) -> dict[str, Any]:
        root, file = self.index.scanned.roots[visit.file.root].path, visit.file
        return {
            "id": file_id(root, file.path),
            "root": spelled_out(root),
            "path": spelled_out(file.path),
            "size": file.size,
            "mtime_ns": file.mtime_ns,
            "content": visit.content,
            "broken": None if reason is None else spelled_out(reason),
            "decoder": decoder(),
        }


_NO_PIXELS = np.zeros((0, 0, 3), np.uint8)


class _Batches:
    """Pictures to embeddings in batches of one shape; the last one is filled up with zeros."""

    def __init__(self, model: Embedding) -> None:
        self.model = model
        self.waiting: list[np.ndarray] = []
        self.computing: deque[tuple[int, Any]] = deque()
        self.done: list[np.ndarray] = []

    def add(self, pixels: np.ndarray) -> None:
        self.waiting.append(pixels)
        if len(self.waiting) == self.model.embedder.batch_size:
            self._start()

    def _start(self) -> None:
        embedder = self.model.embedder
        batch = np.zeros((embedder.batch_size, *self.waiting[0].shape), np.uint8)
        batch[: len(self.waiting)] = self.waiting
        self.computing.append((len(self.waiting), embedder(batch)))
        self.waiting = []
        if len(self.computing) > 1:
            # The next batch is collected while this one computes.
            self._take()

    def _take(self) -> None:
        count, embedded = self.computing.popleft()
        self.done.append(np.asarray(embedded)[:count])

    def finish(self) -> np.ndarray:
        """Float16 `[pictures, dim]`."""
        if self.waiting:
            self._start()
        while self.computing:
            self._take()
        found = np.concatenate([*self.done, np.zeros((0, self.model.dim), np.float32)])
        if not np.isfinite(found).all():
            raise NotFinite(
                f"the model {self.model.name} gives embeddings that are not finite: its file may be damaged"
            )
        return found.astype(np.float16)


def _rows_of_contents(described: list[tuple[str, Decoded]], embeddings: np.ndarray, model: Embedding) -> pa.Table:
    schema = contents_schema(model.dim)
    columns = {
        "id": [f"{content}-{one.frame}" for content, one in described],
        "content": [content for content, _ in described],
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel(), pa.float16()), model.dim),
    }
    for name in ("frame", "phash", "dhash", "width", "height", "taken", "cut_short"):
        columns[name] = [getattr(one, name) for _, one in described]
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def read_rows(table: Table, contents: Collection[str], dim: int) -> Rows:
    """The rows of some contents, sorted by content and frame."""
    names = ["content", "frame", "embedding", "phash", "dhash", "width", "height", "taken", "cut_short"]
    rows = table.rows(names)
    rows = rows.filter(pc.is_in(rows["content"], pa.array(sorted(contents), pa.string())))
    rows = rows.select(names).sort_by([("content", "ascending"), ("frame", "ascending")]).combine_chunks()
    flat = rows["embedding"].combine_chunks().flatten() if rows.num_rows else pa.array([], pa.float16())
    columns = {name: rows[name].to_numpy() for name in names if name != "embedding"}
    return Rows(embedding=flat.to_numpy(zero_copy_only=False).reshape(-1, dim), **columns)


def prune(scanned: Scan, store: Store, model: Embedding) -> tuple[int, int]:
    """Removes names below the scanned roots whose files are gone, and contents that no name has any more.

    What is there and was not scanned, because it is hidden or excluded, stays.

    Returns:
      How many names and how many contents.
    """
    files, contents = store.files(), store.contents(model.fingerprint, model.dim)
    there = {_id_of(scanned, name) for file in scanned.files for name in (file, *scanned.aliases.get(file, ()))}
    roots = {spelled_out(root.path): root for root in scanned.roots}
    names = files.rows(["id", "root", "path"])
    gone = [
        key
        for key, root, path in zip(*(names[name].to_pylist() for name in ("id", "root", "path")), strict=True)
        if root in roots and key not in there and not _is_there(roots[root], path)
    ]
    files.delete(gone)
    used = set(files.rows(["content"])["content"].to_pylist())
    rows = contents.rows(["id", "content"])
    unused = [
        key
        for key, content in zip(*(rows[name].to_pylist() for name in ("id", "content")), strict=True)
        if content not in used
    ]
    contents.delete(unused)
    for table in (files, contents):
        table.tidy()
    return len(gone), len(unused)
