"""Reads a finished study's folder: the only door through which figures and the page see an experiment."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tll_jax.data.imaging import BrokenImage, read_image
from tll_jax.errors import DamagedFile, InvalidValue, MissingFile
from tll_jax.files import file_name, read_arrays, read_json, write_arrays
from tll_jax.training import records

PICTURES = "images/index.json"
"""Of which pairs the kept pictures are: their digest, and the ids of those that show what the face filter took out."""
EXPLAINED, PAGE = "explained.npz", "index.html"
"""What lies in the folder of an explained pair."""
RANKS = "ranks.npz"
"""In a run folder its ranks; beside a study's results those of all its systems."""
KEPT = "ranks of "
"""Before the name of a system in that file."""


class Ranks(NamedTuple):
    """The rank of every query's match, 1 for first, in both directions; row i is the pair `ids[i]`."""

    ids: list[str]
    left_to_right: np.ndarray
    right_to_left: np.ndarray

    def both(self) -> np.ndarray:
        """Ranks of all queries, `[2 * pairs]`: first left to right, then right to left."""
        return np.concatenate([self.left_to_right, self.right_to_left])


class Top(NamedTuple):
    """The best candidates of every query, best first: `[pairs, up to 5]` positions in the study's `ids`."""

    left_to_right: np.ndarray
    right_to_left: np.ndarray


class Curves(NamedTuple):
    """Metric records of one run; a stage that the arm does not have left none."""

    pretrain: list[dict[str, Any]]
    finetune: list[dict[str, Any]]


class Explanation(NamedTuple):
    """Why two pictures of a pair count as alike: uint8 images `[h, w, 3]` and heatmaps `[h, w]`."""

    id: str
    rank: int
    kind: str
    left: np.ndarray
    right: np.ndarray
    heatmap_left: np.ndarray
    heatmap_right: np.ndarray


def keep_ranks(folder: Path, ids: Sequence[str], ranks: Mapping[str, np.ndarray]) -> None:
    """Leaves the ranks of all systems, `[seeds, 2, pairs]` each, in one small file beside the study's results.

    With `results.json` it is all that a comparison needs, when the runs are gone or somewhere else.
    """
    largest = max(int(values.max()) for values in ranks.values())
    arrays: dict[str, Any] = {
        f"{KEPT}{name}": values.astype(np.min_scalar_type(largest)) for name, values in ranks.items()
    }
    write_arrays(folder / RANKS, compressed=True, ids=np.array(ids), **arrays)


def picture_path(study: Path, side: str, id: str, *, excluded: bool = False) -> Path:
    """Where a study keeps a picture of a test pair, or of one that the face filter took out."""
    name = file_name(id)
    return study / "images" / (f"excluded/{name}-{side}.png" if excluded else f"{side}/{name}.png")


def read_picture_index(study: Path) -> dict[str, Any]:
    """What lies in `PICTURES`; nothing where that is not there, as in studies of 0.1.0, or cannot be read."""
    try:
        return read_json(study / PICTURES)
    except (FileNotFoundError, DamagedFile):
        return {}


def read_picture(path: Path) -> np.ndarray:
    """A picture that a study kept: uint8 RGB `[h, w, 3]`.

    Raises:
      FileNotFoundError: there is none, or it cannot be read; names the mend.
    """
    try:
        return read_image(path)
    except (FileNotFoundError, BrokenImage) as error:
        raise MissingFile(f"the study keeps no readable image {path}; run its report stage again") from error


