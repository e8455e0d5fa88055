"""The results of a study as words and a table: what the markdown file and the page both say."""

from collections.abc import Mapping, Sequence
from typing import Any

from tll_jax.data.archive import printable
from tll_jax.report import numbers

KIND_ORDER = ("chance", "baseline", "frozen", "fitted", "file", "model")
KIND_WORDS = {
    "chance": "chance",
    "baseline": "no training",
    "frozen": "frozen backbone",
    "fitted": "fitted",
    "file": "model file",
    "model": "fine-tuned",
}
ESTIMATES = ("top1", "top5", "top10", "top25", "top_paper", "mrr")
MUNTEANU_TOP, MUNTEANU_CANDIDATES = 25, 1200

Results = Mapping[str, Any]


def metric_words(results: Results) -> dict[str, str]:
    """How each metric is called, the protocol of [Munteanu 2022] with its k."""
    paper_k = results["protocol"]["paper_k"]
    return {
        "top1": "top-1",
        "top5": "top-5",
        "top10": "top-10",
        "top25": "top-25",
        "top_paper": f"top-{paper_k} (Munteanu)",
        "mrr": "MRR",
        "median_rank": "median rank",
    }


def ordered_rows(results: Results) -> list[Mapping[str, Any]]:
    """Chance, then what needs no training, frozen backbones, fitted systems, and the fine-tuned models."""
    return sorted(results["rows"], key=lambda row: KIND_ORDER.index(row["kind"]))


def planned(results: Results) -> list[Mapping[str, Any]]:
    return [one for one in results["comparisons"] if one["planned"]]


def exploratory(results: Results) -> list[Mapping[str, Any]]:
    return [one for one in results["comparisons"] if not one["planned"]]


def verdict(comparison: Mapping[str, Any]) -> str:
    """Names the better one only if the paired interval excludes 0 and, where it is given, Holm's p is under .05."""
    low, high = comparison["low"], comparison["high"]
    if low <= 0 <= high:
        return "no difference shown (the interval contains 0)"
    better = comparison["a"] if low > 0 else comparison["b"]
    corrected = comparison.get("p_holm")
    if corrected is not None and corrected >= 0.05:
        return f"{better} is ahead, but not after Holm's correction"
    return f"{better} is better"


def protocol_words(results: Results) -> str:
    """How the numbers were made, in a few sentences."""
    pairs, candidates = results["protocol"]["queries"], results["protocol"]["candidates"]
    k, queried = results["protocol"]["paper_k"], results["protocol"].get("queried", "test pair")
    folds = results["protocol"].get("folds", ())
    among = numbers.plural(candidates, "candidate")
    if folds:
        among = f"the pairs of its own fold, one of {len(folds)} (at most {among})"
    seeds = max(row["num_seeds"] for row in results["rows"])
    over = "both directions" if seeds == 1 else f"both directions and {seeds} seeds"
    return (
        f"{numbers.plural(pairs, queried)}, each asked in both directions among {among}. "
        f"Values are shares of queries, averaged over {over}; brackets are 95 % intervals over pairs, "
        "which hold the candidates fixed. "
        f"Ties count against a system. Top-{k} of {candidates:,} is the "
        f"top-{MUNTEANU_TOP} of {MUNTEANU_CANDIDATES:,} of [Munteanu 2022]."
    )


