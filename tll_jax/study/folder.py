"""The folder of a study: its paths, the marks of finished stages, and the layouts of its files.

Training outputs are in `WORKDIR/stages/<stage>-<hash>`, the hash taken over the stage's settings and inputs, so models
and seeds with equal pretraining share it. Each trained model has a run folder, `WORKDIR/models/<name>/seed-<k>`.
"""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tll_jax import processes, serialize
from tll_jax.code import training_code
from tll_jax.data.emoji import names_of
from tll_jax.data.imaging import BrokenImage, read_image
from tll_jax.data.pairs import SIDES
from tll_jax.data.splits import Manifest
from tll_jax.errors import DamagedFile, InvalidValue, MissingFile, UserError
from tll_jax.files import LOCK, PARTIAL, file_name, read_arrays, read_json, write_arrays, write_json, write_whole
from tll_jax.renamed import FORMER_SYSTEMS, PRESENT_SYSTEMS, former_place
from tll_jax.serialize import Fingerprint
from tll_jax.study.settings import Study
from tll_jax.training import checkpoint, records

logger = logging.getLogger(__name__)

CONFIG, SPLIT, RESULTS = "config.json", "split.json", "results.json"
"""Files of a study: settings, split and results. A run folder has its own settings and split."""
VARIABLES, METRICS = "variables", "metrics.jsonl"
"""Names in the folder of a training stage."""
NUM_SHOWN = 5
"""Number of nearest candidates of each query that a run folder holds for the report."""
PICTURES = "images/index.json"
"""Index of the report's pictures: the digest of the pairs, and the ids of the examples that the face filter dropped."""
EXPLAINED, PAGE = "explained.npz", "index.html"
"""Files in the folder of an explained pair."""
RANKS = "ranks.npz"
"""File of ranks: those of one run in its run folder, those of all systems in the study's folder."""
KEPT = "ranks of "
"""Prefix of system names among the arrays of the study's rank file."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished training stage: its folder, and its variables, which are read lazily."""

    folder: Path
    read: Callable[[], dict[str, Any]]

    @classmethod
    def of(cls, folder: Path, shapes: Any) -> "Trained":
        """The training stage in `folder`.

        Args:
          shapes: tree of the variables' shapes and dtypes.
        """
        return cls(folder=folder, read=partial(checkpoint.load_variables, folder / VARIABLES, shapes))

    @property
    def variables(self) -> dict[str, Any]:
        """The trained variables, NumPy arrays."""
        return self.read()


def is_of(mark: Mapping[str, Any], key: Fingerprint) -> bool:
    """Whether a finished stage's mark has this key, under the present rule or under that of 0.1.0."""
    return mark.get("key") in (key, key.former)


def stage_folder(workdir: Path, stage: str, key: Fingerprint) -> Path:
    """The folder of a training stage; a stage that was finished under its former key keeps that name."""
    former = workdir / "stages" / f"{stage}-{key.former}"
    return former if read_mark(former, stage) else workdir / "stages" / f"{stage}-{key}"


def place_in(workdir: Path, place: str) -> Path:
    """The folder of the run at `place`, "models/barlow/seed-0"; a model or system keeps a folder of its former name."""
    former = former_place(place)
    room, name = former.split("/")[:2]
    return workdir / (former if (workdir / room / name).is_dir() else place)


def is_done(folder: Path, key: Fingerprint, stage: str) -> bool:
    """Whether `stage` has finished in `folder` under this key, and its variables are still complete."""
    mark = read_mark(folder, stage)
    return is_of(mark, key) and checkpoint.are_whole(folder / VARIABLES, mark.get("variables", {}))


def read_mark(folder: Path, stage: str) -> dict[str, Any]:
    """Reads what `mark_done` wrote; empty where the stage has not finished or its mark is damaged."""
    path = folder / f"{stage}.done.json"
    try:
        mark = read_json(path)
    except FileNotFoundError:
        return {}
    except DamagedFile:
        logger.warning("%s cannot be read: counted as not done", path)
        return {}
    return mark if isinstance(mark, dict) else {}


def unmark(folder: Path, *stages: str) -> None:
    """Removes the marks of stages; called before their files are replaced, so that a kill leaves no false mark."""
    for stage in stages:
        (folder / f"{stage}.done.json").unlink(missing_ok=True)


def can_be_read(*paths: Path) -> bool:
    """Whether all these files of arrays can be read; a warning names a damaged one."""
    try:
        for path in paths:
            read_arrays(path)
    except FileNotFoundError:
        return False
    except DamagedFile as error:
        logger.warning("made anew, for %s", error)
        return False
    return True


