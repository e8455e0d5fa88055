"""Figures of a study, drawn from its folder."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from tll_jax.data.archive import printable
from tll_jax.data.workers import Workers
from tll_jax.errors import InvalidValue, UnknownName
from tll_jax.report import charts, pictures, significance, style
from tll_jax.report.markup import PAGE_DPI, Drawn, drawn_figure
from tll_jax.saliency.grades import STUDY_METHOD
from tll_jax.saliency.side_by_side import ExplainedPair
from tll_jax.study.folder import EXPLAINED, StudyFolder

NUM_QUESTIONS = 3
NUM_CHOICES = 7
NUM_EXCLUDED = 12
OF_PICTURES = ("task", "excluded")
"""Figures that are compressed as pictures, unlike line drawings."""


def task(study: StudyFolder, *, dark: bool = False) -> Figure:
    """The task on a few test pairs, sampled with the seed of the split."""
    rng = np.random.default_rng(study.split["seed"])
    ids = study.ids
    questions = []
    for query in rng.choice(len(ids), size=min(NUM_QUESTIONS, len(ids)), replace=False):
        others = np.delete(np.arange(len(ids)), query)
        foils = rng.choice(others, size=min(NUM_CHOICES - 1, len(others)), replace=False)
        match = int(rng.integers(len(foils) + 1))
        shown = np.insert(foils, match, query)
        candidates = [study.image(ids[i], "right") for i in shown]
        questions.append(pictures.Question(study.image(ids[query], "left"), candidates, match))
    return pictures.task_figure(questions, dark=dark)


def excluded(study: StudyFolder, *, dark: bool = False) -> Figure:
    """Sample of the pairs that the face filter excluded.

    Raises:
      ValueError: the study's filter excluded no pairs.
    """
    pairs = study.excluded_pairs()
    if not pairs:
        raise InvalidValue(f"{study.path} kept no excluded pairs: its face filter took out none")
    return pictures.excluded_figure(pairs[:NUM_EXCLUDED], dark=dark)


def rank_histograms(study: StudyFolder, *, dark: bool = False) -> Figure:
    """Rank histograms of the fine-tuned models."""
    ranks = {model: study.ranks(model) for model in study.models}
    return charts.rank_histograms(ranks, num_candidates=study.num_candidates, dark=dark)


def recall_at_k(study: StudyFolder, *, dark: bool = False) -> Figure:
    """Recall at k of every system, with the table's intervals for the fine-tuned models."""
    ranks = {name: found for name in study.systems if (found := study.ranks(name))}
    intervals = {
        row["system"]: {k: (row[f"top{k}"]["low"], row[f"top{k}"]["high"]) for k in (1, 5, 10, 25)}
        for row in study.results["rows"]
        if row["kind"] == "model"
    }
    return charts.recall_at_k(ranks, num_candidates=study.num_candidates, intervals=intervals, dark=dark)


def saliency(study: StudyFolder, model: str, *, dark: bool = False) -> Figure:
    """Saliency maps of a model's best and worst ranked pairs.

    Raises:
      KeyError: the study has no such model.
      ValueError: the study has no explanations of the model.
    """
    _check_model(study, model)
    explanations = study.explanations(model)
    if not explanations:
        raise InvalidValue(f"{study.path} holds no explanations of model {model!r}; run its explain stage")
    return pictures.saliency_panel(explanations, names=study.names, dark=dark)


