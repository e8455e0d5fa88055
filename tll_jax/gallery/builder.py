"""The result of `tll find` from the numbers of a search."""

import datetime
import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import tll_jax
from tll_jax.gallery import result as results
from tll_jax.gallery import search
from tll_jax.gallery.embed import Embedding, Index, Rows
from tll_jax.gallery.kinds import differing_bits, stars
from tll_jax.gallery.reasons import NUM_RANDOM
from tll_jax.gallery.result import FileName, Pair, Picture, Result
from tll_jax.gallery.scan import File, Scan, mend
from tll_jax.study.load import LoadedModel

HUB_FACTOR = 4
"""A hub is in so many times as many lists as the average picture."""
MOST_HUBS = 20
GROUP_STRENGTH = 1000.0
"""Pictures are grouped where they are as alike as one in so many random pairs, if nothing else is said."""
QUANTILES = ("0.5", "0.9", "0.99", "0.999", "0.9999", "1")


@dataclass(frozen=True, kw_only=True)
class Request:
    """Options of a search, and the folder of its result."""

    scans: Mapping[results.Role, Scan]
    mode: results.Mode
    out: Path
    command: str
    model: str = "default"
    top: int = 10
    pairs: int = 200
    kinds: tuple[results.Kind, ...] = ()
    """Empty for all."""
    min_strength: float = 0.0
    group: bool = False
    ignore: Path | None = None
    approximate: bool = False
    cache: str | None = None
    prune: bool = False
    verify: bool = False
    maps: bool = False


@dataclass(kw_only=True)
class Gallery:
    """Scanned and embedded pictures of one role."""

    scanned: Scan
    index: Index
    model: str
    """The fingerprint of what embedded them."""
    first_folder: int
    """Where the roots of this role begin in `Result.folders`."""
    rows: Rows
    names: dict[str, list[File]] = field(default_factory=dict)
    """All files of a content, but for links."""

    def __post_init__(self) -> None:
        for file in self.scanned.files:
            if (content := self.index.contents.get(file)) is not None:
                self.names.setdefault(content, []).append(file)

    def name(self, file: File) -> FileName:
        return FileName(folder=self.first_folder + file.root, path=file.path)

    def picture(self, row: int, which: int = 0) -> Picture:
        """The picture of a row, by one of its content's names."""
        rows, content = self.rows, str(self.rows.content[row])
        file = self.names[content][which]
        return Picture(
            folder=self.first_folder + file.root,
            path=file.path,
            content=content,
            width=int(rows.width[row]),
            height=int(rows.height[row]),
            size=file.size,
            taken=rows.taken[row],
            frame=int(rows.frame[row]),
            cut_short=bool(rows.cut_short[row]),
            aliases=tuple(self.name(alias) for alias in self.scanned.aliases.get(file, ())),
        )