class StudyFolder:
    """A finished study on disk.

    Raises:
      FileNotFoundError: the folder is not there or its study is not finished.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise MissingFile(f"there is no folder {self.path}; give the --workdir of a finished study")
        if not (self.path / "results.json").is_file():
            raise MissingFile(
                f"{self.path} is not a finished study: it has no results.json. Run "
                f"`python -m tll_jax.main --config=CONFIG --workdir={self.path}` to its end"
            )
        self.results: dict[str, Any] = read_json(self.path / "results.json")

    @cached_property
    def split(self) -> dict[str, Any]:
        """Which pairs train, validate and test, by what rule and seed."""
        return read_json(self.path / "split.json")

    @property
    def arms(self) -> list[str]:
        """Names of the arms that were trained and ranked, in the order of the study."""
        return [row["system"] for row in self.results["rows"] if row["kind"] == "arm" and self.runs(row["system"])]

    @property
    def systems(self) -> list[str]:
        """Names of everything that was ranked, chance aside, in the order of the study."""
        return [row["system"] for row in self.results["rows"] if row["kind"] != "chance"]

    @property
    def num_candidates(self) -> int:
        return int(self.results["protocol"]["candidates"])

    def runs(self, system: str) -> list[Path]:
        """The folders that hold a system's ranks: one a seed, or one for a system without seeds."""
        relative = self.results["runs"].get(system, [f"systems/{system}"])
        return [self.path / run for run in relative if (self.path / run / RANKS).is_file()]

    def ranks(self, system: str) -> list[Ranks]:
        """Ranks of every seed, from its run folder or from what was kept of it; empty if neither is there.

        Raises:
          ValueError: they are not those that the results are of, or not of the study's test pairs.
        """
        found = self._read(system)
        if any(one.ids != self.ids for one in found):
            raise InvalidValue(
                f"{self.path}: {system} was ranked on other pairs than the rest: run its evaluate and report stages "
                "again"
            )
        return found

    def _read(self, system: str) -> list[Ranks]:
        found = []
        for run in self.runs(system):
            self._refuse_newer(run)
            file = read_arrays(run / RANKS)
            found.append(Ranks(file["ids"].tolist(), file["left_to_right"], file["right_to_left"]))
        if found or not (self.path / RANKS).is_file():
            return found
        file = read_arrays(self.path / RANKS)
        if f"{KEPT}{system}" not in file:
            return []
        ids = file["ids"].tolist()
        return [Ranks(ids, *both_ways) for both_ways in file[f"{KEPT}{system}"].astype(np.int32)]

    def _refuse_newer(self, run: Path) -> None:
        """Raises ValueError where what lies in a run folder is not what the results are of."""
        known, mark = self.results.get("keys"), run / "evaluate.done.json"
        # Studies of 0.1.0 do not say.
        if known is None:
            return
        found = read_json(mark)["key"] if mark.is_file() else None
        if found != known.get(run.relative_to(self.path).as_posix()):
            raise InvalidValue(
                f"{run} was evaluated again after {self.path / 'results.json'} was written: run the study's evaluate "
                "and report stages again"
            )

    def top(self, system: str) -> Top:
        """The best candidates by the first seed; raises ValueError as `ranks` does."""
        run = self.runs(system)[0]
        self._refuse_newer(run)
        file = read_arrays(run / "top.npz")
        if file["ids"].tolist() != self.ids:
            raise InvalidValue(
                f"{run / 'top.npz'} is of other pairs than the rest: run the study's evaluate stage again"
            )
        return Top(file["left_to_right"], file["right_to_left"])

    @cached_property
    def ids(self) -> list[str]:
        """The test pairs, in the order that `top` counts in.

        Raises:
          FileNotFoundError: the study keeps no ranks.
        """
        for system in self.systems:
            if found := self._read(system):
                return found[0].ids
        raise MissingFile(f"{self.path} keeps no ranks: run its evaluate stage again")

    def curves(self, arm: str) -> list[Curves]:
        """The metric records of every seed."""
        return [
            Curves(records.read(run / "pretrain.jsonl"), records.read(run / "finetune.jsonl")) for run in self.runs(arm)
        ]

    def image(self, id: str, side: str) -> np.ndarray:
        """A test image: uint8 RGB `[h, w, 3]`.

        Raises:
          FileNotFoundError: the study kept no such image.
        """
        return read_picture(picture_path(self.path, side, id))

    def excluded_pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Examples of the pairs that the face filter took out; empty if it took none."""
        index = read_picture_index(self.path)
        folder = self.path / "images" / "excluded"
        if index:
            names = [file_name(id) for id in index["excluded"]]
        else:
            names = sorted(path.name.removesuffix("-left.png") for path in folder.glob("*-left.png"))
        return [
            (read_picture(folder / f"{name}-left.png"), read_picture(folder / f"{name}-right.png")) for name in names
        ]

    def explanations(self, arm: str) -> list[Explanation]:
        """The explained pairs of the first seed, best ranks first, then worst."""
        folder = self.runs(arm)[0] / "explanations"
        found = []
        for entry in self._explained(arm):
            file = read_arrays(folder / f"{file_name(entry['id'])}.npz")
            maps = {name: file[name] for name in ("left", "right", "heatmap_left", "heatmap_right")}
            found.append(Explanation(id=entry["id"], rank=int(entry["rank"]), kind=entry["kind"], **maps))
        return sorted(found, key=lambda one: (one.kind, one.rank))

    def explained_pairs(self, arm: str) -> dict[str, Path]:
        """The folders of the pairs that an arm's first seed explained by all methods, by id; each holds a page."""
        folder = self.runs(arm)[0] / "explanations"
        found = {id: folder / file_name(id) for id in sorted(entry["id"] for entry in self._explained(arm))}
        return {id: path for id, path in found.items() if (path / PAGE).is_file()}

    def _explained(self, arm: str) -> list[dict[str, Any]]:
        """The ids, ranks and kinds of the explained pairs."""
        index = self.runs(arm)[0] / "explanations" / "index.json"
        return read_json(index) if index.is_file() else []
