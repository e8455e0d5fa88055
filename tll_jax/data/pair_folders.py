"""Look-alike pairs from a CSV table or from two folders with equal file names."""

import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from tll_jax.data.archive import Archive, as_listed
from tll_jax.data.duplicates import NearDuplicates
from tll_jax.data.faces import read_overrides
from tll_jax.data.pairs import SIDES, Crop, Entry, Pairs, check_fraction
from tll_jax.data.tables import read_rows
from tll_jax.errors import InvalidValue
from tll_jax.files import expand
from tll_jax.renamed import with_first_names
from tll_jax.serialize import renamed
from tll_jax.typing import FaceDetector, Skipped

Found = tuple[list[Entry], list[Skipped]]
"""Pairs listed by a layout, and listed pairs that lack an image."""

Row = dict[str, str]


@dataclass(kw_only=True)
class PairFiles:
    """Base class of all pair layouts: pairs at `path`, a folder or a zip.

    Environment `$VARIABLES` in `path` are expanded. A layout implements `find`, which lists the pairs.
    """

    path: str
    faces: FaceDetector | None = None
    face_overrides: str | None = None
    """CSV of manual face counts that replace detected ones (see `faces.read_overrides`)."""
    duplicates: NearDuplicates | None = field(default_factory=NearDuplicates)
    """Detector of near-duplicate images, whose pairs are never split between training and test; None for exact
    duplicates only."""
    max_broken_fraction: float = field(default=0.05, metadata=renamed("max_broken_share"))

    def check(self) -> None:
        check_fraction(self.max_broken_fraction)

    def find(self, archive: Archive) -> Found:
        """Pairs of this layout, by the names of their images; raises ValueError if the archive has another layout."""
        raise NotImplementedError

    def open(self) -> Pairs:
        """Lists and checks the pairs.

        Raises:
          FileNotFoundError: nothing exists at `path`, or it contains a variable that is not set.
          ValueError: the archive has another layout, too many pairs are broken, or the face overrides cannot be read.
        """
        archive = Archive(expand(self.path))
        overrides = None if self.face_overrides is None else read_overrides(expand(self.face_overrides))
        entries, skipped = self.find(archive)
        return Pairs(
            archive,
            [*entries, *skipped],
            find_faces=self.faces,
            face_overrides=overrides,
            find_duplicates=self.duplicates,
            max_broken_fraction=self.max_broken_fraction,
        )


@with_first_names
@dataclass(kw_only=True)
class PairsFromTable(PairFiles):
    """Pairs listed in a CSV with the columns `left`, `right` and, optionally, `id`.

    `left` and `right` are image names relative to the folder of `table`. The default id is `left|right`. Rows with a
    missing image are skipped; repeated ids raise an error.
    """

    table: str = "pairs.csv"

    def find(self, archive: Archive) -> Found:
        table = as_listed(self.table)
        if table not in archive.names:
            raise InvalidValue(f"{archive.path} has no {self.table}: set `table`. It holds {archive.summary}")
        folder = PurePosixPath(self.table).parent
        return pairs_of_table(
            archive,
            table,
            {name: name for name in archive.names},
            identify=lambda row: row.get("id") or f"{row['left']}|{row['right']}",
            place=lambda side, name: posixpath.normpath(folder / name),
        )


@with_first_names
@dataclass(kw_only=True)
class MatchingFolders(PairFiles):
    """Pairs of files with equal names, apart from the suffix, in two folders; the name is the pair's id."""

    left: str = "left"
    right: str = "right"

    def find(self, archive: Archive) -> Found:
        sides = [_by_stem(archive, PurePosixPath(as_listed(folder))) for folder in (self.left, self.right)]
        if not any(sides):
            raise InvalidValue(
                f"{archive.path} has no pictures in {self.left}/ and {self.right}/: set `left` and `right`. "
                f"It holds {archive.summary}"
            )
        return match(*sides, folders=(self.left, self.right))


def _by_stem(archive: Archive, folder: PurePosixPath) -> dict[str, str]:
    files: dict[str, str] = {}
    for name in archive.images:
        path = PurePosixPath(name)
        if path.is_relative_to(folder):
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if stem in files:
                raise InvalidValue(f"{archive.path}: {files[stem]} and {name} would be one picture; remove one")
            files[stem] = name
    return files


def match(left: dict[str, str], right: dict[str, str], *, folders: tuple[str, str] = SIDES) -> Found:
    """Pairs of the files that have the same id on both sides, sorted by id."""
    entries = [Entry(identity, Crop(left[identity]), Crop(right[identity])) for identity in sorted(left & right.keys())]
    skipped = [
        Skipped(identity, f"has no picture in {folders[1 if identity in left else 0]}/")
        for identity in sorted(left.keys() ^ right.keys())
    ]
    return entries, skipped


def pairs_of_table(
    archive: Archive,
    table: str,
    files: Mapping[str, str],
    *,
    identify: Callable[[Row], str],
    place: Callable[[str, str], str],
) -> Found:
    """Pairs of a CSV table, in its order.

    Args:
      files: mapping from keys to archive names.
      identify: function from a row to the pair's id.
      place: function from a side and the row's value for it to a key of `files`.

    Raises:
      ValueError: the file is not a table of pairs, or an id is repeated; the message names both lines.
    """
    entries, skipped, lines = [], [], dict[str, int]()
    for line, row in read_table(archive, table):
        identity = identify(row)
        if identity in lines:
            raise InvalidValue(
                f"{archive.path}: {table}, line {line} repeats the pair {identity} of line {lines[identity]}; "
                "remove one"
            )
        lines[identity] = line
        missing, crops = [], []
        for side in SIDES:
            # The path as written, and with Windows separators replaced.
            places = [as_listed(place(side, name)) for name in (row[side], row[side].replace("\\", "/"))]
            found = next((files[key] for key in places if key in files), None)
            if found is None:
                missing.append(places[0])
            else:
                crops.append(Crop(found))
        if missing:
            reason = f"{table}, line {line} names {' and '.join(missing)}, which is not there"
            skipped.append(Skipped(identity, reason))
        else:
            entries.append(Entry(identity, *crops))
    return entries, skipped


def read_table(archive: Archive, name: str) -> list[tuple[int, Row]]:
    """Rows of a UTF-8 CSV with at least the columns `left` and `right`, each with the number of its last line.

    Raises:
      ValueError: the file is not such a table; the message gives the reason.
    """
    where = f"{archive.path}: {name}"
    (_, columns), *rows = read_rows(archive.read(name), where) or [(0, [])]
    if not set(SIDES) <= set(columns):
        raise InvalidValue(f"{where} has the columns {columns or None}; it needs left and right")
    empty = dict.fromkeys(columns, "")
    return [(line, empty | dict(zip(columns, row, strict=False))) for line, row in rows]
