"""Building blocks of HTML pages; text is escaped and images are inlined."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import NamedTuple

import cv2
import numpy as np

from tll_jax.data.archive import printable

PAGE_DPI = 150
FIGURE_SCALE = 1.1
"""Size of a figure on the page in CSS inches per inch."""
LOSSLESS = 101
PICTURE_QUALITY = 85
PICTURES_IN_FIGURE_QUALITY = 90
NOTHING_FROM_OUTSIDE = "default-src 'none'; img-src {images}; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def text(words: str) -> str:
    """Text as HTML; non-printable characters, such as line breaks and undecodable bytes, are escaped visibly."""
    return escape(printable(words))


def document(
    title: str,
    lead: str | Sequence[str],
    sections: Mapping[str, Iterable[str]],
    *,
    script: str,
    css: str = "",
    images: str = "data:",
) -> str:
    """HTML of a whole page, which opens from disk.

    Args:
      title: as text.
      lead: as text; several sentences become a numbered list.
      sections: HTML by heading; empty sections are left out.
      script: JavaScript at the end of the page.
      css: appended to the style sheet of all pages.
      images: allowed sources of images (Content-Security-Policy).
    """
    first = paragraph(lead, css="lead") if isinstance(lead, str) else _numbered(lead, css="lead")
    written = {name: "\n".join(content) for name, content in sections.items()}
    shown = {name: body for name, body in written.items() if body}
    links = "".join(f'<a href="#{_anchor(name)}">{text(name)}</a>' for name in shown)
    navigation = f'<nav aria-label="Sections">{links}</nav>\n' if len(shown) > 1 else ""
    body = "\n".join(
        f'<section id="{_anchor(name)}">\n<h2>{text(name)}</h2>\n{content}\n</section>'
        for name, content in shown.items()
    )
    styles = files("tll_jax.report").joinpath("page.css").read_text(encoding="utf-8") + css
    policy = NOTHING_FROM_OUTSIDE.format(images=images)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<title>{text(title)}</title>\n<link rel="icon" href="data:,">\n<style>\n{styles}</style>\n</head>\n'
        f"<body>\n<header>\n<h1>{text(title)}</h1>\n{first}\n"
        f"{navigation}</header>\n"
        f"<main>\n{body}\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _numbered(items: Sequence[str], *, css: str) -> str:
    return f"<ol{_class(css)}>" + "".join(f"<li>{text(item)}</li>" for item in items) + "</ol>"


def paragraph(words: str, *, css: str = "") -> str:
    return f"<p{_class(css)}>{text(words)}</p>"


def table(header: Sequence[str], rows: Iterable[str], *, caption: str) -> str:
    """A table that scrolls sideways on narrow screens; `rows` are HTML, the rest is text."""
    head = "".join(f'<th scope="col">{text(word)}</th>' for word in header)
    body = "\n".join(rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}"><table>'
        f"<caption>{text(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def row(name: str, cells: Iterable[str], *, css: str = "") -> str:
    """A table row: its name as text, then cells as HTML."""
    rest = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr{_class(css)}><th scope="row">{text(name)}</th>{rest}</tr>'


def reading(words: str) -> str:
    """A sentence in a table's cell, where it may take several lines."""
    return f'<span class="reading">{text(words)}</span>'


def details(summary: str, content: Iterable[str]) -> str:
    body = "\n".join(content)
    return f"<details><summary>{text(summary)}</summary>\n{body}\n</details>"


def definitions(items: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in items) + "</dl>"


def command(words: str) -> str:
    """A command that made the page, which scrolls by keyboard, with the button of a script that copies it."""
    return (
        f'<pre tabindex="0"><code id="command">{escape(words)}</code></pre>'
        '<p><button id="copy" type="button">Copy the command</button></p>'
    )


class DrawnFigure(NamedTuple):
    """A figure for a page."""

    image: str
    """As data URI."""
    width: int
    """In CSS pixels."""


class Drawn(NamedTuple):
    """A figure for light and for dark screens."""

    light: DrawnFigure
    dark: DrawnFigure


def drawn_figure(pixels: np.ndarray, *, is_line_drawing: bool) -> DrawnFigure:
    """A figure of `PAGE_DPI`; line drawings are compressed without loss."""
    image = inline(pixels, quality=LOSSLESS if is_line_drawing else PICTURES_IN_FIGURE_QUALITY)
    return DrawnFigure(image, round(pixels.shape[1] / PAGE_DPI * 96 * FIGURE_SCALE))


def figure(shown: Drawn, *, alt: str, caption: str) -> str:
    return (
        f'<figure><picture tabindex="0"><source media="(prefers-color-scheme: dark)" srcset="{shown.dark.image}">'
        f'<img src="{shown.light.image}" width="{shown.light.width}" alt="{text(alt)}"></picture>'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def picture(image: np.ndarray, words: str, *, css: str = "") -> str:
    """An image with alternative text."""
    words = text(words)
    return f'<img{_class(css)} src="{inline(image, quality=PICTURE_QUALITY)}" alt="{words}" title="{words}">'


def color_legend(strip: np.ndarray, low: str, high: str) -> str:
    """The colors of maps, which are comparable within a map only, from `low` to `high`."""
    shown = picture(strip, f"colors from {low} to {high}", css="colors")
    return f"<p>{text(low)} {shown} {text(high)}; brightness is comparable within a map, not between maps.</p>"


def inline(image: np.ndarray, *, quality: int) -> str:
    """Data URI of a uint8 RGB or RGBA image as WebP; `quality` is up to 100, or `LOSSLESS`."""
    order = cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR
    _, data = cv2.imencode(".webp", cv2.cvtColor(image, order), [cv2.IMWRITE_WEBP_QUALITY, quality])
    return f"data:image/webp;base64,{base64.b64encode(data.tobytes()).decode()}"


def interval_strip(value: float, low: float, high: float, *, most: float) -> str:
    """A value and its interval drawn on a line from 0 to `most`.

    Hidden from screen readers, because the numbers are in the same row.
    """
    x, start, end = (100 * number / most for number in (value, low, high))
    return (
        '<svg class="strip" viewBox="0 0 100 10" aria-hidden="true">'
        '<line class="track" x1="0" y1="5" x2="100" y2="5"/>'
        f'<line x1="{start:.1f}" y1="5" x2="{end:.1f}" y2="5"/><circle cx="{x:.1f}" cy="5" r="2.6"/></svg>'
    )


def _class(css: str) -> str:
    return f' class="{css}"' if css else ""