def all_methods(study: StudyFolder, model: str, id: str | None = None, *, dark: bool = False) -> Figure:
    """One pair, the named one or the first, by every method that the study's folder holds: all of a pair with a page,
    else the recommended ones and the gradient.

    Raises:
      KeyError: the study has no such model.
      ValueError: the model has no explanation of the pair.
    """
    _check_model(study, model)
    pages = study.explained_pairs(model)
    explanations = {one.id: one for one in study.explanations(model)}
    chosen = next(iter(pages or explanations), None) if id is None else id
    if chosen in pages:
        return pictures.methods_panel(ExplainedPair.load(pages[chosen] / EXPLAINED), dark=dark)
    if chosen not in explanations:
        raise InvalidValue(
            f"{study.path} explains of {model} {printable(', '.join(explanations)) or 'no pair'}; `tll explain` draws "
            "any pair by any method"
        )
    one = explanations[chosen]
    held = study.recommended(model).get(chosen, {}) | {STUDY_METHOD: (one.heatmap_left, one.heatmap_right)}
    size = one.left.shape[:2]
    maps = {name: (pictures.enlarge(left, size), pictures.enlarge(right, size)) for name, (left, right) in held.items()}
    return pictures.methods_panel(
        ExplainedPair(
            names=(f"{study.names[chosen]} left", f"{study.names[chosen]} right"),
            left=one.left,
            right=one.right,
            cosine=math.nan,
            target="cosine, mse for the gradient",
            layer="",
            descriptions={},
            maps=maps,
            decomposition=None,
        ),
        dark=dark,
    )


def _check_model(study: StudyFolder, model: str) -> None:
    if model not in study.models:
        raise UnknownName(f"the study has no model {model!r}; it has {', '.join(study.models)}")


def training_curves(study: StudyFolder, *, dark: bool = False) -> Figure:
    """Learning curves of all models and seeds."""
    return charts.training_curves({model: study.curves(model) for model in study.models}, dark=dark)


class _Part(NamedTuple):
    """A figure to draw, for light or for dark screens."""

    name: str
    draw: Callable[..., Figure]
    dark: bool
    is_on_page: bool


def write_figures(study: StudyFolder, workers: Workers | None = None) -> dict[str, Drawn]:
    """Writes the study's figures as PNG files to `figures/` in its folder; returns those that its page shows, by name.

    Args:
      workers: processes that draw them, all at once; one after the other here if None.
    """
    of_page = _of_page(study)
    parts = [_Part(name, draw, dark, is_on_page=True) for name, draw in of_page.items() for dark in (False, True)]
    parts += [_Part(name, draw, dark=False, is_on_page=False) for name, draw in _beside_page(study).items()]
    draw = partial(_draw, study.path / "figures", parts)
    every_part = range(len(parts))
    drawn = map(draw, every_part) if workers is None else workers.read(draw, every_part)
    with ThreadPoolExecutor() as compressing:
        # While the next ones are drawn.
        shown = {
            (part.name, part.dark): compressing.submit(
                drawn_figure, pixels, is_line_drawing=part.name not in OF_PICTURES
            )
            for part, pixels in zip(parts, drawn, strict=True)
            if pixels is not None
        }
    return {name: Drawn(shown[name, False].result(), shown[name, True].result()) for name in of_page}


def _draw(folder: Path, parts: Sequence[_Part], number: int) -> np.ndarray | None:
    """Draws a part and, for light screens, writes the figure's file; returns its pixels if the page shows it."""
    part = parts[number]
    figure = part.draw(dark=part.dark)
    if not part.dark:
        style.save(figure, folder / f"{part.name}.png")
    return style.pixels(figure, dpi=PAGE_DPI) if part.is_on_page else None


def _of_page(study: StudyFolder) -> dict[str, Callable[..., Figure]]:
    drawn: dict[str, Callable[..., Figure]] = {"task": partial(task, study), "recall_at_k": partial(recall_at_k, study)}
    if significance.has_matrix(study.results):
        drawn["significance"] = partial(significance.matrix_figure, study.results)
    if study.models:
        drawn["rank_histograms"] = partial(rank_histograms, study)
        drawn["training_curves"] = partial(training_curves, study)
    if study.excluded_pairs():
        drawn["excluded"] = partial(excluded, study)
    return drawn


def _beside_page(study: StudyFolder) -> dict[str, Callable[..., Figure]]:
    """Saliency maps of each model, which the page shows in its own way."""
    explained = [model for model in study.models if study.explanations(model)]
    return {f"saliency_{model}": partial(saliency, study, model) for model in explained}
