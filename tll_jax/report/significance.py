"""Matrix of pairwise p-values between all systems, as a figure and in Markdown."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from tll_jax.report import numbers, style, table

LEVELS = ((0.001, 0.9), (0.01, 0.6), (0.05, 0.3))
"""Upper bounds of p-values and the opacity of cells below them."""
CELL_INCHES = 0.5


class Cell(NamedTuple):
    """Row system minus column system, and the p-value adjusted for the number of cells."""

    difference: float
    p_value: float


def has_matrix(results: Mapping[str, Any]) -> bool:
    """Whether the results contain a matrix; those of older versions and of a single system do not."""
    return bool(results.get("significance"))


def matrix(results: Mapping[str, Any]) -> tuple[list[str], list[list[Cell | None]]]:
    """Systems by decreasing MRR, and their cells: MRR above the diagonal, top-1 below it."""
    rows = sorted((row for row in results["rows"] if row["kind"] != "chance"), key=lambda row: -row["mrr"]["value"])
    names = [row["system"] for row in rows]
    found = {}
    for one in results["significance"]:
        p_value = one["p_max_t"] if "p_max_t" in one else one["p_holm"]
        found[one["metric"], one["a"], one["b"]] = Cell(one["difference"], p_value)
        found[one["metric"], one["b"], one["a"]] = Cell(-one["difference"], p_value)
    cells = [
        [None if i == j else found["mrr" if i < j else "top1", a, b] for j, b in enumerate(names)]
        for i, a in enumerate(names)
    ]
    return names, cells


def description(results: Mapping[str, Any]) -> str:
    """Description of the matrix in a few sentences."""
    cells = results["significance"]
    # Version 0.1.0 adjusted by Holm's method.
    how = "step-down max-T over the same flips" if "p_max_t" in cells[0] else "Holm's correction"
    return (
        "Exploratory: every system against every other on the same pairs, above the diagonal in MRR, below it in "
        f"top-1. A cell holds the p-value of the sign-flip test over pairs, adjusted for all {len(cells):,} cells by "
        f"{how}. Systems are in order of decreasing MRR. The test takes runs and candidates as fixed. Planned "
        "comparisons are corrected within their own family."
    )


def matrix_markdown(results: Mapping[str, Any]) -> list[str]:
    """Markdown lines of the matrix; p-values below .05 are bold."""
    names, cells = matrix(results)
    rows = [[name, *map(_markdown_cell, row)] for name, row in zip(names, cells, strict=True)]
    return [
        "## Every system against every other",
        "",
        f"{description(results)} + and {numbers.MINUS}: the system of the row is ahead, or behind.",
        "",
        *table.markdown_table(["", *names], rows),
        "",
    ]


def _markdown_cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    text = f"{_sign(cell)} {numbers.p_value(cell.p_value)}".strip()
    return f"**{text}**" if cell.p_value < 0.05 else text


def _sign(cell: Cell) -> str:
    return "+" if cell.difference > 0 else numbers.MINUS if cell.difference < 0 else ""


def matrix_figure(results: Mapping[str, Any], *, dark: bool = False) -> Figure:
    """The matrix as a heatmap: blue if the row is ahead, vermilion if the column is, darker for smaller p-values."""
    names, cells = matrix(results)
    names = [style.label(name) for name in names]
    with style.theme(dark=dark):
        side = CELL_INCHES * len(names)
        margin = 0.3 + 0.075 * max(map(len, names))
        figure = Figure(figsize=(max(side + margin, 4.5), side + margin + 0.5), layout="constrained")
        axes = figure.subplots()
        ahead, behind = style.BLUE[dark], style.VERMILION[dark]
        for i, row in enumerate(cells):
            for j, cell in enumerate(row):
                if cell is None:
                    axes.add_patch(Rectangle((j, i), 1, 1, facecolor=style.FAINT[dark], linewidth=0))
                    continue
                color = ahead if cell.difference > 0 else behind
                strength = next((alpha for level, alpha in LEVELS if cell.p_value < level), 0)
                axes.add_patch(Rectangle((j, i), 1, 1, facecolor=color, alpha=strength, linewidth=0))
                ink = style.SURFACE[dark] if strength > 0.8 else style.INK[dark]
                text = numbers.p_value(cell.p_value).replace(" ", "")
                axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=7.5, color=ink)
        places = [index + 0.5 for index in range(len(names))]
        axes.set_xlim(0, len(names))
        axes.set_ylim(len(names), 0)
        axes.set_aspect("equal")
        axes.set_xticks(places, names, rotation=90)
        axes.set_yticks(places, names)
        axes.tick_params(length=0)
        axes.xaxis.tick_top()
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("above the diagonal MRR, below it top-1")
        entries = [
            Patch(facecolor=color, alpha=LEVELS[0][1], label=label)
            for color, label in ((ahead, "row ahead"), (behind, "column ahead"))
        ]
        entries += [
            Patch(facecolor=style.INK[dark], alpha=alpha, label=f"p < {numbers.fraction(level, digits=3)}")
            for level, alpha in LEVELS
        ]
        figure.legend(handles=entries, loc="outside lower center", ncols=len(entries), handlelength=1, columnspacing=1)
        return figure
