"""The Totally Looks Like pairs, in the three layouts in which they are distributed."""

from dataclasses import dataclass
from pathlib import PurePosixPath

from tll_jax.data.archive import Archive
from tll_jax.data.pair_folders import Found, PairFiles, match, pairs_of_table
from tll_jax.data.pairs import Crop, Entry
from tll_jax.errors import InvalidValue
from tll_jax.renamed import with_first_names

JOINT_HEIGHT = 245
JOINT_COLUMNS = ((0, 200), (200, 400))
"""Column ranges of a joint image's two halves; captions are below and beside them."""


@with_first_names
@dataclass(kw_only=True)
class TotallyLooksLike(PairFiles):
    """Totally Looks Like pairs at `path`, a folder or a zip; environment `$VARIABLES` in it are expanded.

    Layouts, tried in this order at the top level and in one folder below it:
      CSV edition: `train.csv` with the columns left,right (names without suffix) beside `left/` and `right/`, or beside
        a `train/` that contains them; a pair's id is `left-right`.
      Numbered: `left/00000.jpg` and `right/00000.jpg`; the id is the number.
      Joint: one file per pair, whose top 245 rows and left 400 columns hold the two images.

    Source: Rosenfeld et al. 2018 (arXiv 1803.01485); the CSV edition is from the course COMP90086, 2023.
    """

    def find(self, archive: Archive) -> Found:
        for layout in (csv_edition, numbered, joint):
            found = layout(archive)
            if found is not None:
                return found
        raise InvalidValue(
            f"{archive.path} holds no Totally Looks Like pairs in a layout that is known. Looked for: a train.csv "
            "beside left/ and right/; left/ and right/ with equal names; numbered joint images. "
            f"It holds {archive.summary}"
        )


def csv_edition(archive: Archive) -> Found | None:
    tables = [name for name in archive.names if PurePosixPath(name).name == "train.csv"]
    if not tables:
        return None
    folder = PurePosixPath(tables[0]).parent
    files = {PurePosixPath(name).with_suffix("").as_posix(): name for name in archive.images}
    if not any(PurePosixPath(name).is_relative_to(folder / "left") for name in files):
        folder = folder / "train"
    return pairs_of_table(
        archive,
        tables[0],
        files,
        identify=lambda row: f"{row['left']}-{row['right']}",
        place=lambda side, name: (folder / side / name).as_posix(),
    )


def numbered(archive: Archive) -> Found | None:
    sides: dict[str, dict[str, str]] = {"left": {}, "right": {}}
    for name in archive.images:
        path = PurePosixPath(name)
        if path.parent.name in sides:
            sides[path.parent.name][path.stem] = name
    return match(sides["left"], sides["right"]) if any(sides.values()) else None


def joint(archive: Archive) -> Found | None:
    names = [name for name in archive.images if PurePosixPath(name).stem.isdigit()]
    if not names:
        return None
    entries = [
        Entry(PurePosixPath(name).stem, *(Crop(name, columns, JOINT_HEIGHT) for columns in JOINT_COLUMNS))
        for name in names
    ]
    return entries, []
