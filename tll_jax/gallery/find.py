"""`tll find` as a function: places with pictures to a result, its page and its JSON."""

import functools
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from tll_jax.data.archive import Archive
from tll_jax.data.duplicates import NearDuplicates
from tll_jax.errors import InvalidValue
from tll_jax.files import check_writable
from tll_jax.gallery import result as results
from tll_jax.gallery import search
from tll_jax.gallery.builder import Builder, Gallery, Request
from tll_jax.gallery.embed import Embedding, Index, Progress, embed_files, prune, read_rows
from tll_jax.gallery.known import KnownLists
from tll_jax.gallery.maps import with_maps
from tll_jax.gallery.pictures import read_frames
from tll_jax.gallery.reasons import with_reasons
from tll_jax.gallery.result import Picture, Result
from tll_jax.gallery.scan import Root, Scan, mend
from tll_jax.gallery.store import Store, store_place
from tll_jax.gallery.stored import load_embedding
from tll_jax.report.find_page import INDEX, write_find_page
from tll_jax.report.numbers import plural
from tll_jax.study.load import LoadedModel
from tll_jax.typing import Image

logger = logging.getLogger(__name__)

APPROXIMATE_FROM = 2_000_000
"""Pictures from which on an index is used where it is asked for."""
PAGE_MARK = b'id="command"'
"""What every page of a result has."""
_CONTENT = re.compile(r"[0-9a-f]{32}")

Tell = Callable[[str, float, Progress | None], None]
"""Takes the part of the work, the fraction of it that is done, and numbers of embedding."""


def find(request: Request, tell: Tell = lambda part, share, progress: None) -> Result:
    """Embeds what is new, searches, explains, and writes `find.json` and the page.

    Raises:
      InvalidValue: no picture can be read, or the model is of a wrong kind.
      FileProblem: a file or folder cannot be read or written; what was embedded stays.
    """
    check_writable(request.out / results.RESULT)
    _check_page(request.out / INDEX)
    if not any(scanned.files for scanned in request.scans.values()):
        raise InvalidValue(_nothing(request))
    ignored = _ignored(request.ignore)
    seconds: dict[str, float] = {}
    with _timed(seconds, "load"):
        model, embedding = load_embedding(request.model)
    galleries = _embed(request, embedding, tell, seconds)
    warn_of_learned(model, galleries)
    with _timed(seconds, "search"):
        tell("search", 0.0, None)
        sides = {role: search.Side.of(gallery.rows) for role, gallery in galleries.items()}
        nearest = _index(request, embedding, sides["searched"])
        found = _search(request, galleries, sides, nearest, lambda share: tell("search", share, None))
        recall, recall_queries = (None, None) if nearest is None else nearest.recall(request.top)
    builder = Builder(request, galleries, found, ignored)
    searched = results.Search(
        exact=nearest is None,
        neighbors=request.top,
        hub_correction=True,
        recall=recall,
        recall_queries=recall_queries,
    )
    result = builder.result(model, embedding, searched, seconds)
    reader = Reader(request.scans)
    geometry = embedding.embedder.geometry

    def read(picture: Picture) -> Image:
        return reader(picture, geometry.shortest_side)

    with _timed(seconds, "reasons"):
        pairs = with_reasons(
            result.pairs,
            builder.random_pictures(),
            model=model,
            read=read,
            geometry=geometry,
            progress=lambda done, total: tell("reasons", done / max(1, total), None),
        )
    if request.maps:
        with _timed(seconds, "maps"):
            pairs = with_maps(
                pairs,
                request.out,
                explainer=model.explainer,
                read=read,
                progress=lambda done, total: tell("maps", done / max(1, total), None),
            )
    result = replace(result, pairs=tuple(pairs))
    with _timed(seconds, "page"):
        write_find_page(result, request.out, read=reader)
    results.write(result, request.out)
    return result


def _check_page(page: Path) -> None:
    """Raises `InvalidValue` for a page that is there and not of `tll find`."""
    if page.is_file() and PAGE_MARK not in page.read_bytes():
        raise InvalidValue(f"{page} is not of tll find, and would be replaced: give --out another folder")


def _nothing(request: Request) -> str:
    where = ", ".join(root.path for scanned in request.scans.values() for root in scanned.roots)
    skipped = sum((scanned.skipped for scanned in request.scans.values()), start=Counter[str]())
    unread = ", ".join(f"{count:,} {suffix} ({mend(suffix)})" for suffix, count in skipped.most_common())
    hint = f"not read are {unread}" if unread else "give a folder or zip with pictures; --hidden looks into .folders"
    return f"{where}: no picture is there that can be read; {hint}"


class _timed:
    """Adds the seconds of a block to a part's."""

    def __init__(self, seconds: dict[str, float], part: str) -> None:
        self.seconds, self.part = seconds, part

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.part] = round(time.monotonic() - self.started, 3)


def _embed(
    request: Request, embedding: Embedding, tell: Tell, seconds: dict[str, float]
) -> dict[results.Role, Gallery]:
    store = Store(store_place(request.cache))
    report = functools.partial(_tell_embedding, tell)
    indices: dict[results.Role, Index] = {}
    galleries, first_folder = {}, 0
    with _timed(seconds, "embed"), store.writing(request.command):
        # The fewest first: a query that is no picture is told before hours of embedding.
        for role, scanned in sorted(request.scans.items(), key=lambda item: (len(item[1].files), item[0])):
            indices[role] = embed_files(scanned, store, embedding, verify=request.verify, tell=report)
            if not indices[role].contents:
                raise InvalidValue(_all_broken(scanned, indices[role]))
            if request.prune:
                prune(scanned, store, embedding)
        table = store.contents(embedding.fingerprint, embedding.dim)
        for role, scanned in request.scans.items():
            galleries[role] = Gallery(
                scanned=scanned,
                index=indices[role],
                model=embedding.fingerprint,
                first_folder=first_folder,
                rows=read_rows(table, set(indices[role].contents.values()), embedding.dim),
            )
            first_folder += len(scanned.roots)
    return galleries


