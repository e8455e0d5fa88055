"""Why pairs of pictures look alike: the place table, stages of the network, what changes of a picture do, and context.

A sentence is kept only where its number is beyond that of every one of the random pairs of the same folder. Each pair
takes at most 8 forward passes: 2 for the place table, 2 without color, 2 blurred, 1 mirrored, 1 without the outer
quarter; what a picture has passed is kept for its further pairs.
"""

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, NamedTuple, Protocol, get_args

import cv2
import numpy as np
from jaxtyping import Float

from tll_jax.data.geometry import CenterCrop, Pad
from tll_jax.errors import InvalidValue
from tll_jax.gallery.pictures import perceptual_hashes
from tll_jax.gallery.result import Box, Pair, Picture, PlacePair, Reason, Reasons, WhatIf
from tll_jax.models.pooling import pooling_weights
from tll_jax.report.numbers import difference
from tll_jax.typing import Geometry, Image

NUM_RANDOM = 100
"""Random pairs that a sentence's number must be beyond."""
LEAST_RANDOM = 20
"""With fewer random pairs no sentence is written."""
PICTURES_AT_ONCE = 32
"""Pictures that are in memory, decoded, at once."""
MOST_SEEN = 2048
"""Pictures whose embeddings are kept for further pairs, 65 KB each in the default model."""
MOST_PLACES = 4
"""A side of the place table."""
NUM_STRONGEST = 3
BLUR = 0.02
"""Deviation of the Gaussian, as a fraction of the shorter side."""
KEPT_SIDE = math.sqrt(0.75)
"""Fraction of each side that is kept, so that a quarter of the area goes."""
LEAST_BEYOND = 1e-3
"""By so much a cosine must be beyond those of random pairs: the last digit that is printed."""
SMALL = 0.05
"""A change that moves the cosine by less than this fraction of it does not matter."""
RARE = 0.05
"""A fact that this fraction of random pairs share, or more, is no reason."""
STAGE_NAMES = ("texture", "parts", "objects")

Change = Literal["without-color", "mirrored", "blurred", "outer-quarter-gone"]
CHANGES: tuple[Change, ...] = get_args(Change)
_Key = tuple[str, int]
"""Content and frame."""
_OF_BOTH = ("without-color", "blurred")

_WORDS: dict[Change, tuple[str, str, str]] = {
    "without-color": ("Color does not matter", "Color matters", "Without color they are more alike"),
    "mirrored": (
        "Left and right do not matter",
        "The sides matter: with one mirrored they are less alike",
        "With one of them mirrored they are more alike",
    ),
    "blurred": ("Fine detail does not matter", "Fine detail matters", "Blurred, they are more alike"),
    "outer-quarter-gone": (
        "The edges of the {side} picture do not matter",
        "The edges of the {side} picture matter",
        "Without its outer quarter the {side} picture is more like the other",
    ),
}
"""Sentences for a change without effect, and for one that makes a pair less or more alike."""
_STAGE_WORDS = {"texture": "Textures", "parts": "Parts of objects", "objects": "Whole objects"}
MORE_THAN_EQUAL = 0.15
"""By so much the share of some stages must be above what it would be if all stages added the same."""


class Explainable(Protocol):
    """A model whose cosines can be taken apart; `tll_jax.load` gives one."""

    def embed(self, images: Sequence[Image]) -> Float[np.ndarray, "images dim"]:
        """Unit vectors."""

    def contributions(self, images: Sequence[Image]) -> Float[np.ndarray, "images stages height width dim"]:
        """Contribution of every stage and place to the unit vector, which is their sum.

        Raises:
          InvalidValue: the head is not linear.
        """


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The measured numbers of one pair."""

    cosine: float
    places: Float[np.ndarray, "rows columns rows columns"] | None
    """None where the model's head is not linear."""
    stages: Mapping[str, float]
    """Contribution of each kind of stage to the cosine."""
    num_stages: int
    changes: Mapping[Change, float]
    hash_bits: int

    @property
    def same_places(self) -> float:
        """Contribution of equal places to the cosine."""
        if self.places is None:
            return 0.0
        rows, columns = self.places.shape[:2]
        return float(np.trace(self.places.reshape(rows * columns, rows * columns)))

    def strongest(self, count: int) -> list[PlacePair]:
        """The pairs of places that add most, most first."""
        if self.places is None:
            return []
        order = np.argsort(-self.places, axis=None, kind="stable")[:count]
        at = np.stack(np.unravel_index(order, self.places.shape), axis=1).tolist()
        return [
            PlacePair(left=(i, j), right=(k, m), value=float(self.places[i, j, k, m]))
            for i, j, k, m in at
            if self.places[i, j, k, m] > 0
        ]