class Builder:
    """Numbers of a search to values of the result."""

    def __init__(
        self,
        request: Request,
        galleries: Mapping[results.Role, Gallery],
        found: search.Found,
        ignored: frozenset[frozenset[str]],
    ) -> None:
        self.request, self.found, self.ignored = request, found, ignored
        self.galleries = galleries
        self.left_gallery = galleries["query" if request.mode == "query" else "searched"]
        self.right_gallery = galleries["against" if "against" in galleries else "searched"]
        self.lists = (found.lists, found.back)
        sizes = (len(found.right), len(found.left))
        self.list_counts = [
            None if ranked is None else np.bincount(ranked.indices[ranked.indices >= 0], minlength=size)
            for ranked, size in zip(self.lists, sizes, strict=True)
        ]

    def result(
        self, model: LoadedModel, embedding: Embedding, searched: results.Search, seconds: dict[str, float]
    ) -> Result:
        request, found = self.request, self.found
        pairs, num_ignored = self._chosen()
        indices = [gallery.index for gallery in self.galleries.values()]
        broken = tuple(self._broken())
        skipped = tuple(self._skipped())
        embedded, taken = sum(index.num_decoded for index in indices), sum(index.seconds for index in indices)
        quantiles = {name: float(np.quantile(found.random, float(name))) for name in QUANTILES if len(found.random)}
        return Result(
            command=request.command,
            versions={"tll_jax": tll_jax.__version__, "python": platform.python_version()},
            mode=request.mode,
            model=_model(model, embedding),
            folders=tuple(
                results.Folder(path=root.path, role=role)
                for role, scanned in request.scans.items()
                for root in scanned.roots
            ),
            counts=results.Counts(
                images=sum(len(index.scanned.files) for index in indices),
                contents=len(set().union(*(index.contents.values() for index in indices))),
                compared=found.num_compared,
                broken=len(broken),
                skipped=sum(one.count for one in skipped),
                cut_short=sum(int(gallery.rows.cut_short.sum()) for gallery in self.galleries.values()),
                pairs=len(pairs),
                ignored=num_ignored,
            ),
            search=searched,
            random_pairs=(
                results.RandomPairs(count=len(found.random), seed=search.SEED, quantiles=quantiles)
                if len(found.random) >= search.LEAST_RANDOM
                else None
            ),
            pairs=tuple(self._pair(pairs, at) for at in range(min(len(pairs), self._most()))),
            duplicates=tuple(self._duplicates()),
            groups=tuple(self._groups()),
            hubs=tuple(self._hubs()),
            broken=broken,
            skipped=skipped,
            run=results.Run(
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                kept=sum(index.kept for index in indices),
                embedded=sum(index.embedded for index in indices),
                renamed=sum(index.renamed for index in indices),
                seconds=seconds,
                images_per_second=embedded / taken if taken else None,
            ),
        )

    def _most(self) -> int:
        """A query shows its whole list."""
        if self.request.mode == "query":
            return max(self.request.pairs, self.request.top * len(self.found.left))
        return self.request.pairs

    def _wanted(self, kind: str) -> bool:
        return not self.request.kinds or kind in self.request.kinds

    def _chosen(self) -> tuple[search.Pairs, int]:
        """The pairs of the wanted kinds and strength that are not ignored, and how many are."""
        pairs, kinds = self.found.pairs, search.kinds_of(self.found)
        chosen = np.array([self._wanted(kind) for kind in search.KINDS])[kinds]
        chosen &= self.found.are_as_alike(pairs.cosine, self.request.min_strength)
        num_ignored = 0
        if self.ignored:
            left, right = self.found.left.contents, self.found.right.contents
            named = {content for pair in self.ignored for content in pair}
            for at in np.flatnonzero(chosen & np.isin(left[pairs.left], list(named))):
                if frozenset((str(left[pairs.left[at]]), str(right[pairs.right[at]]))) in self.ignored:
                    chosen[at] = False
                    num_ignored += 1
        return pairs.take(np.flatnonzero(chosen)), num_ignored

    def _pair(self, pairs: search.Pairs, at: int) -> Pair:
        found, left, right = self.found, int(pairs.left[at]), int(pairs.right[at])
        left_row, right_row, cosine = self._best_rows(left, right)
        one_in, is_bound = found.one_in(cosine)
        bits = differing_bits(found.left.rows.hashes[left_row], found.right.rows.hashes[right_row])
        one = pairs.take(np.array([at]))
        left_rank, left_margin = _place(found.lists, left, right)
        right_rank, right_margin = (None, None) if found.back is None else _place(found.back, right, left)
        counts_of_right, counts_of_left = self.list_counts
        is_within = found.left is found.right
        return Pair(
            left=self.left_gallery.picture(left_row),
            right=self._right_picture(left_row, right_row),
            kind=search.KINDS[search.kinds_of(replace(found, pairs=one))[0]],
            cosine=_rounded(cosine),
            score=round(float(pairs.score[at]), 4),
            one_in=one_in,
            one_in_is_bound=is_bound,
            left_rank=left_rank,
            right_rank=right_rank,
            left_margin=left_margin,
            right_margin=right_margin,
            left_lists=None if counts_of_left is None else int(counts_of_left[left]),
            right_lists=int(counts_of_right[right]) if counts_of_right is not None and is_within else None,
            phash_bits=int(bits[0]),
            dhash_bits=int(bits[1]),
        )

    def _right_picture(self, left_row: int, right_row: int) -> Picture:
        """Name of a copy of the query, other than the query's own file."""
        picture = self.right_gallery.picture(right_row)
        if self.left_gallery is self.right_gallery:
            return picture
        own = {
            (file.device, file.inode) for file in self.left_gallery.names[str(self.left_gallery.rows.content[left_row])]
        }
        for which, file in enumerate(self.right_gallery.names[picture.content]):
            if not file.inode or (file.device, file.inode) not in own:
                return self.right_gallery.picture(right_row, which)
        return picture

    def _best_rows(self, left: int, right: int) -> tuple[int, int, float]:
        """The frames that are most alike, and their cosine, which no longer depends on how the search was cut."""
        sides = (self.found.left.points, left), (self.found.right.points, right)
        rows, vectors = [], []
        for points, picture in sides:
            rows.append(points.rows_of(np.array([picture]))[0])
            found = points.vectors[rows[-1]].astype(np.float64)
            vectors.append(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12))
        products = np.round(np.einsum("ld,rd->lr", *vectors), 6)
        at, other = np.unravel_index(int(np.argmax(products)), products.shape)
        return int(rows[0][at]), int(rows[1][other]), float(products[at, other])

    def _duplicates(self) -> Iterator[results.Duplicates]:
        """Equal files, then near-duplicates; both with the kept picture first."""
        if self._wanted("same-file"):
            for gallery in self.galleries.values():
                starts = gallery.rows.starts
                names = [gallery.names[content] for content in gallery.rows.content[starts].tolist()]
                copied = [(files[0], len(files), row) for files, row in zip(names, starts.tolist(), strict=True)]
                for _, num_names, row in sorted(one for one in copied if one[1] > 1):
                    copies = tuple(gallery.picture(row, which) for which in range(1, num_names))
                    yield results.Duplicates(kind="same-file", kept=gallery.picture(row), others=copies)
        if self._wanted("near-duplicate") and self.request.mode == "within":
            kept, starts = self.found.kept, self.found.left.points.starts
            members = np.flatnonzero(kept != np.arange(len(kept)))
            order = members[np.argsort(kept[members], kind="stable")]
            for center in np.unique(kept[members]):
                others = order[np.searchsorted(kept[order], center) : np.searchsorted(kept[order], center, "right")]
                yield results.Duplicates(
                    kind="near-duplicate",
                    kept=self.left_gallery.picture(int(starts[center])),
                    others=tuple(self.left_gallery.picture(int(starts[other])) for other in others),
                )

    def _groups(self) -> Iterator[results.Group]:
        if not self.request.group or self.request.mode != "within":
            return
        least = self.request.min_strength or GROUP_STRENGTH
        pairs, points = self._chosen()[0], self.found.left.points
        strong = self.found.are_as_alike(pairs.cosine, least)
        edges = np.stack([pairs.left, pairs.right], axis=1)[strong]
        for medoid, members in stars(edges, np.arange(len(self.found.left))).items():
            if len(members) < 2:
                continue
            group = points.take(np.array([medoid, *members]))
            cosines = group.cosines(np.arange(len(group)), group)
            order = np.argsort(-cosines[0, 1:], kind="stable")
            yield results.Group(
                medoid=self.left_gallery.picture(int(points.starts[medoid])),
                members=tuple(self.left_gallery.picture(int(points.starts[members[at]])) for at in order),
                cosines=tuple(_rounded(cosines[0, 1 + at]) for at in order),
                least_cosine=_rounded(cosines.min()),
            )

    def _hubs(self) -> Iterator[results.Hub]:
        counts = self.list_counts[0]
        if self.request.mode != "within" or counts is None:
            return
        least = HUB_FACTOR * self.request.top
        for at in np.argsort(-counts, kind="stable")[:MOST_HUBS]:
            if counts[at] >= least:
                row = int(self.found.left.points.starts[at])
                yield results.Hub(picture=self.left_gallery.picture(row), lists=int(counts[at]))

    def _broken(self) -> Iterator[results.Broken]:
        for gallery in self.galleries.values():
            for file in gallery.scanned.files:
                if file in gallery.index.broken:
                    name = gallery.name(file)
                    reason = gallery.index.broken[file]
                    yield results.Broken(folder=name.folder, path=name.path, reason=reason)
            for root, path, reason in gallery.scanned.left_out:
                yield results.Broken(folder=gallery.first_folder + root, path=path, reason=reason)

    def _skipped(self) -> Iterator[results.Skipped]:
        counts = sum((gallery.scanned.skipped for gallery in self.galleries.values()), start=Counter[str]())
        for suffix, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            yield results.Skipped(suffix=suffix, count=count, mend=mend(suffix))

    def random_pictures(self) -> list[tuple[Picture, Picture]]:
        """Distinct random pairs of compared pictures, for what is usual in this folder."""
        generator, found = np.random.default_rng(search.SEED), self.found
        lefts = np.flatnonzero(found.kept[: len(found.left)] == np.arange(len(found.left)))
        is_within = found.left is found.right
        rights = lefts if is_within else np.arange(len(found.right))
        if len(lefts) * len(rights) < 4 * NUM_RANDOM:
            every = [(a, b) for a in lefts for b in rights if a < b or not is_within]
            chosen = [every[at] for at in generator.permutation(len(every))[:NUM_RANDOM]]
        else:
            drawn = np.stack(
                [generator.choice(lefts, 4 * NUM_RANDOM), generator.choice(rights, 4 * NUM_RANDOM)], axis=1
            )
            drawn = np.sort(drawn[drawn[:, 0] != drawn[:, 1]], axis=1) if is_within else drawn
            chosen = list(dict.fromkeys(map(tuple, drawn.tolist())))[:NUM_RANDOM]
        starts = found.left.points.starts, found.right.points.starts
        return [
            (self.left_gallery.picture(int(starts[0][a])), self.right_gallery.picture(int(starts[1][b])))
            for a, b in chosen
        ]


def _rounded(value: Any) -> float:
    return round(float(value), 6)


def _place(ranked: Any, picture: int, other: int) -> tuple[int | None, float | None]:
    """The rank of another picture in a list, and the cosine less that of the next, or of the first from below."""
    listed = ranked.indices[picture]
    at = np.flatnonzero(listed == other)
    rank = int(at[0]) + 1 if len(at) else None
    compared = 1 if rank == 1 else 0
    if rank is None or compared >= len(listed) or listed[compared] < 0:
        return rank, None
    return rank, round(float(ranked.cosines[picture, rank - 1]) - float(ranked.cosines[picture, compared]), 4)


def _model(model: LoadedModel, embedding: Embedding) -> results.Model:
    provenance = {} if model.file is None else model.file.provenance
    words = [str(provenance[name]) for name in ("system", "license") if provenance.get(name)]
    return results.Model(
        name=embedding.name,
        fingerprint=embedding.fingerprint,
        dimension=embedding.dim,
        description="; ".join(words),
    )
