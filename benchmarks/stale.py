"""List of the committed results that were made by other training code than the present one.

python -m benchmarks.stale      (or: make stale; a part of make check)

`results.json` and `compare.json` below figures/results name the code that trained and ranked what they hold, by a hash
of its syntax trees (`tll_jax/code.py`): layout, comments and docstrings may change, code may not. The demo's results
are made again in minutes (`make demo`, then copy results.json, results.md and figures), so that they must be of this
code; of longer tables a warning says which are not, and whether both codes gave equal results in the demo
(`demo_reruns.py`).
"""

import argparse
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from benchmarks.demo_reruns import made_again
from tll_jax.code import UNKNOWN, training_code
from tll_jax.files import read_json

RESULTS = Path(__file__).parents[1] / "figures" / "results"
RERUNS = Path(__file__).parent / "results" / "demo_reruns.json"
MUST_BE_FRESH = ("emoji",)
"""Results that `make demo` makes: stale ones end with status 1, others are warned of."""


class Stale(NamedTuple):
    """Results of other code."""

    name: str
    of: list[str]

    def words(self) -> str:
        hashes = [one for one in self.of if one != UNKNOWN]
        made = [f"by code {', '.join(hashes)}"] if hashes else []
        made += ["before results named their code"] if UNKNOWN in self.of else []
        equal = "; both gave equal results in the demo" if self.of in equal_codes() else ""
        return f"figures/results/{self.name} was made {' and '.join(made)}, this is {training_code()}{equal}"


@cache
def equal_codes() -> list[list[str]]:
    """Hashes of earlier code by which a run of the demo, made again by this code, had equal results."""
    return [before["code"] for before, now in made_again(read_json(RERUNS)["runs"]) if now["code"] == [training_code()]]


def find_stale(folder: Path = RESULTS) -> list[Stale]:
    """All results below a folder that are of other code than this."""
    found = []
    for path in sorted([*folder.glob("*/results.json"), *folder.glob("*/compare.json")]):
        code = read_json(path).get("code", [UNKNOWN])
        if code != [training_code()]:
            found.append(Stale(path.parent.name, code))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what is stale; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    stale = find_stale(parser.parse_args(arguments).results)
    failed = [one for one in stale if one.name in MUST_BE_FRESH]
    for one in stale:
        print(f"{'error' if one in failed else 'warning'}: {one.words()}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
