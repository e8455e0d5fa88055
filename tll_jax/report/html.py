"""The page of a study: one file that opens from disk, with everything it shows inside it."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure

from tll_jax.report import figures, numbers, style, table
from tll_jax.report.study_folder import Explanation, StudyFolder

FIGURE_DPI = 110
PICTURE_QUALITY = 85

COPY_SCRIPT = (
    "document.querySelector('#copy').addEventListener('click', event => {"
    "navigator.clipboard.writeText(document.querySelector('#command').textContent)"
    ".then(() => { event.target.textContent = 'Copied'; }); });"
)


def write_report(study_folder: Path | str) -> Path:
    """Writes `report.html` and the figures as PNG files into a finished study's folder; returns the page's path.

    Raises:
      FileNotFoundError: the folder is not a finished study.
    """
    study = StudyFolder(study_folder)
    figures.write_figures(study.path)
    path = study.path / "report.html"
    partial_path = path.with_suffix(".html.partial")
    partial_path.write_text(page(study), encoding="utf-8")
    partial_path.replace(path)
    return path


def page(study: StudyFolder) -> str:
    """The whole page as HTML."""
    results = study.results
    title = escape(f"{results['study']}: which images look alike, and why")
    sections = [
        f"<h1>{title}</h1>",
        *(f"<p>{escape(sentence)}</p>" for sentence in table.summary(results)),
        "<h2>Results</h2>",
        f"<p class='muted'>{escape(table.protocol_words(results))}</p>",
        _results_table(results),
        *_comparisons(results),
        "<h2>Figures</h2>",
        *_figures(study),
        "<h2>Queries and what was found</h2>",
        "<p>For the pairs of best and of worst rank of each arm's first seed: the query (left), the five nearest "
        "candidates, nearest first, the match outlined. Then where a small change of each picture would change the "
        "distance of the two embeddings most.</p>",
        *(section for arm in study.arms for section in _arm(study, arm)),
        "<h2>Data</h2>",
        *_data(results),
        "<h2>How it was made</h2>",
        f"<pre><code id='command'>{escape(results['command'])}</code></pre>",
        "<p><button id='copy' type='button'>Copy the command</button></p>",
        _definitions([("made", results["created"]), *table.hardware_words(results)]),
        "<h3>Time</h3>",
        _definitions(table.time_words(results)),
        "<h3>Versions</h3>",
        _definitions(list(results["versions"].items())),
    ]
    css = files("tll_jax.report").joinpath("page.css").read_text(encoding="utf-8")
    body = "\n".join(sections)
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{title}</title>\n<link rel='icon' href='data:,'>\n<style>\n{css}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n<script>{COPY_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _results_table(results: table.Results) -> str:
    words = table.metric_words(results)
    header = ["system", "kind", *words.values()]
    rows = []
    for row in table.ordered_rows(results):
        cells = "".join(_estimate_cell(row[name]) for name in table.ESTIMATES)
        rows.append(
            f"<tr class='{escape(row['kind'])}'><th scope='row'>{escape(row['system'])}</th>"
            f"<td>{escape(table.KIND_WORDS[row['kind']])}</td>{cells}"
            f"<td class='number'>{numbers.rank(row['median_rank'])}</td></tr>"
        )
    return _table(header, rows)


def _estimate_cell(estimate: Mapping[str, Any]) -> str:
    value = numbers.fraction(estimate["value"])
    if not numbers.has_interval(estimate):
        return f"<td>{value}</td>"
    return f"<td>{value}<span class='interval'>{numbers.bounds(estimate['low'], estimate['high'])}</span></td>"


def _comparisons(results: table.Results) -> Iterator[str]:
    def rows(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
        return [
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in table.comparison_cells(one, results)) + "</tr>"
            for one in comparisons
        ]

    if planned := table.planned(results):
        yield "<h3>Planned comparisons</h3>"
        yield f"<p class='muted'>{escape(table.PAIRED_WORDS)}</p>"
        yield _table(table.COMPARISON_HEADER, rows(planned))
    if exploratory := table.exploratory(results):
        number = numbers.plural(len(exploratory), "other comparison")
        yield f"<details><summary>{number}, exploratory and uncorrected</summary>"
        yield _table(table.COMPARISON_HEADER, rows(exploratory))
        yield "</details>"


def _table(header: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th scope='col'>{escape(word)}</th>" for word in header)
    body = "\n".join(rows)
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"


def _figures(study: StudyFolder) -> Iterator[str]:
    yield _figure(figures.task(study), "The task: for the picture on the left, which of the others looks most alike?")
    if study.excluded_pairs():
        yield _figure(figures.excluded(study), "Pairs that the face filter keeps out of the test.")
    if study.arms:
        yield _figure(
            figures.rank_histograms(study),
            "For how many pairs the match was found at each rank, mean of both directions and all seeds.",
        )
    yield _figure(
        figures.recall_at_k(study),
        "The share of queries whose match is among the k nearest candidates; bars are 95 % intervals over pairs.",
    )
    if study.arms:
        yield _figure(figures.training_curves(study), "Pretraining and fine-tuning.")


def _arm(study: StudyFolder, arm: str) -> Iterator[str]:
    explanations = study.explanations(arm)
    if not explanations:
        return
    yield f"<h3>{escape(arm)}</h3>"
    position = {identity: index for index, identity in enumerate(study.ids)}
    nearest = study.top(arm).left_to_right
    for one in explanations:
        yield _query(study, one, [study.ids[index] for index in nearest[position[one.id]]])
    yield _figure(figures.saliency(study, arm), f"Saliency of {arm}: gradient of the distance of the two embeddings.")


def _query(study: StudyFolder, one: Explanation, nearest: Sequence[str]) -> str:
    picture = partial(_picture, study)
    found = "".join(picture(identity, "right", is_match=identity == one.id) for identity in nearest)
    rest = "" if one.id in nearest else f"<span class='arrow'>… match:</span>{picture(one.id, 'right', is_match=True)}"
    return (
        f"<div class='query'><span class='rank'>{escape(one.kind)}, rank {one.rank}</span>"
        f"{picture(one.id, 'left', is_match=False)}<span class='arrow'>→</span>{found}{rest}</div>"
    )


def _picture(study: StudyFolder, identity: str, side: str, *, is_match: bool) -> str:
    words = escape(f"{side} picture of pair {identity}{', the match' if is_match else ''}", quote=True)
    css = " class='match'" if is_match else ""
    return f'<img{css} src="{_inline(study.image(identity, side), kind="webp")}" alt="{words}" title="{words}">'


def _data(results: table.Results) -> Iterator[str]:
    data = results["data"]
    yield _definitions(
        [
            ("pairs", f"{data['pairs']:,}"),
            ("training", f"{data['train']:,}"),
            ("validation", f"{data['validation']:,}"),
            ("test", f"{data['test']:,}"),
            ("rule", data["rule"]),
            *((f"with {reason}", f"{count:,}") for reason, count in data["excluded"].items()),
            *((f"pretraining of {arm} saw", saw) for arm, saw in data["pretraining_saw"].items()),
        ]
    )
    if data["skipped"]:
        number = numbers.plural(len(data["skipped"]), "pair")
        yield f"<details><summary>{number} could not be read and were skipped</summary><ul>"
        yield from (f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in data["skipped"])
        yield "</ul></details>"


def _definitions(items: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in items) + "</dl>"


def _figure(figure: Figure, caption: str) -> str:
    pixels = style.pixels(figure, dpi=FIGURE_DPI)
    opaque = pixels[..., 3:].astype(np.float64) / 255
    on_white = (pixels[..., :3] * opaque + 255 * (1 - opaque)).round().astype(np.uint8)
    words = escape(caption)
    return f'<figure><img src="{_inline(on_white, kind="png")}" alt="{words}"><figcaption>{words}</figcaption></figure>'


def _inline(image: np.ndarray, *, kind: str) -> str:
    options = [cv2.IMWRITE_WEBP_QUALITY, PICTURE_QUALITY] if kind == "webp" else [cv2.IMWRITE_PNG_COMPRESSION, 9]
    _, data = cv2.imencode(f".{kind}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"
