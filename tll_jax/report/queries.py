"""Sample queries with their nearest candidates, and saliency maps."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from tll_jax.data.pairs import SIDES
from tll_jax.report import markup, pictures
from tll_jax.saliency.grades import STUDY_METHOD
from tll_jax.study.folder import PAGE, Explanation, StudyFolder

NUM_SAMPLED = 24

ARROW = '<span class="arrow" aria-hidden="true">→</span>'


def sample(study: StudyFolder, *, num_queries: int = NUM_SAMPLED) -> list[tuple[int, str]]:
    """Sample of queries as (position, side of the query), evenly spaced from the easiest pair to the hardest.

    Pairs are ordered by their mean reciprocal rank over models, seeds and directions, so that successes and failures
    appear in proportion. The side of the query alternates.
    """
    found = [ranks for model in study.models for ranks in study.ranks(model)]
    ease = np.mean([1 / ranks.left_to_right + 1 / ranks.right_to_left for ranks in found], axis=0)
    order = np.argsort(-ease, kind="stable")
    spread = np.linspace(0, len(order) - 1, min(num_queries, len(order))).round().astype(int)
    return [(int(order[at]), ("left", "right")[i % 2]) for i, at in enumerate(spread)]


def sampled_queries(study: StudyFolder) -> str:
    """Cards of the sampled queries: the query, its match, and each model's five nearest candidates and rank."""
    return '<div class="cards">' + "\n".join(_card(study, *query) for query in sample(study)) + "</div>"


def _card(study: StudyFolder, position: int, query_side: str) -> str:
    gallery_side = "right" if query_side == "left" else "left"
    id = study.ids[position]
    name = study.names[id]
    models = "\n".join(_answer(study, model, position, query_side, gallery_side) for model in study.models)
    query = markup.picture(study.image(id, query_side), f"query: {query_side} picture of {name}")
    match = markup.picture(study.image(id, gallery_side), f"its match: {gallery_side} picture of {name}", css="match")
    caption = f"query: {markup.text(name)}"
    return (
        f'<article class="card"><div class="query"><figure>{query}<figcaption>{caption}</figcaption></figure>'
        f"<figure>{match}<figcaption>match</figcaption></figure></div>\n"
        f'<div class="answers">{models}</div></article>'
    )


def _answer(study: StudyFolder, model: str, position: int, query_side: str, gallery_side: str) -> str:
    ranks, top = study.ranks(model)[0], study.top(model)
    left_to_right = query_side == "left"
    rank = int((ranks.left_to_right if left_to_right else ranks.right_to_left)[position])
    nearest = (top.left_to_right if left_to_right else top.right_to_left)[position]
    found = "".join(_candidate(study, int(index), gallery_side, is_match=index == position) for index in nearest)
    return (
        f'<div class="answer"><span class="who">{markup.text(model)}<br><b>rank {rank}</b></span>'
        f'<span class="row">{found}</span></div>'
    )


def _candidate(study: StudyFolder, index: int, side: str, *, is_match: bool) -> str:
    id = study.ids[index]
    words = f"{'the match, ' if is_match else ''}{side} picture of {study.names[id]}"
    return markup.picture(study.image(id, side), words, css="match" if is_match else "")


def explained(study: StudyFolder, model: str) -> Iterator[str]:
    """A model's saliency maps, and its nearest candidates for its worst pairs; empty if it was not explained."""
    explanations = study.explanations(model)
    if not explanations:
        return
    yield f"<h3>{markup.text(model)}</h3>"
    recommended = study.recommended(model)
    for one in explanations:
        yield _maps(one, study.names[one.id], recommended.get(one.id, {}))
    if pages := study.explained_pairs(model):
        links = ", ".join(
            f'<a href="{_link(study, folder)}">{markup.text(study.names[id])}</a>' for id, folder in pages.items()
        )
        yield f"<p>All methods side by side, and contributions of places: {links}</p>"
    worst = [study.ids.index(one.id) for one in explanations if one.kind == "worst"]
    if worst:
        yield markup.paragraph("Candidates ranked first for the worst pairs, nearest first:", css="muted")
        yield from _instead(study, model, worst)


def _maps(one: Explanation, name: str, recommended: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """A pair under the maps of the recommended methods, then under that of [Munteanu 2022]."""
    maps = {**recommended, STUDY_METHOD: (one.heatmap_left, one.heatmap_right)}
    images = (one.left, one.right)
    shown = {f"{name}: rank {one.rank} ({one.kind})": (images, "")}
    for method, sides in pictures.overlays_of(images, maps, signed=False).items():
        shown[method] = (sides, pictures.note(method))
    cards = "".join(
        f'<figure class="map"><div class="sides">{"".join(map(markup.picture, sides, _sides(name, title)))}</div>'
        f"<figcaption><b>{markup.text(title)}</b> {markup.text(note)}</figcaption></figure>"
        for title, (sides, note) in shown.items()
    )
    return f'<div class="maps explained">{cards}</div>'


def _sides(name: str, title: str) -> list[str]:
    """Alternative texts of both pictures under a map."""
    return [f"{name}, {side}" + ("" if title.startswith(f"{name}: ") else f", by {title}") for side in SIDES]


def _link(study: StudyFolder, folder: Path) -> str:
    return quote((folder / PAGE).relative_to(study.path).as_posix())


def _instead(study: StudyFolder, model: str, positions: Sequence[int]) -> Iterator[str]:
    for position in positions:
        id = study.ids[position]
        query = markup.picture(study.image(id, "left"), f"query: left picture of {study.names[id]}")
        yield f'<div class="instead">{query}{ARROW}{_answer(study, model, position, "left", "right")}</div>'
