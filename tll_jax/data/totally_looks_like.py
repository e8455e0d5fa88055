"""The Totally Looks Like pairs, in any of the three layouts they are found in."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from tll_jax.contracts import FaceDetector, Skipped
from tll_jax.data.archive import Archive, expand
from tll_jax.data.faces import read_overrides
from tll_jax.data.pairs import Crop, Entry, Pairs

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
JOINT_HEIGHT = 245
JOINT_COLUMNS = ((0, 200), (200, 400))
"""A joint image's two halves; below and beside them stand captions."""


@dataclass(kw_only=True)
class TotallyLooksLike:
    """The pairs at `path`, a folder or a zip; `$VARIABLES` in it are filled in.

    Layouts, recognized in this order, at the top or in one folder below it:
      CSV edition: `train.csv` with the columns left,right (names without suffix) beside `left/` and `right/`, or
        beside a `train/` that holds them; a pair's id is `left-right`.
      Numbered: `left/00000.jpg` and `right/00000.jpg`; the id is the number.
      Joint: one image a pair, of which the top 245 rows and the left 400 columns hold the two pictures.

    Source: Rosenfeld et al. 2018 (arXiv 1803.01485); the CSV edition is that of the course COMP90086, 2023.
    """

    path: str
    faces: FaceDetector | None = None
    face_overrides: str | None = None
    """A CSV of numbers of faces that a person has set, in place of findings: see `faces.read_overrides`."""
    max_broken_share: float = 0.05

    def check(self) -> None:
        if not 0 <= self.max_broken_share < 1:
            raise ValueError(f"max_broken_share is {self.max_broken_share}; it must be from 0 to below 1")

    def open(self) -> Pairs:
        """Finds, recognizes and checks the pairs.

        Raises:
          FileNotFoundError: nothing is at a path, or it names a variable that is not set.
          ValueError: no layout is recognized, too many pairs are broken, or the face overrides cannot be read.
        """
        archive = Archive(expand(self.path))
        overrides = None if self.face_overrides is None else read_overrides(expand(self.face_overrides))
        for layout in (_csv_edition, _numbered, _joint):
            found = layout(archive)
            if found is not None:
                entries, skipped = found
                return Pairs(
                    archive,
                    entries,
                    find_faces=self.faces,
                    face_overrides=overrides,
                    skipped=skipped,
                    max_broken_share=self.max_broken_share,
                )
        raise ValueError(
            f"{archive.path} holds no Totally Looks Like pairs in a layout that is known. Looked for: a train.csv "
            "beside left/ and right/; left/ and right/ with equal names; numbered joint images. "
            f"It holds {len(archive.names)} files, such as {', '.join(archive.names[:3]) or 'none'}"
        )


Found = tuple[list[Entry], list[Skipped]]


def _csv_edition(archive: Archive) -> Found | None:
    tables = [name for name in archive.names if PurePosixPath(name).name == "train.csv"]
    if not tables:
        return None
    folder = PurePosixPath(tables[0]).parent
    files = {PurePosixPath(name).with_suffix("").as_posix(): name for name in _images(archive)}
    if not any(PurePosixPath(name).is_relative_to(folder / "left") for name in files):
        folder = folder / "train"
    rows = csv.DictReader(io.StringIO(archive.read(tables[0]).decode("utf-8-sig")))
    if rows.fieldnames is None or not {"left", "right"} <= set(rows.fieldnames):
        raise ValueError(f"{archive.path}: {tables[0]} has the columns {rows.fieldnames}; it needs left and right")
    entries, skipped, lines = [], [], dict[str, int]()
    for row in rows:
        identity = f"{row['left']}-{row['right']}"
        if identity in lines:
            raise ValueError(
                f"{archive.path}: {tables[0]}, line {rows.line_num} repeats the pair {identity} of line "
                f"{lines[identity]}; remove one"
            )
        lines[identity] = rows.line_num
        sides = [(folder / side / str(row[side])).as_posix() for side in ("left", "right")]
        missing = [side for side in sides if side not in files]
        if missing:
            where = f"{tables[0]}, line {rows.line_num}"
            skipped.append(Skipped(identity, f"{where} names {' and '.join(missing)}, which is not there"))
        else:
            entries.append(Entry(identity, *(Crop(files[side]) for side in sides)))
    return entries, skipped


def _numbered(archive: Archive) -> Found | None:
    sides: dict[str, dict[str, str]] = {"left": {}, "right": {}}
    for name in _images(archive):
        path = PurePosixPath(name)
        if path.parent.name in sides:
            sides[path.parent.name][path.stem] = name
    left, right = sides["left"], sides["right"]
    if not left and not right:
        return None
    entries = [Entry(stem, Crop(left[stem]), Crop(right[stem])) for stem in sorted(left.keys() & right.keys())]
    skipped = [
        Skipped(stem, f"has no picture in {'right' if stem in left else 'left'}/")
        for stem in sorted(left.keys() ^ right.keys())
    ]
    return entries, skipped


def _joint(archive: Archive) -> Found | None:
    names = [name for name in _images(archive) if PurePosixPath(name).stem.isdigit()]
    if not names:
        return None
    entries = [
        Entry(PurePosixPath(name).stem, *(Crop(name, columns, JOINT_HEIGHT) for columns in JOINT_COLUMNS))
        for name in names
    ]
    return entries, []


def _images(archive: Archive) -> Iterator[str]:
    return (name for name in archive.names if name.lower().endswith(IMAGE_SUFFIXES))