def with_reasons(
    pairs: Sequence[Pair],
    random: Sequence[tuple[Picture, Picture]],
    *,
    model: Explainable,
    read: Callable[[Picture], Image],
    geometry: Geometry | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Pair]:
    """The pairs with their reasons; one of which a picture can no longer be read stays without.

    Args:
      random: distinct random pairs of the folder, of which the first `NUM_RANDOM` are measured.
      read: decodes a picture just as it was decoded to be embedded, so that numbers agree; raises `InvalidValue` or
        `OSError` where it cannot.
      geometry: how pictures are brought to the network's size, which says where places are; by default squashed.
      progress: called with the pairs done and their number, random ones included.
    """
    wanted = [(pair.left, pair.right) for pair in pairs]
    chosen = list(random[:NUM_RANDOM])
    both = []
    for measured in measure([*chosen, *wanted], model=model, read=read):
        both.append(measured)
        if progress is not None:
            progress(len(both), len(chosen) + len(wanted))
    usual = _Usual.of(chosen, both[: len(chosen)])
    return [
        pair if numbers is None else dataclasses.replace(pair, reasons=_reasons(pair, numbers, usual, geometry))
        for pair, numbers in zip(pairs, both[len(chosen) :], strict=True)
    ]


def measure(
    pairs: Sequence[tuple[Picture, Picture]], *, model: Explainable, read: Callable[[Picture], Image]
) -> Iterator[Numbers | None]:
    """The numbers of each pair, in order; None where a picture cannot be read.

    Pictures that are in several pairs pass the network once. Pairs wait until they lack `PICTURES_AT_ONCE` pictures, so
    that the network's batches are full.
    """
    seen: dict[_Key, _Seen] = {}
    gone = set[_Key]()
    waiting = deque(pairs)
    while waiting:
        block, wanted = list[tuple[Picture, Picture]](), dict[_Key, _Wanted]()
        while waiting and len(wanted) < PICTURES_AT_ONCE - 1:
            block.append(waiting.popleft())
            for picture, changes in _needed(block[-1]).items():
                key = _key(picture)
                lacking = changes if key not in seen else [one for one in changes if one not in seen[key].changed]
                if key not in gone and (lacking or key not in seen):
                    known = wanted.setdefault(key, _Wanted(picture, {}))
                    known.changes.update(dict.fromkeys(lacking))
        gone |= _look(wanted, seen, model, read)
        for pair in block:
            is_whole = all(
                _key(picture) in seen and seen[_key(picture)].changed.keys() >= set(changes)
                for picture, changes in _needed(pair).items()
            )
            yield _numbers(pair, *(seen[_key(picture)] for picture in pair)) if is_whole else None
        for key in [*seen][: max(0, len(seen) - MOST_SEEN)]:
            del seen[key]


