"""Look-alike pairs from a table, or from two folders of equal names."""

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
"""The pairs that a layout lists, and those of them that lack a picture."""

Row = dict[str, str]


@dataclass(kw_only=True)
class PairFiles:
    """Pairs at `path`, a folder or a zip; `$VARIABLES` in it are filled in.

    This is what all layouts share. A layout says in `find` which files are pairs.
    """

    path: str
    faces: FaceDetector | None = None
    face_overrides: str | None = None
    """A CSV of numbers of faces that a person has set, in place of findings: see `faces.read_overrides`."""
    duplicates: NearDuplicates | None = field(default_factory=NearDuplicates)
    """How pictures that are nearly the same are found; their pairs are never split over train and test."""
    max_broken_fraction: float = field(default=0.05, metadata=renamed("max_broken_share"))

    def check(self) -> None:
        check_fraction(self.max_broken_fraction)

    def find(self, archive: Archive) -> Found:
        """The pairs, by the names of their pictures; ValueError where nothing is of this layout."""
        raise NotImplementedError

    def open(self) -> Pairs:
        """Finds and checks the pairs.

        Raises:
          FileNotFoundError: nothing is at `path`, or it names a variable that is not set.
          ValueError: the layout is not there, too many pairs are broken, or the face overrides cannot be read.
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
    """A CSV with the columns left,right and, where wanted, id.

    `left` and `right` name pictures, relative to the folder in which `table` stands; without an id a pair's is
    `left|right`. A row whose picture is not there is skipped; an id that stands twice is refused.
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
    """Two folders in which files of equal names, but for the suffix, are a pair; the name is its id."""

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
    """Pairs of the files that stand under one id on both sides, in the order of the ids."""
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
    """The pairs of a CSV, in its order: `place(side, value)` is the key in `files` of what a row names.

    Raises:
      ValueError: it is no table of pairs, or an id stands twice; names both lines.
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
            # As it stands there, or as Windows writes paths.
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
    """The rows of a CSV in UTF-8 with at least the columns left,right, each with the line that it ends on.

    Raises:
      ValueError: it is no such table; says which and why.
    """
    where = f"{archive.path}: {name}"
    (_, columns), *rows = read_rows(archive.read(name), where) or [(0, [])]
    if not set(SIDES) <= set(columns):
        raise InvalidValue(f"{where} has the columns {columns or None}; it needs left and right")
    empty = dict.fromkeys(columns, "")
    return [(line, empty | dict(zip(columns, row, strict=False))) for line, row in rows]
