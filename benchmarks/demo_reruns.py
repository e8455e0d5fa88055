"""How far reruns of the demo spread: with other processors, versions of JAX and numbers of cores a training.

    tll run emoji runs/all_cores --parallel=1
    python -m benchmarks.demo_reruns runs/demo runs/all_cores ... [--out benchmarks/results/demo_reruns.json]
    python -m benchmarks.demo_reruns --recorded benchmarks/results/demo_reruns.json runs/other_machine [--out ...]

The first run is the committed one, or `figures/results/emoji`. All must be of one state of the training code, or of
states that give equal results where one processor, JAX and number of cores ran both, or of `SAME_BUT_FOR_ROUNDING`.
Prints the MRR of each system and the planned differences in MRR, each as the first run has it and from the lowest to
the highest of all runs, and in how many runs a difference is shown (the interval excludes 0, and p after Holm's
correction is below .05).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tll_jax.errors import InvalidValue, UserError
from tll_jax.files import read_json, write_json
from tll_jax.report import numbers
from tll_jax.study.folder import StudyFolder

LEVEL = 0.05
ROUNDING = 1e-12
DIGITS = 3

SAME_BUT_FOR_ROUNDING = (["355e44283896"], ["355826636b1d"])
"""Earlier training code that sums in another order what the present one computes: the gradients of batch normalization
and of 1x1 kernels with fewer features than channels (until 2026-11-28; tests compare both). Its runs are further draws
of the same rounding, which the processor and the number of cores change too."""

MOST_BY_ROUNDING = 0.016
"""How far an MRR may be from that of such code in the same configuration; 11 runs of one code spread by .0152."""


def record(results: dict[str, Any]) -> dict[str, Any]:
    """The compared facts of one run's `results.json`."""
    planned = [one for one in results["comparisons"] if one["planned"] and one["metric"] == "mrr"]
    return {
        "created": results["created"],
        "processor": results["hardware"]["cpu"],
        "jax": results["versions"]["jax"],
        "cores_a_training": results["hardware"]["cores"] // results.get("trainings_at_once", 1),
        "code": results["code"],
        "mrr": {row["system"]: row["mrr"]["value"] for row in results["rows"]},
        "differences": [
            {name: one[name] for name in ("a", "b", "difference", "low", "high", "p_holm")} for one in planned
        ],
    }


def configuration(run: dict[str, Any]) -> tuple[str, str, int]:
    """Processor, version of JAX and cores a training, which change results by rounding."""
    return run["processor"], run["jax"], run["cores_a_training"]


def made_again(runs: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Runs of other training code than the first's, each with a run of the first's code of the same configuration.

    Those of `SAME_BUT_FOR_ROUNDING` are left out.
    """
    return [(run, now) for run, now in both_ran(runs) if run["code"] not in SAME_BUT_FOR_ROUNDING]


def both_ran(runs: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """`made_again`, those of `SAME_BUT_FOR_ROUNDING` included."""
    code = runs[0]["code"]
    now = {configuration(run): run for run in runs if run["code"] == code}
    return [(run, now[configuration(run)]) for run in runs if run["code"] != code and configuration(run) in now]


def largest_change(before: dict[str, Any], now: dict[str, Any]) -> float:
    """The largest difference in MRR of a system between two runs."""
    return max(abs(before["mrr"][system] - value) for system, value in now["mrr"].items())


def check_code(runs: Sequence[dict[str, Any]]) -> None:
    """Raise InvalidValue unless all runs are of the training code of the first, or of code with the same results: where
    a run was made again, both have equal MRRs, or MRRs that differ by no more than rounding explains, and every other
    code has such a run."""
    pairs = both_ran(runs)
    for before, now in pairs:
        most = MOST_BY_ROUNDING if before["code"] in SAME_BUT_FOR_ROUNDING else ROUNDING
        if largest_change(before, now) > most:
            raise InvalidValue(
                f"the run of {before['created']}, made by training code {', '.join(before['code'])}, has other MRRs "
                f"than that of {now['created']}: leave out the runs of that code"
            )
    equal = [runs[0]["code"], *(before["code"] for before, _ in pairs), *SAME_BUT_FOR_ROUNDING]
    for run in runs:
        if run["code"] not in equal:
            raise InvalidValue(
                f"the run of {run['created']} was made by training code {', '.join(run['code'])}, the first by "
                f"{', '.join(runs[0]['code'])}: run it again, or with both on one machine"
            )


def is_shown(difference: dict[str, Any]) -> bool:
    """Whether a run calls one of the two systems better."""
    return not difference["low"] <= 0 <= difference["high"] and difference["p_holm"] < LEVEL


def markdown(runs: Sequence[dict[str, Any]]) -> str:
    """The tables of runs, of systems and of differences; of a run that was made again, the later counts."""
    before = [id(run) for run, _ in made_again(runs)]
    runs = [run for run in runs if id(run) not in before]
    lines = ["| processor | jax | cores a training | training code |", "| --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(map(str, configuration(run)))} | {', '.join(run['code'])} |" for run in runs]
    lines += ["", "| system | MRR of the first run | of all runs |", "| --- | --- | --- |"]
    for system, value in runs[0]["mrr"].items():
        found = [run["mrr"][system] for run in runs]
        lines.append(f"| {system} | {fraction(value)} | {fraction(min(found))} to {fraction(max(found))} |")
    lines += ["", "| a | b | a - b in MRR, first run | of all runs | shown in |", "| --- | --- | --- | --- | --- |"]
    for number, one in enumerate(runs[0]["differences"]):
        found = [run["differences"][number] for run in runs]
        low, high = (numbers.difference(end(part["difference"] for part in found)) for end in (min, max))
        first = f"{numbers.difference(one['difference'])} {numbers.bounds(one['low'], one['high'], digits=DIGITS)}"
        shown = sum(map(is_shown, found))
        cells = [one["a"], one["b"], first, f"{low} to {high}", f"{shown} of {len(runs)}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).replace(numbers.MINUS, "-")


def fraction(value: float) -> str:
    return numbers.fraction(value, digits=DIGITS)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a finished demo")
    parser.add_argument("--recorded", type=Path, metavar="FILE", help="runs of an earlier --out, before these")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file of what is printed")
    parsed = parser.parse_args(arguments)
    try:
        runs = read_json(parsed.recorded)["runs"] if parsed.recorded else []
        runs += [record(StudyFolder(folder).results) for folder in parsed.runs]
        check_code(runs)
    except UserError as error:
        sys.exit(str(error))
    if parsed.out:
        write_json(parsed.out, {"runs": runs})
    print(markdown(runs))


if __name__ == "__main__":
    main()
