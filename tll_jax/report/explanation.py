"""HTML page of one explained pair: all saliency methods side by side, and the contributions of pairs of grid cells."""

import json
import math
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import numpy as np

from tll_jax.data.pairs import SIDES
from tll_jax.files import write_whole
from tll_jax.report import markup, pictures, style
from tll_jax.saliency.decomposition import Decomposition, coarsened
from tll_jax.saliency.grades import GRADES, NOISE, RECOMMENDED, STUDY_METHOD, ordered
from tll_jax.saliency.methods import DECOMPOSITION, DECOMPOSITION_DESCRIPTION
from tll_jax.saliency.side_by_side import ExplainedPair
from tll_jax.study.folder import EXPLAINED, PAGE

MOST_PLACES = 12
"""Maximum number of grid cells per side on the page."""
GRADE_WORDS = (
    "Integrated Gradients show which pixels make the two alike, the decomposition which places: the faithfulness "
    "grades recommend them, so they come first. The gradient, the map of [Munteanu 2022], comes second. Grades were "
    "measured on two small networks, of emoji and of photographs. Gain: the mean similarity while the hottest pixels "
    "are put into a blurred picture, minus that while they are blurred; 0 is noise, higher is better. Cascade: the "
    "rank correlation with the map of a network made random from the head down; lower is better."
)
SCRIPT = (
    "placeTable([...document.querySelectorAll('.board')], document.querySelector('#region'),"
    "JSON.parse(document.querySelector('#contributions').textContent));"
)


def write_explanation(pair: ExplainedPair, folder: Path, *, signed: bool = False) -> Path:
    """Writes the page, the panel as PNG and SVG, and all maps as .npz to a folder; returns the page's path."""
    pair.save(folder / EXPLAINED)
    if pair.maps or pair.places is not None:
        panel = pictures.methods_panel(pair, signed=signed)
        for name in ("panel.png", "panel.svg"):
            style.save(panel, folder / name)
    path = folder / PAGE
    write_whole(path, page(pair, signed=signed))
    return path


def write_index(query: str, found: Mapping[Path, ExplainedPair], folder: Path, *, signed: bool = False) -> Path:
    """Writes one page that shows a query beside each of its candidates and links their pages; returns its path.

    Args:
      found: explained pairs by the paths of their pages, nearest first.
    """
    cards = "".join(_candidate(pair, path.relative_to(folder), signed=signed) for path, pair in found.items())
    lead = f"{query} beside its nearest candidates, nearest first, each under the first map of its page."
    sections = {"Candidates": [f'<div class="maps">{cards}</div>']}
    path = folder / PAGE
    write_whole(path, markup.document(f"What looks like {query}", lead, sections, script=""))
    return path


def _candidate(pair: ExplainedPair, page: Path, *, signed: bool) -> str:
    images = next(iter(pictures.overlays(pair, signed=signed).values()), (pair.left, pair.right))
    both = zip((pair.left, pair.right, *images), (*pair.names, *pair.names), strict=True)
    shown = "".join(markup.picture(image, name) for image, name in both)
    return (
        f'<figure class="map"><a class="candidate" href="{quote(page.as_posix())}">{shown}</a>'
        f"<figcaption><b>{markup.text(pair.names[1])}</b> cosine {pair.cosine:.3f}{_place(pair)}</figcaption></figure>"
    )


def page(pair: ExplainedPair, *, signed: bool = False) -> str:
    """HTML of the whole page, which opens from disk."""
    left, right = pair.names
    sections = {
        "Contributions of places": _places(pair),
        "Methods side by side": _methods(pair, signed=signed),
    }
    lead = (
        f"The cosine of their two embeddings is {pair.cosine:.3f}{_place(pair)}. The maps explain the target "
        f"“{pair.target}”."
    )
    script = _script("enlarge.js") if pair.maps else ""
    if pair.places is not None:
        script += _script("regions.js") + SCRIPT
    return markup.document(f"Why {left} and {right} look alike", lead, sections, script=script)


def _script(name: str) -> str:
    return files("tll_jax.report").joinpath(name).read_text(encoding="utf-8")


def _place(pair: ExplainedPair) -> str:
    """The cosine's place among those of random pairs, rounded down: only what beats all of them beats 100 %."""
    if pair.more_alike_than is None:
        return ""
    return f": more alike than {math.floor(1000 * pair.more_alike_than) / 10:g} % of random test pairs"


