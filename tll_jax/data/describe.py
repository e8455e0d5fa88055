"""Summary of a data source, to be checked by a person before training."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np

from tll_jax.data.archive import Archive, first_few, named, printable
from tll_jax.data.duplicates import count_duplicates
from tll_jax.data.imaging import START_BYTES, BrokenImage, decode, format_of
from tll_jax.data.pair_folders import PairFiles
from tll_jax.data.pairs import Crop, in_threads
from tll_jax.data.recognize import is_pairs
from tll_jax.errors import InvalidValue
from tll_jax.typing import Image, Skipped

ROWS, COLUMNS = 6, 8
THUMBNAIL = 96
GAP = 4
"""Width in pixels of the white margin around an example on the contact sheet."""


@dataclass(kw_only=True)
class Description:
    """Summary of a source's files; its string form has one fact per line.

    Widths and heights are (smallest, median, largest), in pixels.
    """

    settings: Any
    num_pairs: int | None
    """Number of pairs; None for single images."""
    classes: dict[str, int]
    """Number of images of each class."""
    num_images: int
    """Number of readable files; a joint image counts once."""
    num_unused: int
    """Number of images at the path that belong to no pair or class, or only to a broken pair."""
    not_read: str
    """Message about images of unsupported formats at the path; empty if there are none."""
    hidden: list[str]
    """Hidden and service files and folders at the path, which are no data."""
    num_bytes: int
    formats: dict[str, int]
    widths: tuple[int, int, int]
    heights: tuple[int, int, int]
    broken: list[Skipped]
    """Unusable pairs or images, and files left out of the archive, with reasons."""
    refused: bool
    """Whether more is broken than the settings allow, so that training would refuse the source."""
    duplicates: list[list[str]]
    """Groups of files with equal content."""
    shared: dict[str, int] | None
    """Number of pairs that share an identical or nearly identical image with another pair, and number of groups of such
    pairs; None for single images."""
    examples: list[tuple[Image, ...]]
    """Evenly spaced sample of thumbnails: one image, or the two images of a pair."""

    def __str__(self) -> str:
        facts: list[tuple[str, Any]] = [("recognized as", self.settings)]
        if self.num_pairs is not None:
            facts.append(("pairs", f"{self.num_pairs:,}"))
        facts.append(("images", f"{self.num_images:,} ({self.num_bytes / 1e6:,.1f} MB)"))
        if self.classes:
            smallest, largest = min(self.classes.values()), max(self.classes.values())
            facts.append(("classes", f"{len(self.classes):,} of {smallest:,} to {largest:,} images"))
        facts += [
            ("formats", ", ".join(f"{kind} {count:,}" for kind, count in self.formats.items())),
            ("width", "smallest {:,}, median {:,}, largest {:,} pixels".format(*self.widths)),
            ("height", "smallest {:,}, median {:,}, largest {:,} pixels".format(*self.heights)),
            ("not used", f"{self.num_unused:,} more images at this path"),
            *([("not read", self.not_read.removeprefix("not read are "))] if self.not_read else []),
            *(
                [("hidden", f"{len(self.hidden):,}, which are no data: {first_few(self.hidden)}")]
                if self.hidden
                else []
            ),
            ("broken", f"{len(self.broken):,}{', more than is allowed: training stops' if self.refused else ''}"),
            *(("", f"{name}: {reason}") for name, reason in self.broken),
            ("duplicates", f"{len(self.duplicates):,} contents in more than one file"),
            *(("", " = ".join(names)) for names in self.duplicates),
        ]
        if self.shared is not None:
            shared = "{pairs:,} pairs in {groups:,} groups share a picture, nearly equal ones counted".format(
                **self.shared
            )
            facts.append(("shared", shared))
        return "\n".join(f"{label:15}{printable(str(fact))}" for label, fact in facts)


class _File(NamedTuple):
    name: str
    num_bytes: int
    content: str
    format: str
    width: int
    height: int


def describe(settings: Any) -> Description:
    """Reads every file of a source and summarizes it.

    Args:
      settings: pair settings of any layout, `ClassFolder` or `ImageFolder`.

    Raises:
      FileNotFoundError, ValueError: the source cannot be opened, or nothing in it can be read.
    """
    items: list[tuple[Crop, ...]]
    if is_pairs(settings):
        # A source is described however much of it is broken.
        tolerant = replace(settings, max_broken_fraction=1.0) if isinstance(settings, PairFiles) else settings
        source = tolerant.open()
        items = [(entry.left, entry.right) for entry in source.entries]
        classes = {}
    else:
        source = settings.open(held_out=frozenset())
        items = [(Crop(name),) for name in source.names]
        classes = dict(Counter(source.classes[label] for label in source.labels if label >= 0))
    archive = source.archive
    names = list(dict.fromkeys(crop.name for item in items for crop in item))
    results = in_threads(partial(_read, archive), names, "read images")
    files = {result.name: result for result in results if isinstance(result, _File)}
    unusable = [*source.skipped, *(result for result in results if isinstance(result, Skipped))]
    if not files:
        raise InvalidValue(f"nothing in {archive.path} can be read: {named(unusable)}")
    namesakes: dict[str, list[str]] = {}
    for file in files.values():
        namesakes.setdefault(file.content, []).append(file.name)
    readable = [item for item in items if all(crop.name in files for crop in item)]
    sample = np.unique(np.linspace(0, len(readable) - 1, ROWS * COLUMNS).round().astype(int))
    return Description(
        settings=settings,
        num_pairs=len(items) if is_pairs(settings) else None,
        classes=classes,
        num_images=len(files),
        num_unused=len(set(archive.images) - set(names)),
        not_read=archive.not_read,
        hidden=archive.hidden,
        num_bytes=sum(file.num_bytes for file in files.values()),
        formats=dict(Counter(file.format for file in files.values()).most_common()),
        widths=_spread([file.width for file in files.values()]),
        heights=_spread([file.height for file in files.values()]),
        broken=[*archive.left_out, *unusable],
        refused=len(unusable) > getattr(settings, "max_broken_fraction", 0.0) * (len(items) + len(source.skipped)),
        duplicates=[same for same in namesakes.values() if len(same) > 1],
        shared=count_duplicates(source.groups) if is_pairs(settings) else None,
        examples=[tuple(_thumbnail(crop.read(archive)) for crop in readable[index]) for index in sample],
    )


def contact_sheet(examples: Sequence[tuple[Image, ...]]) -> Image:
    """Contact sheet of at least one example, uint8 RGB: eight examples per row, the images of a pair side by side."""
    border = ((GAP, GAP), (GAP, GAP), (0, 0))
    tiles = [np.pad(np.hstack(pictures), border, constant_values=255) for pictures in examples]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % COLUMNS)
    return np.vstack([np.hstack(tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS)])


def _read(archive: Archive, name: str) -> _File | Skipped:
    try:
        data = archive.read(name)
        height, width, _ = decode(data, name).shape
    except (BrokenImage, OSError) as error:
        return Skipped(name, str(error).removeprefix(f"{name}: "))
    kind = format_of(data[:START_BYTES]) or "unknown"
    return _File(name, len(data), hashlib.sha256(data).hexdigest(), kind, width, height)


def _spread(values: Sequence[int]) -> tuple[int, int, int]:
    return min(values), int(np.median(values)), max(values)


def _thumbnail(image: Image) -> Image:
    height, width, _ = image.shape
    scale = THUMBNAIL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    top, left = (THUMBNAIL - size[1]) // 2, (THUMBNAIL - size[0]) // 2
    canvas = np.full((THUMBNAIL, THUMBNAIL, 3), 235, np.uint8)
    canvas[top : top + size[1], left : left + size[0]] = small
    return canvas
