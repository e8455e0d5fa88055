"""Page for checking the face filter: all pairs with their detected faces, and boxes to correct them."""

from collections.abc import Iterable, Iterator
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np

from tll_jax.data.faces import RULES, FaceRule, dropped
from tll_jax.data.imaging import shrink
from tll_jax.data.pairs import SIDES
from tll_jax.files import spelled_out, write_whole
from tll_jax.report import markup, numbers
from tll_jax.typing import Image, PairSource

THUMBNAIL_SIZE = 72
"""Longer side of a thumbnail in pixels; images of Totally Looks Like are then 60 wide."""


def write_review(pairs: PairSource, path: Path, *, rule: FaceRule) -> Path:
    """Writes the page to `path` and returns the path.

    Raises:
      ValueError: the pair set has no face detector.
    """
    write_whole(path, page(pairs, rule=rule))
    return path


def page(pairs: PairSource, *, rule: FaceRule) -> str:
    """HTML of the whole page."""
    num_faces = pairs.num_faces()
    by_rule = dropped(num_faces, rule)
    out = by_rule | _share_with(by_rule, pairs)
    kept = int((~out).sum())
    lead = (
        f"Of {len(pairs):,} pairs {kept:,} may be tested. The rule “{rule}” drops a pair that shows {RULES[rule]}, "
        "and with it every pair that shares a picture with one."
    )
    sections = {
        "Rules": [_rules(pairs, num_faces, rule), _found(num_faces)],
        "Corrections": _corrections(),
        "Kept": _cards(pairs, num_faces, np.flatnonzero(~out)),
        "Dropped": _cards(pairs, num_faces, np.flatnonzero(by_rule)),
        "Dropped for a shared picture": _cards(pairs, num_faces, np.flatnonzero(out & ~by_rule)),
    }
    script = files("tll_jax.report").joinpath("review.js").read_text(encoding="utf-8")
    return markup.document("Which pairs the face filter drops", lead, sections, script=script)


def _share_with(by_rule: np.ndarray, pairs: PairSource) -> np.ndarray:
    return np.isin(pairs.groups, pairs.groups[by_rule])


def _rules(pairs: PairSource, num_faces: np.ndarray, chosen: FaceRule) -> str:
    rows = []
    for rule, words in RULES.items():
        if rule == "include":
            continue
        out = dropped(num_faces, rule)
        with_group = out | _share_with(out, pairs)
        counts = (out.sum(), with_group.sum() - out.sum(), (~with_group).sum())
        cells = [markup.text(words), *(f"{int(count):,}" for count in counts)]
        rows.append(markup.row(rule, cells, css="model" if rule == chosen else ""))
    header = ["rule", "drops pairs that show", "dropped", "for a shared picture", "kept"]
    return markup.table(header, rows, caption="Pairs by rule; the rule of this page is marked")


def _found(num_faces: np.ndarray) -> str:
    at_most_two = np.minimum(num_faces, 2)
    words = ("none", "one", "two or more")
    rows = []
    for left, name in enumerate(words):
        counts = ((at_most_two == (left, right)).all(axis=1).sum() for right in range(3))
        rows.append(markup.row(f"left: {name}", [f"{int(count):,}" for count in counts]))
    return markup.table(["", *(f"right: {name}" for name in words)], rows, caption="Pairs by the faces on their sides")


def _corrections() -> Iterator[str]:
    yield markup.paragraph(
        "A ticked box marks a picture in which faces were detected. Untick false detections and tick missed faces; a "
        "newly ticked picture counts as one face, so change the number in the file if there are more. Save the list as "
        'a file, use it in the study, TotallyLooksLike(face_overrides="faces.csv"), and make this page again with '
        "--face-overrides faces.csv to see its effect and to continue.",
        css="muted",
    )
    yield '<p><b id="count">0</b> corrections <button id="copy" type="button">Copy</button> '
    yield '<a id="download" download="faces.csv">Download faces.csv</a></p>'
    yield '<textarea id="overrides" rows="6" readonly aria-label="Corrections as CSV"></textarea>'


def _cards(pairs: PairSource, num_faces: np.ndarray, indices: Iterable[int]) -> Iterator[str]:
    ordered = sorted(map(int, indices), key=lambda index: pairs.ids[index])
    if not ordered:
        return
    yield markup.paragraph(numbers.plural(len(ordered), "pair"), css="muted")
    yield '<div class="pairs">'
    for index in ordered:
        pair = pairs[index]
        identity = pairs.ids[index]
        corrected = pairs.face_overrides.get(identity, [None, None])
        sides = "".join(
            _side(image, identity, side, int(count), is_set=override is not None)
            for image, side, count, override in zip(
                (pair.left, pair.right), SIDES, num_faces[index], corrected, strict=True
            )
        )
        yield f'<div class="pair"><p>{markup.text(identity)}</p><div>{sides}</div></div>'
    yield "</div>"


def _side(image: Image, identity: str, side: str, faces: int, *, is_set: bool) -> str:
    words = numbers.plural(faces, "face") if faces else "no face"
    # The script reads ids back from this attribute: browsers turn a carriage return into a line feed and cannot
    # represent undecodable bytes.
    kept = escape(spelled_out(identity)).replace("\r", "&#13;")
    attributes = f'data-id="{kept}" data-side="{side}" data-faces="{faces}"'
    attributes += " data-set" * is_set + " checked" * (faces > 0)
    thumbnail = markup.picture(shrink(image, THUMBNAIL_SIZE), f"{side} of {identity}")
    return f'<label>{thumbnail}<input type="checkbox" {attributes}>{words}{", set" * is_set}</label>'
