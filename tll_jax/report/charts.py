"""Charts of ranks and training: Figures 3 and 4 of [Munteanu 2022], recall at k, and learning curves."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from tll_jax.report import numbers, style
from tll_jax.statistics import Bands
from tll_jax.study.folder import Curves, Ranks

CLOSE_UP = 25
HIT = 5
COUNT_TICKS = (1, 5, 10, 25, 50, 100, 200, 400, 800)
PANELS_PER_ROW = 3
FROZEN_DASHES = (0, (4, 2))
DASHES = ("-", (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
"""Line styles of systems that share a color, because there are more systems than colors."""

Intervals = Mapping[str, Mapping[int, tuple[float, float]]]
"""Ends of the interval of recall at k, by system and k."""


def rank_counts(ranks: Sequence[Ranks], *, num_candidates: int) -> np.ndarray:
    """Number of pairs whose positive has rank 1, 2, ...: `[num_candidates]`, summing to the number of pairs.

    Averaged over directions and seeds, so that counts agree with the results table and need not be whole.
    """
    counts = [np.bincount(one.of_all_queries(), minlength=num_candidates + 1)[1:] for one in ranks]
    return np.mean(counts, axis=0) / 2


def rank_histograms(ranks: Mapping[str, Sequence[Ranks]], *, num_candidates: int, dark: bool = False) -> Figure:
    """Rank histogram of each system on shared axes, with an inset of the first ranks where there is room.

    Heights are on a square-root scale: the bar of rank 1 is so tall that few pairs elsewhere would not be seen.

    Source: [Munteanu 2022], Figures 3 and 4, "each column represents for how many images, their correct match was found
    at that exact rank".
    """
    with style.theme(dark=dark):
        colors = style.colors(ranks, dark=dark)
        counts = {name: rank_counts(found, num_candidates=num_candidates) for name, found in ranks.items()}
        tallest = max(float(one.max()) for one in counts.values())
        columns = min(len(counts), PANELS_PER_ROW) if len(counts) != 4 else 2
        rows = math.ceil(len(counts) / columns)
        spacing = ConstrainedLayoutEngine(wspace=0.05, hspace=0.08)
        figure = Figure(figsize=(1 + 3.3 * columns, 0.5 + 2.9 * rows), layout=spacing)
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for panel, (name, heights) in zip(panels, counts.items(), strict=False):
            _steps(panel, heights, color=colors[name])
            panel.set_yscale("function", functions=(_signed_root, np.square))
            panel.set_yticks([0, *(tick for tick in COUNT_TICKS if tick <= tallest)])
            # The inset has another scale, so that grid lines behind it would be misleading.
            panel.grid(visible=False)
            panel.set_title(style.label(name))
            panel.set_xlim(1 - num_candidates * 0.02, num_candidates + 1)
            panel.set_ylim(0, tallest * 1.08)
            panel.set_xticks(_rank_ticks(num_candidates))
            total = round(float(heights.sum()))
            panel.text(
                0.98,
                1.0,
                f"rank 1: {numbers.count(round(float(heights[0])))} of {numbers.count(total)}\n"
                f"top {HIT}: {numbers.count(round(float(heights[:HIT].sum())))} of {numbers.count(total)}",
                transform=panel.transAxes,
                ha="right",
                va="top",
                linespacing=1.5,
            )
            if _has_room(counts.values(), tallest=tallest):
                _close_up(panel, heights, color=colors[name], tallest=tallest, dark=dark)
        for panel in panels[len(counts) :]:
            panel.set_visible(False)
        for panel in panels[-columns:]:
            panel.set_xlabel("rank of the match")
        for panel in panels[::columns]:
            panel.set_ylabel("pairs (square-root scale)")
        return figure


def _signed_root(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.sqrt(np.abs(values))


def _steps(panel: Axes, heights: np.ndarray, *, color: str) -> None:
    """Bars without gaps, in two shapes instead of one for each bar, which take a tenth of the time."""
    for first, shown, alpha in ((0, heights[:HIT], 1.0), (HIT, heights[HIT:], 0.5)):
        if len(shown):
            edges = first + 0.5 + np.arange(len(shown) + 1)
            panel.stairs(shown, edges, fill=True, color=color, linewidth=0, alpha=alpha)


def _has_room(counts: Iterable[np.ndarray], *, tallest: float) -> bool:
    """Whether the first bars are too narrow to see and the later ones low enough for an inset above them."""
    return all(
        len(heights) > 4 * CLOSE_UP and heights[len(heights) // 3 :].max() < 0.035 * tallest for heights in counts
    )


def _close_up(panel: Axes, heights: np.ndarray, *, color: str, tallest: float, dark: bool) -> None:
    shown = heights[:CLOSE_UP]
    inset = panel.inset_axes((0.4, 0.3, 0.58, 0.44))
    inset.grid(visible=False)
    bars = inset.bar(np.arange(1, len(shown) + 1), shown, width=0.8, color=color, linewidth=0)
    for bar in bars[HIT:]:
        bar.set_alpha(0.5)
    inset.set_yscale("function", functions=(_signed_root, np.square))
    inset.set_ylim(0, tallest * 1.08)
    inset.set_xlim(0.3, CLOSE_UP + 0.7)
    inset.set_xticks([1, 5, 10, 15, 20, 25])
    inset.yaxis.set_major_locator(NullLocator())
    inset.spines["left"].set_visible(False)
    inset.tick_params(labelsize=7)
    inset.set_title("the same, ranks 1 to 25", fontsize=7.5, fontweight="normal", color=style.MUTED[dark], pad=3)


def _rank_ticks(num_candidates: int) -> list[int]:
    step = MaxNLocator(4, integer=True).tick_values(0, num_candidates)
    inner = [int(tick) for tick in step if 1 < tick < num_candidates * 0.9]
    return [1, *inner, num_candidates]


def recall_at_k(
    ranks: Mapping[str, Sequence[Ranks]],
    *,
    num_candidates: int,
    intervals: Intervals | None = None,
    bands: Mapping[str, Bands] | None = None,
    dark: bool = False,
) -> Figure:
    """Recall at k of each system for every k; frozen backbones are dashed.

    Averaged over directions and seeds. `intervals` at some k, and `bands` over all k, are drawn if given.
    """
    with style.theme(dark=dark):
        colors = style.colors(ranks, dark=dark)
        figure = Figure(figsize=(7.6, 4.2), layout="constrained")
        axes = figure.subplots()
        k = np.arange(1, num_candidates + 1)
        given = intervals or {}
        # Shifted around their k, so that intervals do not hide each other.
        shifts = dict(zip(given, np.geomspace(0.965, 1 / 0.965, max(len(given), 2)), strict=False))
        num_drawn: Counter[str] = Counter()
        for name, found in sorted(ranks.items(), key=lambda item: -_share_first(item[1])):
            shares = np.cumsum(rank_counts(found, num_candidates=num_candidates)) / len(found[0].ids)
            frozen = name.endswith(style.FROZEN_SUFFIX)
            axes.plot(
                k,
                shares,
                color=colors[name],
                linestyle=FROZEN_DASHES if frozen else DASHES[num_drawn[colors[name]] % len(DASHES)],
                linewidth=1.9 if name in given else 1.1,
                zorder=3 if name in given else 2,
                label=style.label(name),
            )
            num_drawn[colors[name]] += not frozen
            if bands is not None and name in bands:
                axes.fill_between(k, *bands[name], color=colors[name], alpha=0.12, linewidth=0)
            for at, (low, high) in given.get(name, {}).items():
                if at <= num_candidates:
                    axes.plot([at * shifts[name]] * 2, [low, high], color=colors[name], linewidth=1.1)
        axes.plot(k, k / num_candidates, color=style.MUTED[dark], linestyle=":", linewidth=1.3, label="chance")
        axes.set_xscale("log")
        axes.set_xlim(0.94, num_candidates)
        axes.set_ylim(0, 1)
        axes.set_xticks([tick for tick in (1, 2, 5, 10, 25, 50, 100, 200, 500, 1000) if tick <= num_candidates])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("k (log scale)")
        axes.set_ylabel("share of queries with the match among the best k")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2.6, labelspacing=0.7)
        return figure


def _share_first(ranks: Sequence[Ranks]) -> float:
    return float(np.mean([np.mean(one.of_all_queries() == 1) for one in ranks]))


def training_curves(curves: Mapping[str, Sequence[Curves]], *, dark: bool = False) -> Figure:
    """Learning curves: pretraining loss in one panel per model, because scales differ, and fine-tuning."""
    with style.theme(dark=dark):
        colors = style.colors(curves, dark=dark)
        pretrained = [name for name, runs in curves.items() if any(run.pretrain for run in runs)]
        num_rows = 2 if pretrained else 1
        figure = Figure(figsize=(8.6, 0.3 + 2.7 * num_rows), layout="constrained")
        bands = figure.subfigures(num_rows, 1, squeeze=False, hspace=0.06).ravel()
        for band in bands:
            band.patch.set_alpha(0)
        if pretrained:
            panels = bands[0].subplots(1, max(2, len(pretrained)), squeeze=False)[0]
            for panel, name in zip(panels, pretrained, strict=False):
                _draw(panel, {name: [run.pretrain for run in curves[name]]}, "loss", colors=colors)
                panel.set_title(f"pretraining loss: {style.label(name)}")
            for panel in panels[len(pretrained) :]:
                panel.set_visible(False)
        loss, quality = bands[-1].subplots(1, 2)
        tuned = {name: [run.finetune for run in runs] for name, runs in curves.items()}
        _draw(loss, tuned, "loss", colors=colors)
        loss.set_title("fine-tuning loss")
        _draw(quality, tuned, "validation/mrr", colors=colors)
        quality.set_xlim(loss.get_xlim())
        quality.set_title("mean reciprocal rank, validation pairs")
        quality.legend(loc="lower right")
        return figure


def _draw(panel: Axes, runs: Mapping[str, Sequence[list[dict]]], metric: str, *, colors: Mapping[str, str]) -> None:
    for name, seeds in runs.items():
        drawn: list[list[tuple[int, float]]] = []
        for records in seeds:
            points = [(one["step"], one[metric]) for one in records if one.get(metric) is not None]
            # A pretraining run shared by several seeds is drawn once.
            if points and points not in drawn:
                drawn.append(points)
        for points in drawn:
            panel.plot(
                *zip(*points, strict=True),
                color=colors[name],
                label=style.label(name) if points is drawn[0] else None,
                alpha=1 if len(drawn) == 1 else 0.6,
                linewidth=1.6 if len(drawn) == 1 else 1.1,
                marker="o" if len(points) < 15 else None,
                markersize=3,
            )
    panel.set_xlabel("step")
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
