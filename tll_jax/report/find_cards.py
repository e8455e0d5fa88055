"""HTML card of one look-alike pair on the page of `tll find`."""

import json
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from tll_jax.gallery.result import Pair, Reasons
from tll_jax.report import markup, numbers

LEGEND = (
    "Ordered by how much more alike two pictures are than each of them is with its other neighbors. A sentence is on a "
    "card only where its number is beyond that of 100 random pairs of the folder; numbers in brackets are changes of "
    "the cosine. “Places” shows what each place of one picture adds with each of the other."
)
KINDS = {"look-alike": "Look-alike", "near-duplicate": "Nearly the same picture", "same-file": "The same file"}
CHANGE_WORDS = {
    "without-color": "without color",
    "mirrored": "one mirrored",
    "blurred": "blurred",
    "outer-quarter-gone": "outer quarter gone",
}
STAGE_WORDS = {"texture": "textures", "parts": "parts of objects", "objects": "whole objects"}
IGNORE_FILE = "not-alike.txt"


class Side(NamedTuple):
    """One image of a pair: its thumbnail as HTML, its name and its facts as text."""

    image: str
    name: str
    facts: str


def card(pair: Pair, number: int, sides: Sequence[Side]) -> str:
    """HTML of a card."""
    label = markup.text(f"Pair {number}: {sides[0].name} and {sides[1].name}")
    return (
        f'<article class="look-alike" id="pair-{number}" aria-label="{label}" data-pair="{_contents(pair)}">'
        f'<div class="boards">{"".join(map(_board, sides))}</div>'
        f'<p class="strength"><span class="number">{number:,}</span> {"".join(_strength(pair))}</p>'
        f'{_why(pair)}<p class="context">{markup.text(" · ".join(_context(pair)))}</p>'
        f'<div class="bottom">{"".join(_places(pair))}<div class="actions">{_maps(pair)}'
        '<button type="button" class="not-alike" aria-pressed="false">Not alike</button></div></div></article>'
    )


def dismissed(command: str) -> str:
    """HTML of the bar that appears once a pair is marked as not alike."""
    return (
        f'<div id="dismissed" role="region" aria-label="Pairs that are not alike" hidden '
        f'data-command="{escape(f"{command} --ignore {IGNORE_FILE}")}"><span role="status"></span> '
        f'<a id="ignore" download="{IGNORE_FILE}">Download {IGNORE_FILE}</a> '
        '<button type="button" id="copy-ignore">Copy the command that leaves them out</button> '
        '<button type="button" id="undo">Take all back</button></div>'
    )


def strength_words(pair: Pair) -> str:
    """Similarity as a rarity among random pairs; the cosine is given only if the folder is too small for that."""
    if pair.one_in is None:
        return f"There are too few pictures to say how rare this is; the cosine is {numbers.fraction(pair.cosine)}."
    if pair.one_in_is_bound:
        return f"More alike than any of {pair.one_in:,.0f} random pairs."
    if pair.one_in < 2:
        return "No more alike than random pairs."
    return f"As alike as 1 in {rounded(pair.one_in):,} random pairs."


def rounded(number: float) -> int:
    """A positive number rounded to two digits: 52,000 for 51,734."""
    digits = max(0, len(str(round(number))) - 2)
    return round(round(number), -digits)


def _contents(pair: Pair) -> str:
    return escape(" ".join(sorted((pair.left.content, pair.right.content))))


def _board(side: Side) -> str:
    folder, slash, name = side.name.rpartition("/")
    return (
        f'<figure class="board"><div class="frame">{side.image}</div><figcaption>'
        f'<span class="folder">{markup.text(folder + slash)}</span>{markup.text(name)}'
        f'<span class="facts">{markup.text(side.facts)}</span></figcaption></figure>'
    )


def _strength(pair: Pair) -> Iterator[str]:
    if pair.kind != "look-alike":
        yield f'<span class="kind">{KINDS[pair.kind]}</span> '
    yield markup.text(strength_words(pair))


def _why(pair: Pair) -> str:
    if pair.reasons is None or not pair.reasons.sentences:
        return ""
    items = "".join(f"<li>{markup.text(one.text)}</li>" for one in pair.reasons.sentences)
    return f'<ul class="why">{items}</ul>'


def _context(pair: Pair) -> Iterator[str]:
    ranks = [_rank(one) for one in (pair.left_rank, pair.right_rank)]
    if pair.left_rank is not None or pair.right_rank is not None:
        yield f"{ranks[0]} of the left one, {ranks[1]} of the right one"
    margins = [one for one in (pair.left_margin, pair.right_margin) if one is not None]
    if margins:
        yield f"{' and '.join(map(numbers.difference, margins))} to the next"
    if pair.left_lists is not None and pair.right_lists is not None:
        yield f"in {pair.left_lists:,} and {numbers.plural(pair.right_lists, 'list')} of neighbors"
    if pair.phash_bits is not None and pair.dhash_bits is not None:
        yield f"pHash and dHash {pair.phash_bits} and {pair.dhash_bits} of 64 bits apart"


def _rank(rank: int | None) -> str:
    if rank is None:
        return "not a neighbor"
    return "nearest" if rank == 1 else f"no. {rank:,}"


def _places(pair: Pair) -> Iterator[str]:
    reasons = pair.reasons
    if reasons is None:
        return
    yield '<details class="table"><summary>Places</summary>'
    if reasons.places:
        yield f'<p class="region" role="status" aria-live="polite">{markup.text(_strongest(reasons))}</p>'
        yield f'<script type="application/json">{_facts(pair, reasons)}</script>'
    changes = ", ".join(f"{CHANGE_WORDS[one.measure]} {numbers.difference(one.change)}" for one in reasons.what_ifs)
    items = [("the cosine", numbers.fraction(pair.cosine)), ("what changes do", changes)]
    if reasons.stages:
        shares = ", ".join(f"{STAGE_WORDS[name]} {share:.0%}" for name, share in reasons.stages.items())
        items.append(("shares", shares.replace("%", " %")))
    yield markup.definitions(items)
    yield "</details>"


def _strongest(reasons: Reasons) -> str:
    places = (
        f"row {one.left[0] + 1}, column {one.left[1] + 1} of the left one with row {one.right[0] + 1}, column "
        f"{one.right[1] + 1} of the right one ({numbers.difference(one.value)})"
        for one in reasons.strongest
    )
    return f"Most alike: {'; '.join(places)}."


def _facts(pair: Pair, reasons: Reasons) -> str:
    count = reasons.rows * reasons.columns
    table = np.reshape(reasons.places, (count, count)).round(4)
    strongest = [
        [one.left[0] * reasons.columns + one.left[1], one.right[0] * reasons.columns + one.right[1]]
        for one in reasons.strongest
    ]
    facts: dict[str, Any] = {"rows": reasons.rows, "columns": reasons.columns, "cosine": round(pair.cosine, 4)}
    facts["boxes"] = [
        [round(100 * value, 2) for value in (box.top, box.left, box.height, box.width)]
        for box in (reasons.left_box, reasons.right_box)
    ]
    facts |= {"sum": round(sum(reasons.places), 4), "strongest": strongest, "pairs": table.tolist()}
    return json.dumps(facts, separators=(",", ":"))


def _maps(pair: Pair) -> str:
    return "" if pair.maps is None else f'<a href="{escape(pair.maps)}">Maps</a>'