def mark_done(folder: Path, key: Fingerprint, stage: str, **facts: Any) -> None:
    """Writes a stage's mark, with its key and the hash of the code; written last, so an interrupted stage has none."""
    write_json(folder / f"{stage}.done.json", {"key": key, "code": training_code(), **facts})


def write_stage_settings(folder: Path, stage: str, settings: Any, **more: Any) -> None:
    """Writes the settings of a training stage into its folder."""
    write_json(folder / CONFIG, {"stage": stage, **more, "settings": serialize.to_json(settings)})


def mark_trained(folder: Path, key: Fingerprint, stage: str, **facts: Any) -> None:
    """Marks a training stage as done, with the sizes of its variables' files and its training time in seconds.

    The time is summed from the metric records, so it includes the steps before an interruption and not the pause.
    """
    seconds = sum(record.get("seconds", 0.0) for record in records.read(folder / METRICS))
    sizes = checkpoint.sizes(folder / VARIABLES)
    mark_done(folder, key, stage, seconds=round(seconds, 1), variables=sizes, **facts)


class Ranks(NamedTuple):
    """Ranks of every query's match, int `[pairs]` a direction, 1 for first; row i is the pair `ids[i]`."""

    ids: list[str]
    left_to_right: np.ndarray
    right_to_left: np.ndarray

    def of_all_queries(self) -> np.ndarray:
        """Ranks of all queries, `[2 * pairs]`: first left to right, then right to left."""
        return np.concatenate([self.left_to_right, self.right_to_left])


class Top(NamedTuple):
    """The best candidates of every query, best first: `[pairs, up to 5]` positions in the study's `ids`."""

    left_to_right: np.ndarray
    right_to_left: np.ndarray


class Embeddings(NamedTuple):
    """Embeddings of the test pairs: float32 `[pairs, dim]` a side; row i is the pair `ids[i]`."""

    ids: list[str]
    left: np.ndarray
    right: np.ndarray


class Curves(NamedTuple):
    """Metric records of one run; empty for a stage that the model does not have."""

    pretrain: list[dict[str, Any]]
    finetune: list[dict[str, Any]]


class Explanation(NamedTuple):
    """Saliency maps of a pair: uint8 images `[h, w, 3]`, heatmaps `[h, w]`, rank, and kind, "best" or "worst"."""

    id: str
    rank: int
    kind: str
    left: np.ndarray
    right: np.ndarray
    heatmap_left: np.ndarray
    heatmap_right: np.ndarray


