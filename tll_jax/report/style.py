"""Style of figures: one palette and set of sizes for light and dark, without pyplot's global state."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tll_jax.data.archive import printable
from tll_jax.files import replacing

# Okabe and Ito's palette for color-blind readers; the dark variants are lighter to keep a contrast of 3:1 on black.
BLUE, VERMILION, GREEN = ("#0072b2", "#5aa9e6"), ("#d55e00", "#f08040"), ("#009e73", "#2cc49a")
ORANGE, PURPLE, SKY, BROWN = (
    ("#c98500", "#e8b04a"),
    ("#b0588f", "#dd93c1"),
    ("#3f9fd8", "#8fd0f5"),
    ("#7a5c3e", "#c3a382"),
)
GRAY = ("#7d7d7d", "#9a9a9a")

KNOWN_COLORS = {
    "barlow": BLUE,
    "classification": VERMILION,
    "random": GREEN,
    "hog": ORANGE,
    "histogram": PURPLE,
    "pixels": BROWN,
    "chance": GRAY,
}
SPARE_COLORS = (SKY, *KNOWN_COLORS.values())

FROZEN_SUFFIX = "-frozen"
SAVE_DPI = 100
MOST_LETTERS = 48
"""Maximum number of characters of a name in a figure; longer names would leave no room for the plot."""

INK = ("#1c1d1f", "#e7e6e3")
MUTED = ("#6a6c70", "#9da0a6")
FAINT = ("#dcdcd8", "#3a3d43")
SURFACE = ("#ffffff", "#191b1f")
MATCH = ("#00855f", "#37c99c")


def theme(*, dark: bool) -> AbstractContextManager[None]:
    """Context manager of the drawing style."""
    ink, muted, faint, surface = INK[dark], MUTED[dark], FAINT[dark], SURFACE[dark]
    return matplotlib.rc_context(
        {
            "figure.facecolor": surface,
            "savefig.facecolor": surface,
            "axes.facecolor": "none",
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            "font.size": 9,
            # Names may contain a $.
            "text.parse_math": False,
            "text.color": ink,
            "axes.labelcolor": muted,
            "axes.titlecolor": ink,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.titlepad": 10,
            "axes.labelsize": 9,
            "axes.edgecolor": muted,
            "axes.linewidth": 0.7,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.grid.axis": "y",
            "axes.axisbelow": True,
            "axes.prop_cycle": cycler(color=[pair[dark] for pair in SPARE_COLORS]),
            "grid.color": faint,
            "grid.linewidth": 0.6,
            "xtick.color": muted,
            "ytick.color": muted,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "xtick.major.width": 0.7,
            "ytick.major.size": 0,
            "legend.frameon": False,
            "legend.fontsize": 8,
            "lines.linewidth": 1.6,
            "lines.solid_capstyle": "round",
        }
    )


def colors(systems: Iterable[str], *, dark: bool) -> dict[str, str]:
    """Fixed colors for known systems, spare ones for others; a frozen model has the color of its fine-tuned one."""
    names = list(dict.fromkeys(name.removesuffix(FROZEN_SUFFIX) for name in systems))
    taken = {KNOWN_COLORS[name] for name in names if name in KNOWN_COLORS}
    spare = [pair for pair in dict.fromkeys(SPARE_COLORS) if pair not in taken] or list(SPARE_COLORS)
    unknown = [name for name in names if name not in KNOWN_COLORS]
    chosen = KNOWN_COLORS | {name: spare[i % len(spare)] for i, name in enumerate(unknown)}
    return {name: chosen[name.removesuffix(FROZEN_SUFFIX)][dark] for name in systems}


def label(name: str) -> str:
    """Printable name for a figure; of long names the end is kept, which distinguishes them."""
    shown = printable(name)
    if len(shown) > MOST_LETTERS:
        shown = f"…{shown[1 - MOST_LETTERS :]}"
    # matplotlib omits labels that begin with an underscore from legends.
    return f" {shown}" if shown.startswith("_") else shown


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG, or an SVG for the suffix .svg; equal figures give identical bytes."""
    with replacing(path) as partial:
        if path.suffix == ".svg":
            with matplotlib.rc_context({"svg.hashsalt": path.name, "image.composite_image": False}):
                figure.savefig(partial, format="svg", dpi=SAVE_DPI, metadata={"Date": None})
        else:
            figure.savefig(partial, format="png", dpi=SAVE_DPI, metadata={"Software": None})


def pixels(figure: Figure, *, dpi: int = SAVE_DPI) -> np.ndarray:
    """Figure on a transparent background, uint8 RGBA `[h, w, 4]`."""
    figure.patch.set_alpha(0)
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()