def changed(image: Image, change: Change) -> Image:
    """The picture after a change."""
    if change == "without-color":
        return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if change == "mirrored":
        return np.ascontiguousarray(image[:, ::-1])
    if change == "blurred":
        return cv2.GaussianBlur(image, (0, 0), BLUR * min(image.shape[:2]))
    height, width = (max(1, round(KEPT_SIDE * side)) for side in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def box(geometry: Geometry | None, width: int, height: int) -> Box:
    """The part of a picture of so many pixels that the network sees."""
    if isinstance(geometry, Pad):
        side = float(max(width, height))
    elif isinstance(geometry, CenterCrop):
        side = geometry.share * min(width, height)
    else:
        return Box(top=0.0, left=0.0, height=1.0, width=1.0)
    tall, wide = side / height, side / width
    return Box(top=(1 - tall) / 2, left=(1 - wide) / 2, height=tall, width=wide)


def _key(picture: Picture) -> _Key:
    return picture.content, picture.frame


def _cut_side(left: Picture, right: Picture) -> int:
    """The side that loses its outer quarter: the larger picture, of which the other may be a part."""
    return int(right.width * right.height > left.width * left.height)


@dataclass(kw_only=True)
class _Seen:
    """Embeddings of a picture and of its changes."""

    plain: np.ndarray
    parts: np.ndarray | None
    """`[stages, rows, columns, dim]`; None where the model's head is not linear."""
    phash: int
    changed: dict[Change, np.ndarray]


class _Wanted(NamedTuple):
    """A picture to be read, and the changes of it to be embedded, in order."""

    picture: Picture
    changes: dict[Change, None]


def _needed(pair: tuple[Picture, Picture]) -> dict[Picture, list[Change]]:
    needed: dict[Picture, list[Change]] = {picture: [] for picture in pair}
    for change in CHANGES:
        for side in _changed_sides(pair, change):
            needed[pair[side]].append(change)
    return needed


def _look(
    wanted: Mapping[_Key, _Wanted], seen: dict[_Key, _Seen], model: Explainable, read: Callable[[Picture], Image]
) -> set[_Key]:
    """Adds to `seen` what is wanted; returns which pictures cannot be read."""
    images = {}
    for key, one in wanted.items():
        try:
            images[key] = read(one.picture)
        except (InvalidValue, OSError):
            continue
    if new := [key for key in images if key not in seen]:
        parts: Sequence[np.ndarray | None]
        try:
            parts = [*_coarsened(model.contributions([images[key] for key in new]))]
            plain = [one.sum(axis=(0, 1, 2)) for one in parts if one is not None]
        except InvalidValue:
            parts = [None] * len(new)
            plain = [*model.embed([images[key] for key in new])]
        for key, embedding, part in zip(new, plain, parts, strict=True):
            seen[key] = _Seen(plain=embedding, parts=part, phash=perceptual_hashes(images[key])[0], changed={})
    lacking = [(key, change) for key in images for change in wanted[key].changes]
    if lacking:
        embedded = model.embed([changed(images[key], change) for key, change in lacking])
        for (key, change), embedding in zip(lacking, embedded, strict=True):
            seen[key].changed[change] = embedding
    return wanted.keys() - images.keys()


def _numbers(pair: tuple[Picture, Picture], left: _Seen, right: _Seen) -> Numbers:
    cosine = float(left.plain @ right.plain)
    changes: dict[Change, float] = {}
    for change in CHANGES:
        sides = [left.plain, right.plain]
        for side in _changed_sides(pair, change):
            sides[side] = (left, right)[side].changed[change]
        changes[change] = float(sides[0] @ sides[1]) - cosine
    places, stages, num_stages = None, dict[str, float](), 0
    if left.parts is not None and right.parts is not None:
        places, stages = _place_table(left.parts, right.parts), _stage_sums(left.parts, right.parts)
        num_stages = len(left.parts)
    return Numbers(
        cosine=cosine,
        places=places,
        stages=stages,
        num_stages=num_stages,
        changes=changes,
        hash_bits=(left.phash ^ right.phash).bit_count(),
    )


def _changed_sides(pair: tuple[Picture, Picture], change: Change) -> tuple[int, ...]:
    if change in _OF_BOTH:
        return 0, 1
    return (0,) if change == "mirrored" else (_cut_side(*pair),)


def _coarsened(parts: Float[np.ndarray, "images stages height width dim"]) -> np.ndarray:
    """At most `MOST_PLACES` places a side; one that two of them share is shared out by area, so that sums stay."""
    height, width = parts.shape[2:4]
    rows, columns = (pooling_weights(min(length, MOST_PLACES), length) for length in (height, width))
    return np.einsum("nshwd,hr,wc->nsrcd", parts, rows, columns, optimize=True)


def _place_table(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.einsum("hwd,kld->hwkl", left.sum(axis=0), right.sum(axis=0))


def _stage_sums(left: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Contributions of stages to the cosine; a product of two stages counts half for each. Empty for a single stage."""
    lefts, rights = left.sum(axis=(1, 2)), right.sum(axis=(1, 2))
    if len(lefts) < 2:
        return {}
    products = lefts @ rights.T
    by_stage = (products.sum(axis=0) + products.sum(axis=1)) / 2
    sums = {STAGE_NAMES[0]: by_stage[0], STAGE_NAMES[1]: by_stage[1:-1].sum(), STAGE_NAMES[2]: by_stage[-1]}
    return {name: float(value) for name, value in sums.items() if len(by_stage) > 2 or name != STAGE_NAMES[1]}


@dataclass(frozen=True, kw_only=True)
class _Usual:
    """The same numbers over random pairs."""

    numbers: Sequence[Numbers]
    same_size: float
    same_folder: float
    same_second: float

    @classmethod
    def of(cls, pairs: Sequence[tuple[Picture, Picture]], numbers: Sequence[Numbers | None]) -> "_Usual":
        def share(fact: Callable[[Picture, Picture], bool]) -> float:
            return sum(fact(*pair) for pair in pairs) / max(1, len(pairs))

        return cls(
            numbers=[one for one in numbers if one is not None],
            same_size=share(_same_size),
            same_folder=share(_same_folder),
            same_second=share(_same_second),
        )

    def range_of(self, number: Callable[[Numbers], float]) -> tuple[float, float]:
        values = [number(one) for one in self.numbers]
        return min(values), max(values)


def _same_size(left: Picture, right: Picture) -> bool:
    return (left.width, left.height) == (right.width, right.height)


def _same_folder(left: Picture, right: Picture) -> bool:
    return (left.folder, PurePosixPath(left.path).parent) == (right.folder, PurePosixPath(right.path).parent)


def _same_second(left: Picture, right: Picture) -> bool:
    return left.taken is not None and left.taken == right.taken


def _reasons(pair: Pair, numbers: Numbers, usual: _Usual, geometry: Geometry | None) -> Reasons:
    rows, columns = (0, 0) if numbers.places is None else numbers.places.shape[:2]
    scale = numbers.cosine if abs(numbers.cosine) > 1e-6 else 1.0
    sentences: list[Reason] = []
    if len(usual.numbers) >= LEAST_RANDOM:
        more, less, same = _of_changes(pair, numbers, usual)
        sentences = [*more, *_of_places(numbers, usual), *_of_context(pair, numbers, usual), *less, *same]
    return Reasons(
        rows=rows,
        columns=columns,
        left_box=box(geometry, pair.left.width, pair.left.height),
        right_box=box(geometry, pair.right.width, pair.right.height),
        places=() if numbers.places is None else tuple(numbers.places.ravel().round(6).tolist()),
        same_places=numbers.same_places / scale,
        strongest=tuple(numbers.strongest(NUM_STRONGEST)),
        stages={name: value / scale for name, value in numbers.stages.items()},
        what_ifs=tuple(WhatIf(measure=change, change=value) for change, value in numbers.changes.items()),
        sentences=tuple(sentences),
    )


def _of_changes(pair: Pair, numbers: Numbers, usual: _Usual) -> tuple[list[Reason], list[Reason], list[Reason]]:
    """Changes that make the pair more alike, less alike, or neither."""
    side = ("left", "right")[_cut_side(pair.left, pair.right)]
    more, less, same = list[Reason](), list[Reason](), list[Reason]()
    for change, value in numbers.changes.items():
        same_words, less_words, more_words = (words.format(side=side) for words in _WORDS[change])
        random = [one.changes[change] for one in usual.numbers]
        low, high = min(random), max(random)
        after = max(one.cosine + one.changes[change] for one in usual.numbers)
        number = f"({difference(value)})."
        is_small = abs(value) < SMALL * numbers.cosine
        if value > high + LEAST_BEYOND and value > 0 and not is_small:
            more.append(Reason(measure=change, value=value, random=high, text=f"{more_words} {number}"))
        elif value < low - LEAST_BEYOND and value < 0 and not is_small:
            less.append(Reason(measure=change, value=value, random=low, text=f"{less_words} {number}"))
        elif is_small and numbers.cosine + value > after + LEAST_BEYOND:
            text = f"{same_words} {number}"
            same.append(Reason(measure=change, value=numbers.cosine + value, random=after, text=text))
    return more, less, same


def _of_places(numbers: Numbers, usual: _Usual) -> Iterator[Reason]:
    if numbers.places is None:
        return
    rows, columns = numbers.places.shape[:2]
    _, most = usual.range_of(lambda one: one.same_places)
    share = numbers.same_places / numbers.cosine if numbers.cosine > 0 else 0.0
    # Places that match no better than others would add one part in as many as there are places.
    if numbers.same_places > most + LEAST_BEYOND and share > 4 / (rows * columns):
        text = f"{share:.0%} of the likeness is from the same places.".replace("%", " %")
        yield Reason(measure="same-places", value=numbers.same_places, random=most, text=text)
    strongest = numbers.strongest(1)
    _, most = usual.range_of(lambda one: 0.0 if one.places is None else float(one.places.max()))
    if strongest and strongest[0].value > most + LEAST_BEYOND:
        (best,) = strongest
        text = f"Most alike: {_place(best.left)} with {_place(best.right)} of the right one."
        yield Reason(measure="strongest-places", value=best.value, random=most, text=text)
    for name, value in numbers.stages.items():
        share = value / numbers.cosine if numbers.cosine > 0 else 0.0
        _, most = usual.range_of(lambda one, name=name: one.stages[name])  # type: ignore[misc]
        equal = (numbers.num_stages - 2 if name == "parts" else 1) / numbers.num_stages
        if value > most + LEAST_BEYOND and share > equal + MORE_THAN_EQUAL:
            text = f"{_STAGE_WORDS[name]} add {share:.0%} of the likeness.".replace("%", " %")
            yield Reason(measure=name, value=value, random=most, text=text)  # type: ignore[arg-type]


def _place(place: tuple[int, int]) -> str:
    return f"row {place[0] + 1}, column {place[1] + 1}"


def _of_context(pair: Pair, numbers: Numbers, usual: _Usual) -> Iterator[Reason]:
    if pair.left_rank == pair.right_rank == 1:
        yield Reason(measure="mutual-rank", value=1.0, random=None, text="Each is the other's nearest.")
    fewest, _ = usual.range_of(lambda one: one.hash_bits)
    if numbers.hash_bits < fewest:
        text = {
            0: "Their perceptual hashes (pHash) are equal.",
            1: "Only 1 of 64 bits of their perceptual hashes (pHash) differs.",
        }.get(numbers.hash_bits, f"Only {numbers.hash_bits} of 64 bits of their perceptual hashes (pHash) differ.")
        yield Reason(measure="hash-bits", value=float(numbers.hash_bits), random=float(fewest), text=text)
    if _same_second(pair.left, pair.right) and usual.same_second < RARE:
        text = f"Taken in the same second ({str(pair.left.taken).replace('T', ' ')})."
        yield Reason(measure="same-second", value=1.0, random=usual.same_second, text=text)
    if _same_size(pair.left, pair.right) and usual.same_size < RARE:
        text = f"Both are {pair.left.width:,} x {pair.left.height:,} pixels."
        yield Reason(measure="same-size", value=1.0, random=usual.same_size, text=text)
    if _same_folder(pair.left, pair.right) and usual.same_folder < RARE:
        text = "Both are in the same folder."
        yield Reason(measure="same-folder", value=1.0, random=usual.same_folder, text=text)