@dataclass(frozen=True)
class RunFolder:
    """The folder of one trained model or fitted system: `STUDY/models/<name>/seed-<k>`, `STUDY/systems/<name>` or
    `STUDY/systems/<name>/seed-<k>`."""

    path: Path

    @property
    def study(self) -> Path:
        """The study's folder."""
        return self._place.parent.parent

    @property
    def name(self) -> str:
        """Name of the model or system."""
        return self._place.name

    @property
    def seed(self) -> int | None:
        """The run's seed; None for a system without one."""
        place = self.path.resolve()
        return None if place == self._place else int(place.name.removeprefix("seed-"))

    @property
    def _place(self) -> Path:
        place = self.path.resolve()
        return place.parent if place.name.startswith("seed-") else place

    @property
    def is_of_a_system(self) -> bool:
        """Whether the folder holds ranks alone: it is that of a system that is not a trained model."""
        return not (self.path / CONFIG).exists() and self.rank_files[0].exists()

    @property
    def is_run(self) -> bool:
        """Whether the folder is that of a trained model or fitted system."""
        try:
            saved = read_json(self.path / CONFIG)
        except (OSError, UserError):
            return self.is_of_a_system
        return isinstance(saved, dict) and "settings" in saved

    def settings(self) -> dict[str, Any]:
        """Reads the settings of a trained model: its study, name, seed, "settings", "evaluate" and "key".

        Raises:
          FileNotFoundError: the folder is not a run's.
        """
        path = self.path / CONFIG
        saved = read_json(path) if path.exists() else {}
        # Its name was called so before.
        saved = {"model": saved["arm"]} | saved if "arm" in saved else saved
        if "model" not in saved:
            other = ""
            if self.path.is_dir():
                other = "holds no weights (.safetensors, .bin, .pth, .pt) and "
            elif self.path.is_file():
                other = "is no model or weight file (.safetensors, .bin, .pth, .pt) and "
            raise MissingFile(
                f"{self.path} {other}is not a run folder; one lies at STUDY/models/<name>/seed-<k> after fine-tuning, "
                "those of other systems at STUDY/systems/<name>"
            )
        return saved

    def write_settings(self, settings: Mapping[str, Any], manifest: Manifest, trained: Mapping[str, Trained]) -> None:
        """Writes settings, split, variables and metric records: all that the folder of a trained model needs to be used
        without its study.

        Args:
          trained: the stages that the model was trained in, fine-tuning last, by name.
        """
        manifest.save(self.path / SPLIT)
        stage = list(trained.values())[-1].folder
        write_json(self.path / CONFIG, {**settings, "variables": f"../../../stages/{stage.name}/{VARIABLES}"})
        for name, one in trained.items():
            write_whole(self.path / f"{name}.jsonl", (one.folder / METRICS).read_bytes())

    def split(self) -> Path | None:
        """The file of the split: the run's own, of the settings that it was trained with; runs of 0.1.0 have the
        study's alone."""
        return next((path for path in (self.path / SPLIT, self.study / SPLIT) if path.exists()), None)

    @property
    def rank_files(self) -> tuple[Path, Path]:
        """The files of `write_ranks`: ranks of every query's match, and nearest candidates."""
        return self.path / RANKS, self.path / "top.npz"

    def write_ranks(self, ids: Sequence[str], *, ranks: np.ndarray | Sequence[Any], top: Sequence[Any]) -> None:
        """Writes ranks and nearest candidates of every query.

        Args:
          ranks: int `[2, pairs]`, left to right and right to left.
          top: likewise int `[2, pairs, k]`, positions in `ids`, best first.
        """
        for path, (left_to_right, right_to_left) in zip(self.rank_files, (ranks, top), strict=True):
            write_arrays(
                path,
                ids=np.array(ids),
                left_to_right=np.asarray(left_to_right),
                right_to_left=np.asarray(right_to_left),
            )

    def ranks(self) -> Ranks:
        """Reads the ranks, of any pairs and settings; `keys.Evaluation.read` checks both."""
        saved = read_arrays(self.rank_files[0])
        return Ranks(saved["ids"].tolist(), saved["left_to_right"], saved["right_to_left"])

    def top(self, ids: Sequence[str]) -> Top:
        """Reads the nearest candidates of every query.

        Raises:
          ValueError: they are not of the pairs `ids`.
        """
        path = self.rank_files[1]
        saved = read_arrays(path)
        if saved["ids"].tolist() != list(ids):
            raise InvalidValue(f"{path} is of other pairs than the rest: run the study's evaluate stage again")
        return Top(saved["left_to_right"], saved["right_to_left"])

    @property
    def embedding_file(self) -> Path:
        return self.path / "embeddings.npz"

    def write_embeddings(self, embeddings: Embeddings) -> None:
        write_arrays(self.embedding_file, ids=np.array(embeddings.ids), left=embeddings.left, right=embeddings.right)

    def embeddings(self) -> Embeddings:
        """Reads the embeddings of the test pairs.

        Raises:
          ValueError: they were made with earlier variables than those in the folder.
        """
        key = self.settings().get("key")
        # Runs of 0.1.0 have no key.
        if key is not None and read_mark(self.path, "evaluate").get("key") != key:
            raise InvalidValue(
                f"the embeddings in {self.path} are older than what it was trained with last: run its study again, "
                "with evaluate in --stages"
            )
        saved = read_arrays(self.embedding_file)
        return Embeddings(saved["ids"].tolist(), saved["left"], saved["right"])

    def curves(self) -> Curves:
        """The metric records of its stages."""
        return Curves(*(records.read(self.path / f"{stage}.jsonl") for stage in Curves._fields))

    @property
    def _explanations(self) -> Path:
        return self.path / "explanations"

    def page_folder(self, id: str) -> Path:
        """The folder of a pair's page with all methods."""
        return self._explanations / file_name(id)

    def remove_explanations(self) -> None:
        """Removes all explanations and pages, with their marks."""
        unmark(self.path, "explain", "recommended", "pages")
        self.recommended_file.unlink(missing_ok=True)
        shutil.rmtree(self._explanations, ignore_errors=True)

    def write_explanation(self, explanation: Explanation) -> None:
        arrays = {
            name: getattr(explanation, name) for name in ("left", "right", "heatmap_left", "heatmap_right", "rank")
        }
        write_arrays(self._explanation_file(explanation.id), compressed=True, **arrays)

    def write_explained(self, explained: Sequence[Explanation]) -> None:
        """Writes the index of all explanations; call it after they are written."""
        write_json(self._index, [{"id": one.id, "rank": one.rank, "kind": one.kind} for one in explained])

    def explained(self) -> list[dict[str, Any]]:
        """The ids, ranks and kinds of the explained pairs."""
        return read_json(self._index) if self._index.is_file() else []

    def explanations(self) -> list[Explanation]:
        """The explained pairs, best ranks first, then worst."""
        found = []
        for entry in self.explained():
            saved = read_arrays(self._explanation_file(entry["id"]))
            maps = {name: saved[name] for name in ("left", "right", "heatmap_left", "heatmap_right")}
            found.append(Explanation(id=entry["id"], rank=int(entry["rank"]), kind=entry["kind"], **maps))
        return sorted(found, key=lambda one: (one.kind, one.rank))

    @property
    def recommended_file(self) -> Path:
        return self.path / "recommended.npz"

    def write_recommended(self, ids: Sequence[str], maps: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Writes signed heatmaps of the recommended methods by name: `[pairs, h, w]` a side, in the order of `ids`.

        Those of the decomposition have a value for each place.
        """
        sides = {f"{name}/{side}": both[at] for name, both in maps.items() for at, side in enumerate(SIDES)}
        write_arrays(self.recommended_file, compressed=True, ids=np.array(ids), **sides)

    def recommended(self) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """Heatmaps of both sides by pair and by recommended method; empty in runs that were explained before 0.2."""
        if not self.recommended_file.is_file():
            return {}
        saved = read_arrays(self.recommended_file)
        names = [name.removesuffix(f"/{SIDES[0]}") for name in saved if name.endswith(f"/{SIDES[0]}")]
        maps = {name: [saved[f"{name}/{side}"] for side in SIDES] for name in names}
        return {
            id: {name: (left[at], right[at]) for name, (left, right) in maps.items()}
            for at, id in enumerate(saved["ids"].tolist())
        }

    def are_explained(self) -> bool:
        """Whether all explanations are there and can be read."""
        try:
            return can_be_read(*(self._explanation_file(entry["id"]) for entry in read_json(self._index)))
        except (FileNotFoundError, DamagedFile):
            return False

    def has_explanations(self) -> dict[str, bool]:
        """Whether there are explanations, maps of the recommended methods, and pages, of any settings; by stage."""
        return {
            "explain": self._index.exists(),
            "recommended": self.recommended_file.exists(),
            "pages": any(self._explanations.glob(f"*/{PAGE}")),
        }

    @property
    def _index(self) -> Path:
        return self._explanations / "index.json"

    def _explanation_file(self, id: str) -> Path:
        return self._explanations / f"{file_name(id)}.npz"


def check_own_folder(workdir: Path, study: Study) -> None:
    """Refuses a `workdir` that holds another study or unrelated files.

    A folder may hold nothing but finished stages of another study, copied so that they are not trained again.

    Raises:
      ValueError: names the folder and the study in it.
    """
    if not workdir.is_dir():
        return
    there = {path.name for path in workdir.iterdir() if not _is_own_litter(path.name)}
    if CONFIG not in there:
        if there - {"stages"}:
            raise InvalidValue(f"{workdir} is not empty and not a study's folder; give another --workdir")
        return
    # Results name the study as well, in case the settings file is incomplete.
    others = (study_named_in(workdir / name) for name in (CONFIG, RESULTS) if name in there)
    other = next((name for name in others if name is not None), None)
    if other is None and not there & {SPLIT, "stages"}:
        raise DamagedFile(
            f"{workdir / CONFIG} names no study: give another --workdir, or delete that file to start anew there"
        )
    if other not in (None, study.name):
        raise InvalidValue(
            f"{workdir} belongs to the study {other!r}, not to {study.name!r}; give another --workdir or remove it"
        )


def study_named_in(path: Path) -> str | None:
    """The name of the study whose settings or results a file holds; None where it cannot be read."""
    try:
        return read_json(path)["study"]
    except (DamagedFile, KeyError, TypeError):
        logger.warning("%s cannot be read", path)
        return None


def _is_own_litter(name: str) -> bool:
    """Whether a run may leave a file of this name before it has written its settings."""
    return name in (LOCK, processes.FAILURE) or name.endswith(PARTIAL)


def read_settings(workdir: Path) -> dict[str, Any]:
    """The name and the settings, as JSON, of the study in a folder."""
    return read_json(workdir / CONFIG)


def write_settings(workdir: Path, study: Study, manifest: Manifest) -> None:
    """Writes the study's name, settings and split into its folder."""
    write_json(workdir / CONFIG, {"study": study.name, "settings": serialize.to_json(study)})
    manifest.save(workdir / SPLIT)


def write_results(
    workdir: Path, results: Mapping[str, Any], ids: Sequence[str], ranks: Mapping[str, np.ndarray]
) -> None:
    """Writes the results of the study, and the ranks of all its systems beside them; see `write_all_ranks`."""
    write_json(workdir / RESULTS, results)
    write_all_ranks(workdir, ids, ranks)


def write_all_ranks(folder: Path, ids: Sequence[str], ranks: Mapping[str, np.ndarray]) -> None:
    """Writes the ranks of all systems, `[seeds, 2, pairs]` each, to one small file beside the study's results.

    A comparison needs only this file and `results.json`, not the run folders.
    """
    largest = max(int(values.max()) for values in ranks.values())
    arrays: dict[str, Any] = {
        f"{KEPT}{name}": values.astype(np.min_scalar_type(largest)) for name, values in ranks.items()
    }
    write_arrays(folder / RANKS, compressed=True, ids=np.array(ids), **arrays)


def starting_points(num_runs: Mapping[str, int]) -> dict[str, list[int] | None]:
    """The index of the pretraining that each run of a system started from; None where all runs share one.

    Fine-tuning i starts from pretraining i modulo their number, which is the number of runs of the frozen backbone.

    Args:
      num_runs: number of runs by system.
    """
    num_starts = {name: num_runs.get(f"{name}-frozen", 1) for name in num_runs}
    return {
        name: [run % num_starts[name] for run in range(runs)] if num_starts[name] > 1 else None
        for name, runs in num_runs.items()
    }


def picture_path(study: Path, side: str, id: str, *, excluded: bool = False) -> Path:
    """The path of the report's picture of a test pair, or with `excluded` of a pair that the face filter dropped."""
    name = file_name(id)
    return study / "images" / (f"excluded/{name}-{side}.png" if excluded else f"{side}/{name}.png")


def left_pictures(study: Path) -> list[Path]:
    """Paths of the left pictures of test pairs in a study's folder."""
    return sorted((study / "images" / "left").glob("*.png"))


def write_picture_index(study: Path, *, pairs: str, excluded: Sequence[str]) -> None:
    """Writes the index of the report's pictures, after them.

    Args:
      pairs: digest of the pairs.
      excluded: ids of the examples that the face filter dropped.
    """
    write_json(study / PICTURES, {"pairs": pairs, "excluded": excluded})


def read_picture_index(study: Path) -> dict[str, Any]:
    """Reads the index of the report's pictures; empty where it is missing, as in studies of 0.1.0, or damaged."""
    try:
        return read_json(study / PICTURES)
    except (FileNotFoundError, DamagedFile):
        return {}


def read_picture(path: Path) -> np.ndarray:
    """Reads a picture of a study's folder: uint8 RGB `[h, w, 3]`.

    Raises:
      FileNotFoundError: it is missing or cannot be read; names the fix.
    """
    try:
        return read_image(path)
    except (FileNotFoundError, BrokenImage) as error:
        raise MissingFile(f"the study keeps no readable image {path}; run its report stage again") from error


def _in_present_words(results: Any) -> Any:
    """Results of any version under present names; 0.1.0 called the kind "model" "arm", and some systems otherwise."""
    if isinstance(results, dict):
        known = {PRESENT_SYSTEMS.get(name, name): _in_present_words(child) for name, child in results.items()}
        return known | ({"kind": "model"} if known.get("kind") == "arm" else {})
    if isinstance(results, list):
        return [_in_present_words(child) for child in results]
    return PRESENT_SYSTEMS.get(results, results) if isinstance(results, str) else results


class StudyFolder:
    """A finished study on disk.

    Raises:
      FileNotFoundError: the folder is not there or its study is not finished.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise MissingFile(f"there is no folder {self.path}; give the --workdir of a finished study")
        if not (self.path / RESULTS).is_file():
            raise MissingFile(
                f"{self.path} is not a finished study: it has no results.json. Run "
                f"`python -m tll_jax.main --config=CONFIG --workdir={self.path}` to its end"
            )
        self.results: dict[str, Any] = _in_present_words(read_json(self.path / RESULTS))

    @cached_property
    def split(self) -> dict[str, Any]:
        """The manifest of the split as JSON: ids of training, validation and test pairs, face rule and seed."""
        return read_json(self.path / SPLIT)

    @property
    def models(self) -> list[str]:
        """Names of the models that were trained and ranked, in the order of the study."""
        return [row["system"] for row in self.results["rows"] if row["kind"] == "model" and self.runs(row["system"])]

    @property
    def systems(self) -> list[str]:
        """Names of all systems that were ranked, without chance, in the order of the study."""
        return [row["system"] for row in self.results["rows"] if row["kind"] != "chance"]

    @property
    def num_candidates(self) -> int:
        return int(self.results["protocol"]["candidates"])

    def runs(self, system: str) -> list[Path]:
        """The folders that hold a system's ranks: one a seed, or one for a system without seeds."""
        relative = self.results["runs"].get(system, [f"systems/{FORMER_SYSTEMS.get(system, system)}"])
        return [self.path / run for run in relative if (self.path / run / RANKS).is_file()]

    def ranks(self, system: str) -> list[Ranks]:
        """Ranks of every seed, from the run folders or else from the study's rank file; empty if neither is there.

        Raises:
          ValueError: they are newer than the results, or not of the study's test pairs.
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
            self._check_version(run)
            found.append(RunFolder(run).ranks())
        if found or not (self.path / RANKS).is_file():
            return found
        file = read_arrays(self.path / RANKS)
        names = (f"{KEPT}{name}" for name in (system, FORMER_SYSTEMS.get(system)))
        name = next((name for name in names if name in file), None)
        if name is None:
            return []
        ids = file["ids"].tolist()
        return [Ranks(ids, *both_ways) for both_ways in file[name].astype(np.int32)]

    def _check_version(self, run: Path) -> None:
        """Raises ValueError where a run was evaluated again after the results were written."""
        known = self.results.get("keys")
        # Results of 0.1.0 have no keys.
        if known is None:
            return
        if read_mark(run, "evaluate").get("key") != known.get(run.relative_to(self.path).as_posix()):
            raise InvalidValue(
                f"{run} was evaluated again after {self.path / RESULTS} was written: run the study's evaluate "
                "and report stages again"
            )

    def top(self, system: str) -> Top:
        """The best candidates under the first seed; raises ValueError as `ranks` does."""
        run = self.runs(system)[0]
        self._check_version(run)
        return RunFolder(run).top(self.ids)

    @cached_property
    def ids(self) -> list[str]:
        """Ids of the test pairs; `top` holds positions in this list.

        Raises:
          FileNotFoundError: the study holds no ranks.
        """
        for system in self.systems:
            if found := self._read(system):
                return found[0].ids
        raise MissingFile(f"{self.path} keeps no ranks: run its evaluate stage again")

    @cached_property
    def names(self) -> dict[str, str]:
        """Names of the test pairs by id; see `data.emoji.names_of`."""
        return names_of(self.ids)

    def curves(self, model: str) -> list[Curves]:
        """The metric records of every seed."""
        return [RunFolder(run).curves() for run in self.runs(model)]

    def image(self, id: str, side: str) -> np.ndarray:
        """A test image from the study's folder: uint8 RGB `[h, w, 3]`.

        Raises:
          FileNotFoundError: there is no such image.
        """
        return read_picture(picture_path(self.path, side, id))

    def excluded_pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Examples of pairs that the face filter dropped; empty if it dropped none."""
        index = read_picture_index(self.path)
        folder = self.path / "images" / "excluded"
        if index:
            names = [file_name(id) for id in index["excluded"]]
        else:
            names = sorted(path.name.removesuffix("-left.png") for path in folder.glob("*-left.png"))
        return [
            (read_picture(folder / f"{name}-left.png"), read_picture(folder / f"{name}-right.png")) for name in names
        ]

    def explanations(self, model: str) -> list[Explanation]:
        """The explained pairs of the first seed, best ranks first, then worst."""
        return RunFolder(self.runs(model)[0]).explanations()

    def recommended(self, model: str) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """Heatmaps of the explained pairs of the first seed, by pair and by recommended method."""
        return RunFolder(self.runs(model)[0]).recommended()

    def explained_pairs(self, model: str) -> dict[str, Path]:
        """Folders of pages with all methods, by the ids of the pairs, for a model's first seed."""
        run = RunFolder(self.runs(model)[0])
        found = {id: run.page_folder(id) for id in sorted(entry["id"] for entry in run.explained())}
        return {id: path for id, path in found.items() if (path / PAGE).is_file()}
