"""Detection of the data at a path: pairs or single images, and their layout."""

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from tll_jax.data.archive import Archive
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.faces import DlibFaces
from tll_jax.data.folder import ClassFolder, ImageFolder
from tll_jax.data.imaging import BrokenImage
from tll_jax.data.pair_folders import MatchingFolders, PairFiles, PairsFromTable, read_table
from tll_jax.data.pairs import SIDES, Crop
from tll_jax.data.totally_looks_like import JOINT_COLUMNS, JOINT_HEIGHT, TotallyLooksLike, csv_edition
from tll_jax.errors import InvalidValue
from tll_jax.files import expand
from tll_jax.typing import ImageSettings, PairSettings

MAX_JOINT_WIDTH = 450
"""Width in pixels from which numbered images count as photos; a joint image is two of 200 pixels and a margin."""
LOOKED_FOR = (
    "Totally Looks Like (train.csv beside left/ and right/; numbered left/ and right/; numbered joint images from 400 "
    f"to below {MAX_JOINT_WIDTH} pixels wide); a CSV with the columns left,right; two folders with equal file names; "
    "class folders; images"
)
NUM_TRIED = 8
"""Number of images decoded to detect joint images."""


def recognize(path: str) -> PairSettings | ImageSettings:
    """Detects the settings for a path: "emoji", a folder, a zip, or a CSV of pairs.

    Examines file names, tables and, if all names are numbers, a few images, in the order of `LOOKED_FOR`. Two folders
    are the sides of pairs if they are called left and right, or if they are the only ones and have equal file names;
    otherwise they are classes. If there are several sets of class folders, such as train and val, the largest is used.
    All pairs except emoji use `DlibFaces`.

    Raises:
      FileNotFoundError: nothing exists at `path`, or it contains a variable that is not set.
      ValueError: no layout matches; the message lists the supported layouts and what was found.
    """
    if path == "emoji":
        return EmojiPairs()
    place = expand(path)
    if place.suffix.lower() == ".csv" and place.is_file():
        return PairsFromTable(path=str(Path(path).parent), table=place.name, faces=DlibFaces())
    archive = Archive(place)
    settings = _pairs(archive, path) or _images(archive, path)
    if settings is None:
        raise InvalidValue(
            f"{archive.path} holds nothing that is known. Looked for: {LOOKED_FOR}. It holds {archive.summary}"
        )
    return settings


def recognize_pairs(path: str) -> Any:
    """Detects pair settings as `recognize` does; raises ValueError if single images are found."""
    settings = recognize(path)
    if not is_pairs(settings):
        raise InvalidValue(f"{path} holds single images, {settings}, and no pairs. Looked for: {LOOKED_FOR}")
    return settings


def is_pairs(settings: Any) -> bool:
    """Whether the settings are for pairs rather than single images."""
    return isinstance(settings, EmojiPairs | PairFiles)


def _pairs(archive: Archive, path: str) -> PairFiles | None:
    tables = [name for name in archive.names if name.lower().endswith(".csv") and _lists_pairs(archive, name)]
    if _is_totally_looks_like(archive, tables):
        return TotallyLooksLike(path=path, faces=DlibFaces())
    if tables:
        table = next((name for name in tables if PurePosixPath(name).name == "pairs.csv"), tables[0])
        return PairsFromTable(path=path, table=table, faces=DlibFaces())
    folders: dict[PurePosixPath, set[str]] = {}
    for image in map(PurePosixPath, archive.images):
        folders.setdefault(image.parent, set()).add(image.stem)
    sides = [folder for folder in sorted(folders) if folder.name == "left" and folder.with_name("right") in folders]
    if sides:
        left, right = sides[0], sides[0].with_name("right")
    elif len(folders) == 2 and len({folder.parent for folder in folders}) == 1:
        left, right = sorted(folders)
        if folders[left] != folders[right]:
            return None
    else:
        return None
    return MatchingFolders(path=path, left=str(left), right=str(right), faces=DlibFaces())


def _lists_pairs(archive: Archive, table: str) -> bool:
    try:
        read_table(archive, table)
    except (ValueError, OSError):
        return False
    return True


def _is_totally_looks_like(archive: Archive, tables: list[str]) -> bool:
    if any(PurePosixPath(name).name == "train.csv" for name in tables):
        found = csv_edition(archive)
        if found is not None and found[0]:
            return True
    images = [PurePosixPath(name) for name in archive.images]
    sides = [path for path in images if path.parent.name in SIDES]
    if sides:
        return all(path.stem.isdigit() for path in sides)
    if len({path.parent for path in images}) != 1 or not all(path.stem.isdigit() for path in images):
        return False
    return any(_is_joint(archive, name) for name in archive.images[:NUM_TRIED])


def _is_joint(archive: Archive, name: str) -> bool:
    try:
        height, width, _ = Crop(name).read(archive).shape
    except BrokenImage:
        return False
    return height >= JOINT_HEIGHT and JOINT_COLUMNS[1][1] <= width < MAX_JOINT_WIDTH


def _images(archive: Archive, path: str) -> ClassFolder | ImageFolder | None:
    folders = Counter(PurePosixPath(name).parent for name in archive.images)
    if not folders:
        return None
    num_siblings = Counter(folder.parent for folder in folders if folder.name)
    votes: Counter[PurePosixPath | None] = Counter()
    for folder, num_images in folders.items():
        is_class = folder.name and num_siblings[folder.parent] > 1
        votes[folder.parent if is_class else None] += num_images
    best, _ = votes.most_common(1)[0]
    if best is None:
        return ImageFolder(path=path)
    return ClassFolder(path=path, subfolder=best.as_posix() if best.name else "")
