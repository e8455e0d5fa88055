"""Real pictures in the layouts that sources read."""

import zipfile

from PIL import Image

from tll_jax.data.archive import Archive
from tll_jax.data.emoji import ARCHIVE
from tll_jax.data.imaging import decode

SIDES = ("left", "right")


def emoji_pairs(chosen):
    """Pairs of emoji, enlarged to the 200 x 245 pixels of Totally Looks Like; `chosen` is a slice of all of them."""
    archive = Archive(ARCHIVE)
    names = [name for name in archive.names if name.startswith("left/")][chosen]

    def load(name):
        return Image.fromarray(decode(archive.read(name), name)).resize((200, 245))

    return [(load(name), load(name.replace("left/", "right/"))) for name in names]


def save_numbered(folder, pairs):
    """left/00000.jpg, right/00000.jpg, ..."""
    for side in SIDES:
        (folder / side).mkdir(parents=True)
    for index, pair in enumerate(pairs):
        for side, image in zip(SIDES, pair, strict=True):
            image.save(folder / side / f"{index:05}.jpg")


def save_joint(folder, pairs, suffix):
    """00000.SUFFIX, ...: both pictures side by side, with gray beside and below them."""
    for index, (left, right) in enumerate(pairs):
        both = Image.new("RGB", (410, 300), "gray")
        both.paste(left, (0, 0))
        both.paste(right, (200, 0))
        both.save(folder / f"{index:05}.{suffix}")


def zipped(folder, path):
    """The files of a folder in a zip at `path`."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(folder.rglob("*")):
            archive.write(name, name.relative_to(folder))
    return path