def summary(results: Results) -> list[str]:
    """The results as sentences built from the numbers."""
    rows = ordered_rows(results)
    models = sorted((row for row in rows if row["kind"] == "model"), key=lambda row: -row["mrr"]["value"])
    baselines = [row for row in rows if row["kind"] == "baseline"]
    chance = [row for row in rows if row["kind"] == "chance"]
    sentences = []
    if models:
        best = models[0]
        sentences.append(
            f"Of the fine-tuned models, {best['system']} has the highest mean reciprocal rank, "
            f"{numbers.estimate(best['mrr'])}: it puts the right picture first in "
            f"{_percent(best['top1']['value'])} of queries and among the first five in "
            f"{_percent(best['top5']['value'])}"
            + (
                f" (chance: {_percent(chance[0]['top1']['value'])} and {_percent(chance[0]['top5']['value'])})"
                if chance
                else ""
            )
            + "."
        )
    if baselines:
        strongest = max(baselines, key=lambda row: row["mrr"]["value"])
        sentences.append(
            f"The strongest system without training is {strongest['system']}, "
            f"with a mean reciprocal rank of {numbers.estimate(strongest['mrr'])}."
        )
    if fitted := [row for row in rows if row["kind"] == "fitted"]:
        best = max(fitted, key=lambda row: row["mrr"]["value"])
        sentences.append(
            f"Of the fitted systems, {best['system']} has the highest mean reciprocal rank, "
            f"{numbers.estimate(best['mrr'])}."
        )
    named = planned(results)
    by_rank = [one for one in named if one["metric"] == "mrr"] or named
    if by_rank:
        words = "; ".join(comparison_words(one, results) for one in by_rank)
        sentences.append(f"Planned comparisons on the same pairs: {words}.")
    return sentences


def comparison_words(comparison: Mapping[str, Any], results: Results) -> str:
    """`barlow against hog in MRR +.031 [.004, .058], barlow is better`."""
    metric = metric_words(results).get(comparison["metric"], comparison["metric"])
    interval = numbers.bounds(comparison["low"], comparison["high"], digits=3)
    return (
        f"{comparison['a']} against {comparison['b']} in {metric} "
        f"{numbers.difference(comparison['difference'])} {interval}, {verdict(comparison)}"
    )


def hardware_words(results: Results) -> list[tuple[str, str]]:
    """Name and value of what the study ran on."""
    words = {"memory_gib": "memory", "cpu": "CPU"}
    units = {"memory_gib": " GiB"}
    return [
        (words.get(name, name), f"{_listed(value)}{units.get(name, '')}")
        for name, value in results["hardware"].items()
        if value is not None
    ]


def time_words(results: Results) -> list[tuple[str, str]]:
    """Name and duration of the whole study and of its stages."""
    seconds = results["seconds"]
    stages = sorted((name for name in seconds if name != "total"), key=lambda name: -seconds[name])
    return [(name, numbers.duration(seconds[name])) for name in ["total", *stages]]


def rows_markdown(results: Results) -> str:
    """The results table alone, with how its numbers were made."""
    words = metric_words(results)
    header = ["system", "kind", *(words[name] for name in ESTIMATES), words["median_rank"]]
    rows = [
        [
            row["system"],
            KIND_WORDS[row["kind"]],
            *(numbers.estimate(row[name]) for name in ESTIMATES),
            numbers.rank(row["median_rank"]),
        ]
        for row in ordered_rows(results)
    ]
    return "\n".join([protocol_words(results), "", *markdown_table(header, rows), ""])


def faces_included(results: Results) -> Results | None:
    """The rows of what was ranked among all pairs, as results of their own; None where nothing was."""
    rows = results.get("faces_included")
    if not rows:
        return None
    count = results["data"]["pairs"]
    protocol = {"queries": count, "candidates": count, "paper_k": rows[0]["top_paper"]["k"]}
    return {"protocol": protocol, "rows": rows}


def planned_markdown(results: Results) -> list[str]:
    """The lines of the planned comparisons; none where there are none."""
    if not planned(results):
        return []
    cells = [comparison_cells(one, results) for one in planned(results)]
    return ["## Planned comparisons", "", PAIRED_WORDS, "", *markdown_table(COMPARISON_HEADER, cells), ""]


