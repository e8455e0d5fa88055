"""HTML report of a study, a single self-contained file."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tll_jax.data.workers import Workers
from tll_jax.files import write_whole
from tll_jax.report import figures, markup, numbers, pictures, queries, significance, table
from tll_jax.study.folder import StudyFolder

COPY_SCRIPT = (
    "document.querySelector('#copy').addEventListener('click', event => {"
    "navigator.clipboard.writeText(document.querySelector('#command').textContent)"
    ".then(() => { event.target.textContent = 'Copied'; },"
    "() => { event.target.textContent = 'Select and copy by hand'; }); });"
)

DIRECTION_WORDS = {"left_to_right": "left → right", "right_to_left": "right → left"}
DIRECTION_METRICS = ("top1", "top5", "mrr", "median_rank")


def write_report(study_folder: Path | str, workers: Workers | None = None) -> Path:
    """Writes `report.html` and the figures as PNG files to a finished study's folder; returns the page's path.

    Args:
      workers: processes that draw the figures, all at once; drawn here if None.

    Raises:
      FileNotFoundError: the folder is not a finished study.
    """
    study = StudyFolder(study_folder)
    path = study.path / "report.html"
    write_whole(path, page(study, figures.write_figures(study, workers)))
    return path


def page(study: StudyFolder, drawn: Mapping[str, markup.Drawn]) -> str:
    """HTML of the whole page, with its figures as `figures.write_figures` returns them."""
    results = study.results
    title = f"{results['study']}: which images look alike, and why"
    sections = {
        "The task": _task(study, drawn),
        "Results": _results(results, drawn),
        "Ranks": _ranks(study, drawn),
        "Queries": _queries(study),
        "Saliency": _saliency(study),
        "Training": _training(drawn),
        "Data": _data(study, drawn),
        "How it was made": _made(results),
    }
    return markup.document(title, table.summary(results), sections, script=COPY_SCRIPT)


def _task(study: StudyFolder, drawn: Mapping[str, markup.Drawn]) -> Iterator[str]:
    yield markup.figure(
        drawn["task"],
        alt="Three queries, each with seven candidates of which the match is outlined",
        caption="For the picture on the left, which of the others looks most alike? Pairs and candidates here are "
        f"drawn at random; in the test every query has {study.num_candidates:,} candidates.",
    )


def _results(results: table.Results, drawn: Mapping[str, markup.Drawn]) -> Iterator[str]:
    yield markup.paragraph(table.protocol_words(results), css="muted")
    yield _results_table(results, caption="All systems on the same test pairs, with 95 % intervals")
    yield markup.paragraph(" ".join([table.estimand_words(results), *table.left_out_words(results)]), css="muted")
    if planned := table.planned(results):
        yield "<h3>Planned comparisons</h3>"
        yield markup.paragraph(table.PAIRED_WORDS, css="muted")
        yield _comparison_table(results, planned, caption="Comparisons planned beforehand")
        yield markup.paragraph(table.estimand_words(results, of="Differences"), css="muted")
    if exploratory := table.exploratory(results):
        number = numbers.plural(len(exploratory), "other comparison")
        words = "Not planned and not corrected for their number: a start for another study, not results of this one."
        yield markup.details(
            f"{number}, exploratory and uncorrected",
            [
                markup.paragraph(words, css="muted"),
                _comparison_table(results, exploratory, caption="Exploratory comparisons"),
            ],
        )
    if "significance" in drawn:
        yield markup.figure(
            drawn["significance"],
            alt="A matrix of p-values, every system against every other",
            caption=f"{significance.description(results)} Blue: the system of the row is ahead; vermilion: that of the "
            "column; darker for smaller p-values.",
        )
    if among_all := table.faces_included(results):
        yield markup.details(
            "Among all pairs, faces included",
            [
                markup.paragraph(f"{table.FACES_WORDS} {table.protocol_words(among_all)}", css="muted"),
                _results_table(among_all, caption="Systems without fitted parameters, among all pairs"),
            ],
        )
    yield markup.details("Results by direction", [_directions_table(results), *_mcnemar_table(results)])


def _results_table(results: table.Results, *, caption: str) -> str:
    words, shown, crossed = table.metric_words(results), table.shown_metrics(results), table.is_crossed(results)
    ordered = table.ordered_rows(results)
    most = max(_end(row["mrr"]) for row in ordered)
    rows = []
    for row in ordered:
        value = row["mrr"]
        strip = ""
        if numbers.has_interval(value):
            strip = markup.interval_strip(value["value"], value["low"], value["high"], most=most)
        cells = [
            markup.text(table.KIND_WORDS[row["kind"]]),
            *(_estimate(row[name]) for name in shown),
            *([table.crossed_cell((row.get("crossed") or {}).get("mrr"))] if crossed else []),
            strip,
            numbers.rank(row["median_rank"]),
        ]
        rows.append(markup.row(row["system"], cells, css=row["kind"]))
    header = [
        "system",
        "kind",
        *(words[name] for name in shown),
        *([table.CROSSED_HEADER] if crossed else []),
        f"MRR, 0 to {numbers.fraction(most)}",
        words["median_rank"],
    ]
    return markup.table(header, rows, caption=caption)


def _end(estimate: Mapping[str, Any]) -> float:
    return estimate["high"] if numbers.has_interval(estimate) else estimate["value"]


def _estimate(estimate: Mapping[str, Any]) -> str:
    value = numbers.fraction(estimate["value"])
    if not numbers.has_interval(estimate):
        return value
    return f'{value}<span class="interval">{numbers.bounds(estimate["low"], estimate["high"])}</span>'


def _comparison_table(results: table.Results, comparisons: Sequence[Mapping[str, Any]], *, caption: str) -> str:
    header, *cells = table.comparison_table(comparisons, results)
    rows = [markup.row(first, [*map(markup.text, rest), markup.reading(last)]) for first, *rest, last in cells]
    return markup.table(header, rows, caption=caption)


def _directions_table(results: table.Results) -> str:
    words, shown = table.metric_words(results), table.shown_metrics(results, DIRECTION_METRICS)
    rows = []
    for row in table.ordered_rows(results):
        for direction, direction_words in DIRECTION_WORDS.items():
            wilson = (row["wilson"] or {}).get(direction, {})
            values = row[direction]
            cells = [direction_words]
            for name in shown:
                value = numbers.rank(values[name]) if name == "median_rank" else numbers.fraction(values[name])
                if name in wilson:
                    counted = wilson[name]
                    limits = numbers.bounds(counted["low"], counted["high"])
                    value += f'<span class="interval">{counted["hits"]} of {counted["of"]} {limits}</span>'
                cells.append(value)
            rows.append(markup.row(row["system"], cells, css=row["kind"]))
    header = ["system", "direction", *(words[name] for name in shown)]
    return markup.table(
        header, rows, caption="Results by direction; counts with Wilson 95 % intervals for systems with one seed"
    )


def _mcnemar_table(results: table.Results) -> Iterator[str]:
    words = table.metric_words(results)
    rows = []
    for one in table.planned(results):
        for direction, test in (one["mcnemar"] or {}).items():
            cells = [
                markup.text(one["b"]),
                words[one["metric"]],
                DIRECTION_WORDS[direction],
                str(test["only_a"]),
                str(test["only_b"]),
                markup.text(numbers.p_value(test["p_value"])),
            ]
            rows.append(markup.row(one["a"], cells))
    if rows:
        header = ["a", "b", "metric", "direction", "only a hit", "only b hit", "exact p"]
        yield markup.table(header, rows, caption="McNemar's exact test of the planned comparisons, uncorrected")


def _ranks(study: StudyFolder, drawn: Mapping[str, markup.Drawn]) -> Iterator[str]:
    if "rank_histograms" in drawn:
        yield markup.figure(
            drawn["rank_histograms"],
            alt=f"Histograms of the rank of the match for {', '.join(study.models)}",
            caption="Number of pairs by the rank of their match, averaged over both directions and all seeds, so that "
            "counts need not be whole. Ranks 1 to 5 are in full color. Heights are square roots of the counts, so "
            "that the first bar does not hide the others.",
        )
    yield markup.figure(
        drawn["recall_at_k"],
        alt="Curves of recall at k, one for each system",
        caption="Recall at k: the fraction of queries whose match is among the top k. Vertical bars are the 95 % "
        "intervals of the fine-tuned models at k = 1, 5, 10 and 25; frozen backbones are dashed.",
    )


def _queries(study: StudyFolder) -> Iterator[str]:
    if not study.models:
        return
    yield markup.paragraph(
        f"{len(queries.sample(study))} of the queries, evenly spaced from the "
        "easiest pair to the hardest by mean reciprocal rank over the models, so that hits and misses appear in "
        "proportion. The query side alternates. Each model (first seed) shows its five nearest candidates, nearest "
        "first; the match is outlined.",
        css="muted",
    )
    yield queries.sampled_queries(study)


def _saliency(study: StudyFolder) -> Iterator[str]:
    sections = [piece for model in study.models for piece in queries.explained(study, model)]
    if sections:
        yield markup.paragraph(
            "Matched test pairs of the best and of the worst mean reciprocal rank, for the first seed of each model; "
            "ranks are left to right. The maps that the faithfulness grades recommend come first: Integrated Gradients "
            "show which pixels make the two alike, the decomposition which places. Then comes the gradient of the "
            "squared distance, as in [Munteanu 2022]: bright where a small change would change the distance "
            "most. The gains measure how faithful a method is, on emoji and on photographs; 0 is noise.",
            css="muted",
        )
        yield markup.color_legend(pictures.color_strip(signed=False), "little", "much")
        yield from sections


def _training(drawn: Mapping[str, markup.Drawn]) -> Iterator[str]:
    if "training_curves" in drawn:
        yield markup.figure(
            drawn["training_curves"],
            alt="Learning curves: pretraining loss, fine-tuning loss and validation mean reciprocal rank by step",
            caption="Losses of different pretraining objectives are on different scales and cannot be compared. The "
            "tested checkpoint is the one with the best validation mean reciprocal rank.",
        )


def _data(study: StudyFolder, drawn: Mapping[str, markup.Drawn]) -> Iterator[str]:
    data = study.results["data"]
    yield markup.definitions(table.data_words(study.results))
    if data["skipped"]:
        items = "".join(f"<li>{markup.text(name)}: {markup.text(reason)}</li>" for name, reason in data["skipped"])
        number = numbers.plural(len(data["skipped"]), "pair")
        yield markup.details(f"{number} could not be read", [f"<ul>{items}</ul>"])
    if "excluded" in drawn:
        yield markup.figure(
            drawn["excluded"],
            alt="Pairs of pictures that show faces",
            caption="Some of the pairs that the face filter excludes from the test set.",
        )


def _made(results: table.Results) -> Iterator[str]:
    yield markup.command(results["command"])
    yield markup.definitions([("made", results["created"]), *table.hardware_words(results)])
    yield "<h3>Time</h3>"
    yield markup.definitions(table.time_words(results))
    yield "<h3>Versions</h3>"
    yield markup.definitions(results["versions"].items())
