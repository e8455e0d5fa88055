"""Figures made of images: the task, excluded pairs and saliency maps (Figures 1, 2 and 5 of [Munteanu 2022])."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tll_jax.data.archive import printable
from tll_jax.report import style
from tll_jax.saliency.grades import GRADES, RECOMMENDED, STUDY_METHOD, ordered
from tll_jax.saliency.methods import DECOMPOSITION
from tll_jax.saliency.side_by_side import ExplainedPair
from tll_jax.study.folder import Explanation

COLORMAP = "inferno"
SIGNED_COLORMAP = "coolwarm"
"""Perceptually uniform colormaps, suitable for color-blind readers."""
CLIP_PERCENTILE = 99
LINE_LETTERS = 14
LEGEND_WIDTH = 5.6
"""Inches that the color bar and its words need."""


class Question(NamedTuple):
    """A query and its candidates; `match` is the position of the positive."""

    query: np.ndarray
    candidates: Sequence[np.ndarray]
    match: int


class _Box(NamedTuple):
    """A rectangle in inches from the top left corner of a figure."""

    x: float
    y: float
    width: float
    height: float


class _Sheet:
    """A figure on which images are placed in inches from the top left corner."""

    def __init__(self, *, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height))
        # One for all images: each would take longer to make than its image to draw.
        self._plane = self.axes(_Box(0, 0, width, height))
        self._plane.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        self._plane.set_axis_off()

    def axes(self, box: _Box) -> Axes:
        bottom = self.height - box.y - box.height
        parts = (box.x / self.width, bottom / self.height, box.width / self.width, box.height / self.height)
        return self.figure.add_axes(parts)

    def image(self, image: np.ndarray, x: float, y: float, size: float, **options: Any) -> _Box:
        """Places an image in the middle of a square; returns the part that it covers."""
        height, width = (size * side / max(image.shape[:2]) for side in image.shape[:2])
        box = _Box(x + (size - width) / 2, y + (size - height) / 2, width, height)
        extent = (box.x, box.x + width, box.y + height, box.y)
        self._plane.imshow(image, extent=extent, aspect="auto", interpolation="lanczos", **options)
        return box

    def outline(self, box: _Box, color: str, *, line_width: float = 2.6) -> None:
        frame = Rectangle(
            (box.x, box.y), box.width, box.height, fill=False, edgecolor=color, linewidth=line_width, zorder=2
        )
        self._plane.add_patch(frame)

    def text(self, words: str, x: float, y: float, **options: Any) -> None:
        self.figure.text(x / self.width, 1 - y / self.height, words, **options)


def task_figure(questions: Sequence[Question], *, dark: bool = False) -> Figure:
    """The task: a query on the left, candidates on the right, the positive outlined and labeled.

    Source: [Munteanu 2022], Figure 1.
    """
    size, gap, lead, top, row_height = 0.92, 0.1, 0.42, 0.36, 1.2
    most = max(len(question.candidates) for question in questions)
    with style.theme(dark=dark):
        sheet = _Sheet(width=0.2 + size + lead + most * (size + gap), height=top + row_height * len(questions))
        left = 0.1 + size + lead
        sheet.text("query", 0.1, 0.24, weight="bold")
        sheet.text("candidates: which one looks most alike?", left, 0.24, weight="bold")
        for row, question in enumerate(questions):
            y = top + row * row_height
            sheet.image(question.query, 0.1, y, size)
            sheet.text(
                "→",
                0.1 + size + lead / 2,
                y + size / 2,
                ha="center",
                va="center",
                size=13,
                color=style.MUTED[dark],
            )
            for column, candidate in enumerate(question.candidates):
                x = left + column * (size + gap)
                box = sheet.image(candidate, x, y, size)
                if column == question.match:
                    sheet.outline(box, style.MATCH[dark])
                    sheet.text(
                        "match",
                        x + size / 2,
                        y + size + 0.07,
                        ha="center",
                        va="top",
                        size=8,
                        weight="bold",
                        color=style.MATCH[dark],
                    )
        return sheet.figure


def excluded_figure(pairs: Sequence[tuple[np.ndarray, np.ndarray]], *, columns: int = 4, dark: bool = False) -> Figure:
    """Pairs that the face filter excludes, because a face or its expression makes them match.

    Source: [Munteanu 2022], Figure 2.
    """
    size, inner, gap, margin = 0.92, 0.06, 0.18, 0.1
    columns = min(columns, len(pairs))
    rows = -(-len(pairs) // columns)
    pair_width, pair_height = 2 * size + 3 * inner, size + 2 * inner
    with style.theme(dark=dark):
        sheet = _Sheet(
            width=2 * margin + columns * pair_width + (columns - 1) * gap,
            height=2 * margin + rows * pair_height + (rows - 1) * gap,
        )
        for index, (left, right) in enumerate(pairs):
            row, column = divmod(index, columns)
            x, y = margin + column * (pair_width + gap), margin + row * (pair_height + gap)
            sheet.image(left, x + inner, y + inner, size)
            sheet.image(right, x + size + 2 * inner, y + inner, size)
            sheet.outline(_Box(x, y, pair_width, pair_height), style.FAINT[dark], line_width=1)
        return sheet.figure


def clipped(heatmap: np.ndarray) -> np.ndarray:
    """Magnitude of a heatmap divided by its 99th percentile and clipped to [0, 1]; zero heatmaps stay zero."""
    magnitude = np.abs(heatmap.astype(np.float64))
    ceiling = np.nanpercentile(magnitude, CLIP_PERCENTILE) if np.isfinite(magnitude).any() else 0.0
    return np.clip(magnitude / ceiling, 0, 1) if ceiling > 0 else np.minimum(magnitude, 0)


def overlay(image: np.ndarray, heatmap: np.ndarray, *, signed: bool = False) -> np.ndarray:
    """Overlay of a heatmap on the grayscale image, float RGB in [0, 1]; opacity increases with the heatmap's magnitude.

    With `signed`, positive contributions to the score are warm colors and negative ones cold.
    """
    heat = clipped(heatmap)
    gray = (image.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) / 255)[..., None]
    cover = 0.9 * np.nan_to_num(heat)[..., None]
    colors = colormaps[SIGNED_COLORMAP]((1 + np.sign(heatmap) * heat) / 2) if signed else colormaps[COLORMAP](heat)
    return (1 - cover) * gray + cover * colors[..., :3]


def saliency_panel(explanations: Sequence[Explanation], *, names: Mapping[str, str], dark: bool = False) -> Figure:
    """Saliency maps, one row per pair: each image, its heatmap and the overlay, with the rank of the positive.

    Every map is scaled by its own 99th percentile, so that brightness is comparable within a map, not between maps.

    Args:
      names: names of the pairs by id.

    Source: [Munteanu 2022], Figure 5.
    """
    size, gap, split, label, top, bottom, between = 1.0, 0.06, 0.26, 0.95, 0.36, 0.62, 0.2
    row_height = size + 0.12
    kinds = list(dict.fromkeys(one.kind for one in explanations))
    rows_height = row_height * len(explanations) + between * (len(kinds) - 1)
    with style.theme(dark=dark):
        sheet = _Sheet(
            width=label + 6 * size + 4 * gap + split + 0.1,
            height=top + row_height * len(explanations) + bottom,
        )
        starts = [label + i * (size + gap) for i in range(3)]
        starts += [x + 3 * size + 2 * gap + split for x in starts]
        for x, words in zip(starts, ("left", "saliency", "overlay", "right", "saliency", "overlay"), strict=True):
            sheet.text(
                words,
                x + size / 2,
                0.24,
                ha="center",
                weight="bold" if words in ("left", "right") else "normal",
            )
        for row, one in enumerate(explanations):
            y = top + row * row_height + between * kinds.index(one.kind)
            sheet.text(f"rank {one.rank}", 0.1, y + size / 2, va="bottom", weight="bold")
            sheet.text(_short_lines(names[one.id]), 0.1, y + size / 2 + 0.05, va="top", size=7)
            if row == 0 or explanations[row - 1].kind != one.kind:
                words = f"{one.kind} ranks"
                sheet.text(words, 0.1, y + 0.04, va="top", size=8, color=style.MUTED[dark])
            for (image, heatmap), columns in zip(
                ((one.left, one.heatmap_left), (one.right, one.heatmap_right)),
                (starts[:3], starts[3:]),
                strict=True,
            ):
                sheet.image(image, columns[0], y, size)
                sheet.image(clipped(heatmap), columns[1], y, size, cmap=COLORMAP, vmin=0, vmax=1)
                sheet.image(overlay(image, heatmap), columns[2], y, size)
        y = top + rows_height + 0.08
        bar = sheet.axes(_Box(starts[1], y, 2 * size + gap, 0.09))
        sheet.figure.colorbar(ScalarMappable(Normalize(0, 1), COLORMAP), cax=bar, orientation="horizontal")
        bar.set_xticks([0, 0.5, 1])
        bar.spines[:].set_visible(False)
        sheet.text(
            f"magnitude, as a share of\neach map's {CLIP_PERCENTILE}th percentile",
            starts[3],
            y + 0.14,
            va="center",
            size=8,
            color=style.MUTED[dark],
        )
        return sheet.figure


def _short_lines(name: str) -> str:
    """A pair's name in the narrow column beside its pictures."""
    return "\n".join(textwrap.wrap(printable(name), LINE_LETTERS, max_lines=3, placeholder="…"))