def results_markdown(results: Results) -> str:
    """The results as a markdown file: the table, the planned comparisons, how they were made."""
    lines = [f"# {printable(results['study'])}", "", rows_markdown(results), *planned_markdown(results)]
    if among_all := faces_included(results):
        lines += ["## Faces included", "", FACES_WORDS, "", rows_markdown(among_all)]
    if results.get("probes"):
        lines += ["## Probes", "", PROBE_WORDS, "", *probes_markdown(results), ""]
    if exploratory(results):
        number = numbers.plural(len(exploratory(results)), "exploratory comparison")
        lines += [f"{number}, uncorrected: see `results.json` and `report.html`.", ""]
    lines += ["## Data", "", *(f"- {name}: {value}" for name, value in data_words(results)), ""]
    hardware = "; ".join(f"{name} {value}" for name, value in hardware_words(results))
    times = [f"{name} {value}" for name, value in time_words(results)]
    lines += ["## How it was made", "", "```", results["command"], "```", ""]
    lines += [f"- Made: {results['created']}", f"- Hardware: {hardware}", f"- Time: {', '.join(times)}", ""]
    return "\n".join(lines)


PROBE_WORDS = (
    "Classes of images, told by frozen backbones: by the votes of the nearest training images, and by a linear "
    "classifier on the pooled features. The mean over pretrainings, in brackets the lowest and the highest."
)


def probes_markdown(results: Results) -> list[str]:
    """The lines of the table of probes."""
    rows = []
    for name, found in results["probes"].items():
        cells = [[one[kind] for one in found] for kind in ("neighbors", "linear")]
        rows.append([name, *(_with_range(values) for values in cells)])
    return markdown_table(["backbone", "nearest neighbors", "linear classifier"], rows)


def _with_range(values: Sequence[float]) -> str:
    mean = numbers.fraction(sum(values) / len(values), digits=3)
    if len(values) == 1:
        return mean
    return f"{mean} [{', '.join(numbers.fraction(one, digits=3) for one in (min(values), max(values)))}]"


def data_words(results: Results) -> list[tuple[str, str]]:
    """What was trained on, chosen on and tested on, name by name."""
    data = results["data"]
    duplicates = data["duplicates"]
    return [
        ("pairs", f"{data['pairs']:,}"),
        ("training", f"{data['train']:,}"),
        ("validation", f"{data['validation']:,}"),
        ("test", f"{data['test']:,}"),
        ("rule", data["rule"]),
        *((f"taken out: {reason}", f"{count:,}") for reason, count in data["excluded"].items()),
        (
            "pairs that share a picture with another",
            f"{duplicates['pairs']:,} in {numbers.plural(duplicates['groups'], 'group')}, none split over the parts",
        ),
        *((f"pretraining of {model} saw", saw) for model, saw in data["pretraining_saw"].items()),
        ("skipped", f"{len(data['skipped']):,}"),
    ]


PAIRED_WORDS = (
    "Differences are a \N{MINUS SIGN} b on the same pairs with paired 95 % intervals. "
    "A system is called better only if the interval excludes 0 and p stays under .05 after Holm's correction."
)
FACES_WORDS = (
    "Systems that fit nothing, ranked among all pairs, those with faces and those of the training part included: "
    "not to be compared with the table of the test pairs."
)
COMPARISON_HEADER = ["a", "b", "metric", "a \N{MINUS SIGN} b", "95 % interval", "p", "p (Holm)", "reading"]


def comparison_cells(comparison: Mapping[str, Any], results: Results) -> list[str]:
    """One comparison under `COMPARISON_HEADER`."""
    return [
        comparison["a"],
        comparison["b"],
        metric_words(results).get(comparison["metric"], comparison["metric"]),
        numbers.difference(comparison["difference"]),
        numbers.bounds(comparison["low"], comparison["high"], digits=3),
        numbers.p_value(comparison["p_value"]),
        numbers.p_value(comparison["p_holm"]),
        verdict(comparison),
    ]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in markdown, whatever its cells hold."""
    cells = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(map(_markdown_cell, row)) + " |" for row in cells]


def _markdown_cell(text: str) -> str:
    return printable(text).replace("\\", "\\\\").replace("|", "\\|")


def _percent(value: float) -> str:
    percent = 100 * value
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.1f} %"


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