def _places(pair: ExplainedPair) -> Iterator[str]:
    if pair.places is None:
        return
    parts = coarsened(pair.places, MOST_PLACES)
    rows, columns = parts.left.shape
    use = (
        "Point at a place: the other picture shows the contribution of each of its places to the cosine, positive "
        "(orange) or negative (blue). A click keeps the selection."
    )
    if pair.decomposition is not None:
        reason = (
            "Before they are brought to unit length, both embeddings are sums over the places of a picture, so the "
            "cosine is a sum over pairs of places."
        )
    else:
        assert pair.attributions is not None
        reason = (
            f"As the maps of {pair.layer} go from those of a gray picture to the picture's own, each place "
            "contributes a part of the embedding; the cosine is approximately the sum over pairs of these parts plus "
            "the terms of the gray picture. "
            f"All parts together miss the cosine by {float(pair.attributions.error()):+.4f}."
        )
    yield markup.paragraph(f"{reason} {use}", css="muted")
    boards = "".join(
        _board(image, name, side, rows, columns)
        for image, name, side in zip((pair.left, pair.right), pair.names, SIDES, strict=True)
    )
    yield f'<div class="boards">{boards}</div><p id="region" role="status" aria-live="polite"></p>'
    yield f'<script type="application/json" id="contributions">{_contributions(pair, parts)}</script>'


def _board(image: np.ndarray, name: str, side: str, rows: int, columns: int) -> str:
    cells = "".join(
        f'<button type="button" aria-pressed="false" aria-label="{side}, row {row}, column {column}"></button>'
        for row in range(1, rows + 1)
        for column in range(1, columns + 1)
    )
    return (
        f'<div class="board" role="group" aria-label="places of the {side} picture" '
        f'style="--rows: {rows}; --columns: {columns}">{markup.picture(image, f"{side}: {name}")}'
        f'<div class="places">{cells}</div></div>'
    )


def _contributions(pair: ExplainedPair, parts: Decomposition) -> str:
    rows, columns = parts.left.shape
    pairs = np.asarray(parts.pairs, np.float64).reshape(rows * columns, rows * columns)
    facts = {"columns": columns, "cosine": pair.cosine, "sum": pairs.sum(), "pairs": pairs.round(6).tolist()}
    if pair.decomposition is None:
        facts["rest"] = "the terms of the gray picture make up"
    return json.dumps(facts)


def _methods(pair: ExplainedPair, *, signed: bool) -> Iterator[str]:
    if not pair.maps:
        return
    yield markup.paragraph(GRADE_WORDS, css="muted")
    shown = {"the pair": (pair.left, pair.right), **pictures.overlays(pair, signed=signed)}
    yield f'<div class="maps">{"".join(_map(pair, name, *sides) for name, sides in shown.items())}</div>'
    low, high = (f"against the {pair.target}", f"for the {pair.target}") if signed else ("little", "much")
    yield markup.color_legend(pictures.color_strip(signed=signed), low, high)
    yield markup.paragraph(
        f"A click enlarges a map. Every map is scaled by its own {pictures.CLIP_PERCENTILE}th percentile. The layer of "
        f"the CAM methods is {pair.layer}.",
        css="muted",
    )
    yield '<dialog id="large"><p></p><div></div></dialog>'
    yield _graded(pair)


def _map(pair: ExplainedPair, name: str, left: np.ndarray, right: np.ndarray) -> str:
    """Both sides under the map of a method, to be enlarged by a click, with its name and gains."""
    sides = "".join(
        markup.picture(image, f"{name}: {side}") for image, side in zip((left, right), pair.names, strict=True)
    )
    label = markup.text(f"enlarge {name}")
    return (
        f'<figure class="map"><button type="button" class="enlarge" aria-label="{label}">{sides}</button>'
        f"<figcaption><b>{markup.text(name)}</b> {markup.text(pictures.note(name))}</figcaption></figure>"
    )


def _graded(pair: ExplainedPair) -> str:
    """Table of the methods in the order of the figure, with their grades and what their maps show."""
    descriptions = dict(pair.descriptions)
    if pair.decomposition is not None:
        descriptions[DECOMPOSITION] = DECOMPOSITION_DESCRIPTION
    if STUDY_METHOD in descriptions:
        descriptions[STUDY_METHOD] = f"[Munteanu 2022]: {descriptions[STUDY_METHOD]}"
    rows = []
    for name in ordered(descriptions):
        grade = [f"{value:.2f}" for value in GRADES[name]] if name in GRADES else ["not graded", "", "", ""]
        css = "model" if name in RECOMMENDED else ""
        rows.append(markup.row(name, [*grade, markup.reading(descriptions[name])], css=css))
    rows.append(markup.row("noise", [f"{abs(value):.2f}" for value in GRADES[NOISE]] + ["a random map"]))
    header = ["method", "gain, emoji", "photographs", "cascade, emoji", "photographs", "the map shows"]
    return markup.table(header, rows, caption="Methods with their grades; the recommended ones are marked")