def overlays(pair: ExplainedPair, *, signed: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Overlays of both images by method, recommended methods first: uint8 `[h, w, 3]`."""
    named = dict(pair.maps)
    if pair.decomposition is not None:
        left, right = map(np.asarray, pair.decomposition.heatmaps())
        named[DECOMPOSITION] = (left, right)
    return overlays_of((pair.left, pair.right), named, signed=signed)


def overlays_of(
    images: tuple[np.ndarray, np.ndarray], maps: Mapping[str, tuple[np.ndarray, np.ndarray]], *, signed: bool
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The same of heatmaps by method; coarse ones are enlarged to their image."""

    def drawn(image: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
        whole = enlarge(heatmap, image.shape[:2])
        return (255 * overlay(image, whole, signed=signed)).round().astype(np.uint8)

    return {name: (drawn(images[0], maps[name][0]), drawn(images[1], maps[name][1])) for name in ordered(maps)}


def color_strip(*, signed: bool) -> np.ndarray:
    """The colors of overlays from the lowest value to the highest: uint8 `[1, 256, 3]`."""
    colors = colormaps[SIGNED_COLORMAP if signed else COLORMAP](np.linspace(0, 1, 256))[None, :, :3]
    return (255 * colors).round().astype(np.uint8)


def methods_panel(pair: ExplainedPair, *, signed: bool = False, columns: int = 4, dark: bool = False) -> Figure:
    """All saliency methods on one pair, recommended ones first: overlays on both images, each scaled by its own 99th
    percentile, and the gain of each method with emoji and with photographs."""
    size, gap, between, title, top, bottom = 0.86, 0.04, 0.22, 0.4, 0.1, 0.5
    shown = {"the pair": (pair.left, pair.right), **overlays(pair, signed=signed)}
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    cell_width, cell_height = 2 * size + gap, title + size + 0.08
    with style.theme(dark=dark):
        sheet = _Sheet(
            width=max(0.2 + columns * cell_width + (columns - 1) * between, LEGEND_WIDTH),
            height=top + rows * cell_height + bottom,
        )
        for index, (name, images) in enumerate(shown.items()):
            row, column = divmod(index, columns)
            x, y = 0.1 + column * (cell_width + between), top + row * cell_height
            is_bold = name == "the pair" or name in RECOMMENDED
            sheet.text(name, x, y + title - 0.19, weight="bold" if is_bold else "normal", size=8.5)
            sheet.text(note(name), x, y + title - 0.06, size=7, color=style.MUTED[dark])
            for number, image in enumerate(images):
                sheet.image(image, x + number * (size + gap), y + title, size)
        _color_bar(sheet, top + rows * cell_height + 0.08, cell_width, pair.target, signed=signed, dark=dark)
        return sheet.figure


def note(name: str) -> str:
    """Small print under a method's name: whether it is recommended, whose map it is, and its gains."""
    label = "recommended" if name in RECOMMENDED else "[Munteanu 2022]" if name == STUDY_METHOD else ""
    return "; ".join(filter(None, (label, grade_words(name))))


def grade_words(name: str) -> str:
    """The gains of a method with emoji and with photographs; empty if it was not graded."""
    return f"gain {GRADES[name].gain_emoji:.2f}, {GRADES[name].gain_photographs:.2f}" if name in GRADES else ""


def _color_bar(sheet: _Sheet, y: float, width: float, target: str, *, signed: bool, dark: bool) -> None:
    bar = sheet.axes(_Box(0.1, y, width, 0.09))
    low, colors = (-1, SIGNED_COLORMAP) if signed else (0, COLORMAP)
    sheet.figure.colorbar(ScalarMappable(Normalize(low, 1), colors), cax=bar, orientation="horizontal")
    bar.set_xticks([low, (low + 1) / 2, 1])
    bar.spines[:].set_visible(False)
    quantity = f"for (1) and against (-1) the {target}" if signed else "magnitude"
    words = f"{quantity}, as a share of each map's {CLIP_PERCENTILE}th percentile\ntarget: {target}"
    sheet.text(words, 0.1 + width + 0.22, y + 0.1, va="center", size=8, color=style.MUTED[dark])


def enlarge(heatmap: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A coarse heatmap enlarged to the size of its image without interpolation."""
    return cv2.resize(heatmap.astype(np.float32), shape[1::-1], interpolation=cv2.INTER_NEAREST)