def warn_of_learned(model: LoadedModel, galleries: Mapping[results.Role, Gallery]) -> None:
    """Warns of pictures that the model was fitted on, as far as a model file holds their perceptual hashes.

    Where queries are asked, only they are compared.
    """
    learned = [] if model.file is None else model.file.perceptual
    if not learned:
        return
    asked = [galleries["query"]] if "query" in galleries else list(galleries.values())
    perceptual = {
        content: f"{phash:016x}{dhash:016x}"
        for rows in (gallery.rows for gallery in asked)
        for content, phash, dhash in zip(rows.content, rows.phash.tolist(), rows.dhash.tolist(), strict=True)
    }
    if count := int(NearDuplicates().are_close([*perceptual.values()], learned).sum()):
        logger.warning(
            "%s is fitted on %d of %s here, or on nearly the same: they may seem more alike than others",
            model.source,
            count,
            plural(len(perceptual), "picture"),
        )


def _tell_embedding(tell: Tell, progress: Progress) -> None:
    tell("embed", progress.done / progress.total, progress)


def _all_broken(scanned: Scan, index: Index) -> str:
    where = ", ".join(root.path for root in scanned.roots)
    if not scanned.files:
        return f"{where}: no picture is there that can be read"
    file, reason = next(iter(index.broken.items()))
    return f"{where}: none of {len(scanned.files):,} pictures can be read; {file.path}: {reason}"


def _search(
    request: Request,
    galleries: Mapping[results.Role, Gallery],
    sides: Mapping[results.Role, search.Side],
    nearest: search.Nearest | None,
    tell: Callable[[float], None],
) -> search.Found:
    if request.mode in ("against", "pair"):
        own = _own_files(galleries["searched"], sides["searched"], galleries["against"], sides["against"])
        return search.search_across(sides["searched"], sides["against"], request.top, own, tell)
    if request.mode == "query":
        own = _own_files(galleries["query"], sides["query"], galleries["searched"], sides["searched"])
        return search.search_queries(sides["query"], sides["searched"], request.top, own, nearest)
    return search.search_within(sides["searched"], request.top, _known(request, galleries["searched"]), tell)


def _known(request: Request, gallery: Gallery) -> KnownLists:
    place = store_place(request.cache)
    folder = None if "://" in place else Path(place)
    return KnownLists(folder, gallery.model, [root.path for root in gallery.scanned.roots])


def _index(request: Request, embedding: Embedding, gallery: search.Side) -> search.Nearest | None:
    """The table's index, where one was asked for and pays."""
    if not request.approximate:
        return None
    if len(gallery) < APPROXIMATE_FROM:
        logger.warning("%s pictures are compared exactly: an index pays from %s on", len(gallery), APPROXIMATE_FROM)
        return None
    table = Store(store_place(request.cache)).contents(embedding.fingerprint, embedding.dim)
    table.make_index()
    return search.Nearest(table, gallery)


def _own_files(queries: Gallery, asked: search.Side, gallery: Gallery, there: search.Side) -> np.ndarray:
    """Gallery index of each query's own file, by device and inode; copies do not count, and -1 is none."""
    places = {str(content): at for at, content in enumerate(there.contents)}
    own = np.full(len(asked), -1, np.int64)
    for at, content in enumerate(asked.contents):
        ours, theirs = (
            {(file.device, file.inode) for file in one.names.get(str(content), ())} for one in (queries, gallery)
        )
        if theirs and theirs <= ours and all(inode for _, inode in theirs):
            own[at] = places[str(content)]
    return own


def _ignored(path: Path | None) -> frozenset[frozenset[str]]:
    """Pairs of contents that a file lists as not alike: two hashes a line, with comments after `#`.

    Raises:
      InvalidValue: another line.
    """
    if path is None:
        return frozenset()
    pairs = set()
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        words = line.split("#")[0].split()
        if words and not (len(words) == 2 and all(_CONTENT.fullmatch(word) for word in words)):
            raise InvalidValue(
                f"{path}, line {number}: {line[:80]!r}; it must be two content hashes of 32 digits, as the page writes "
                "them"
            )
        if words:
            pairs.add(frozenset(words))
    return frozenset(pairs)


class Reader:
    """Decodes pictures of the scanned places again, for the page and for reasons."""

    def __init__(self, scans: Mapping[results.Role, Scan]) -> None:
        self.roots: list[Root] = [root for scanned in scans.values() for root in scanned.roots]
        self.archives: dict[int, Archive] = {}
        self.lock = threading.Lock()

    def __call__(self, picture: Picture, shortest_side: int) -> Image:
        """The frame of a picture.

        Raises:
          OSError: the file is gone.
          BrokenImage: it was changed.
        """
        root = self.roots[picture.folder]
        if root.is_zip:
            with self.lock:
                if picture.folder not in self.archives:
                    self.archives[picture.folder] = Archive(root.path)
            data = self.archives[picture.folder].read(picture.path)
        else:
            data = Path(root.path, picture.path).read_bytes()
        frames = dict(read_frames(data, picture.path, shortest_side)[0])
        return frames[picture.frame] if picture.frame in frames else next(iter(frames.values()))
