"""Galleries on disk: embedded once, opened as rows and ids, and converted from the shards of version 0.1."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from tll_jax.errors import InvalidValue, MissingFile
from tll_jax.evaluation import gallery as shards
from tll_jax.files import spelled_out
from tll_jax.gallery.arrow import pa
from tll_jax.gallery.embed import Embedding, Engine, Index, Tell, embed_files, file_id
from tll_jax.gallery.neighbors import Points
from tll_jax.gallery.scan import ScanOptions, roots_of, scan
from tll_jax.gallery.store import FILES, Store, contents_schema
from tll_jax.study.load import LoadedModel, load
from tll_jax.typing import Skipped

ROWS_AT_ONCE = 65_536


def load_embedding(name: str) -> tuple[LoadedModel, Embedding]:
    """A model with its name, fingerprint and embedder for a gallery."""
    model = load(name)
    embedder = model.embedder
    shape = np.asarray(embedder(np.zeros(embedder.batch_shape, np.uint8))).shape
    return model, Embedding(name=name, fingerprint=model.fingerprint, dim=shape[1], embedder=embedder)


def embed_gallery(
    model: str,
    images: str,
    out: str,
    *,
    command: str,
    tell: Tell = lambda progress: None,
    engine: Engine | None = None,
) -> Index:
    """Adds the pictures below a folder or in a zip to a gallery, which is made where it is missing.

    The engine is this process, unless another is given: `gallery.ray_engine.RayEngine`.

    Raises:
      InvalidValue: no picture can be read.
      FileProblem: the gallery cannot be written; what was embedded stays.
    """
    scanned = scan(roots_of([images]), ScanOptions())
    if not scanned.files:
        raise InvalidValue(f"{images}: no picture is there that can be read")
    store = Store(out)
    _, embedding = load_embedding(model)
    with store.writing(command):
        index = embed_files(scanned, store, embedding, tell=tell, engine=engine)
    if not index.contents:
        file, reason = next(iter(index.broken.items()))
        raise InvalidValue(f"{images}: none of {len(scanned.files):,} pictures can be read; {file.path}: {reason}")
    return index


class Gallery:
    """The embeddings of a gallery, a row for each name of a picture, in the order of names.

    `gallery[start:stop]` are rows of unit length, float32 `[stop - start, dim]`; the first frames of animations count.
    """

    def __init__(self, names: Sequence[str], vectors: np.ndarray, embedded_by: str, broken: list[Skipped]) -> None:
        self._names = np.array(names, object)
        self._points = Points.of(vectors)
        self.embedded_by = embedded_by
        """Equal for galleries whose embeddings can be compared."""
        self.broken = broken

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, dim)."""
        return len(self._names), self._points.vectors.shape[1]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, rows: slice) -> Float32[np.ndarray, "rows dim"]:
        return self._points.block(rows)

    def ids(self, rows: Int[np.ndarray, "*shape"] | range) -> np.ndarray:
        """The ids of rows, such as the columns that a ranking found: strings of the same shape."""
        return self._names[np.asarray(rows)]


def open_gallery(place: str | Path, model: str | None = None) -> Gallery | shards.StoredGallery:
    """Opens a gallery that `tll embed` has made, of this version or in shards.

    Args:
      model: the fingerprint of the model, where the gallery has tables of several.

    Raises:
      MissingFile: there is no gallery, or it lacks shards.
      InvalidValue: it has tables of several models, or none of that model.
      DamagedFile: a table or shard is damaged.
    """
    if (Path(place) / shards.DESCRIPTION).exists():
        return shards.open_gallery(place)
    if "://" not in str(place) and not (Path(place) / "files.lance").exists():
        raise MissingFile(f"{place} holds no gallery: make one with tll embed RUN IMAGES --out DIR")
    store = Store(str(place))
    models = store.models()
    chosen = [name for name in models if model in (None, name)]
    if len(chosen) != 1:
        listed = ", ".join(models) or "none"
        raise InvalidValue(f"{place} has tables of the models {listed}: name one, open_gallery(..., model=FINGERPRINT)")
    contents = store.contents(chosen[0])
    rows = contents.rows(["content", "frame", "embedding"]).sort_by([("content", "ascending"), ("frame", "ascending")])
    columns = ["root", "path", "content", "broken"]
    in_order = store.files().rows(columns).sort_by([("root", "ascending"), ("path", "ascending")])
    files = in_order.select(columns).to_pylist()
    has_many = len({file["root"] for file in files}) > 1
    names = [f"{file['root']}/{file['path']}" if has_many else str(file["path"]) for file in files]
    keys = rows["content"].to_pylist()
    first = {content: len(keys) - 1 - at for at, content in enumerate(reversed(keys))}
    there = [at for at, file in enumerate(files) if file["content"] in first and file["broken"] is None]
    vectors = rows["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(keys), -1)
    return Gallery(
        [names[at] for at in there],
        vectors[[first[files[at]["content"]] for at in there]],
        chosen[0],
        [Skipped(names[at], file["broken"]) for at, file in enumerate(files) if file["broken"] is not None],
    )


def import_shards(old: Path, out: str, *, command: str) -> int:
    """Converts the shards of version 0.1 to a gallery of this version; returns the number of rows.

    Contents of the files are not in shards: pictures that are embedded later do not find their rows here.

    Raises:
      MissingFile, InvalidValue, DamagedFile: `old` is no whole gallery of shards.
    """
    opened = shards.open_gallery(old)
    store = Store(out)
    root = str(old.absolute())
    with store.writing(command):
        contents = store.contents(opened.embedded_by, opened.shape[1])
        files = store.files()
        for start in range(0, len(opened), ROWS_AT_ONCE):
            names = opened.ids(range(start, min(start + ROWS_AT_ONCE, len(opened)))).tolist()
            ids = [file_id(root, name) for name in names]
            vectors = Points.of(opened[start : start + len(names)]).block(slice(None)).astype(np.float16)
            contents.upsert(_rows_of(ids, vectors))
            files.upsert(_rows_of_files(ids, root, names))
        broken = [(name, reason) for name, reason in opened.broken]
        ids = [file_id(root, name) for name, _ in broken]
        files.upsert(_rows_of_files(ids, root, [name for name, _ in broken], [reason for _, reason in broken]))
        for table in (contents, files):
            table.tidy()
    return len(opened)


def _rows_of(ids: list[str], vectors: np.ndarray) -> pa.Table:
    schema = contents_schema(vectors.shape[1])
    known = {
        "id": [f"{one}-0" for one in ids],
        "content": [_content_of(one) for one in ids],
        "frame": np.zeros(len(ids), np.int32),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float16()), vectors.shape[1]),
    }
    return pa.table({name: known.get(name, [None] * len(ids)) for name in schema.names}, schema=schema)


def _rows_of_files(ids: list[str], root: str, names: list[str], reasons: list[str] | None = None) -> pa.Table:
    nothing: list[str | None] = [None] * len(ids)
    columns: dict[str, list[str | None]] = {
        "id": [*ids],
        "root": [spelled_out(root)] * len(ids),
        "path": [spelled_out(name) for name in names],
        "content": [_content_of(one) for one in ids] if reasons is None else [None] * len(ids),
        "broken": [None] * len(ids) if reasons is None else [*reasons],
        "decoder": ["shards"] * len(ids),
    }
    return pa.table({name: columns.get(name, nothing) for name in FILES.names}, schema=FILES)


def _content_of(identity: str) -> str:
    """Placeholder of an unknown content, which is no hash of a file."""
    return hashlib.blake2b(f"imported {identity}".encode(), digest_size=16).hexdigest()
