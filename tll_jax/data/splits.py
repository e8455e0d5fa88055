"""Which pairs train, choose and test: seeded, written down, and never split within a group of duplicates."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tll_jax.contracts import PairSource

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Manifest:
    """The ids of every part, and how they were drawn."""

    train: list[str]
    validation: list[str]
    test: list[str]
    rule: str
    seed: int
    pairs_digest: str

    def save(self, path: Path) -> None:
        """Writes the manifest as JSON, one id a line."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=0) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Reads what `save` wrote.

        Raises:
          FileNotFoundError, ValueError: the file is missing, or not a manifest.
        """
        if not path.exists():
            raise FileNotFoundError(f"no split manifest at {path}: leave split.path empty to draw a new split")
        try:
            return cls(**json.loads(path.read_text()))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a split manifest: {error}") from error


@dataclass(kw_only=True)
class Split:
    """How pairs are parted.

    With `faces="exclude"` test and validation pairs show no face on either side, as the study filters them, and
    `num_test` or `test_fraction` counts among those; all other pairs train, face pairs included unless
    `train_on_faces` is False. The test pairs depend on the seed alone; `make(fold=...)` moves the validation pairs.
    With `path` the test pairs are those of a saved manifest, and its seed stands for `seed`.
    """

    num_test: int | None = None
    test_fraction: float = 0.2
    validation_fraction: float = 0.1
    seed: int = 0
    faces: Literal["exclude", "include"] = "exclude"
    train_on_faces: bool = True
    path: str | None = None

    def check(self) -> None:
        if self.faces not in ("exclude", "include"):
            raise ValueError(f"faces is {self.faces!r}; it must be exclude or include")
        for name in ("test_fraction", "validation_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        if self.test_fraction + self.validation_fraction >= 1:
            raise ValueError("test_fraction and validation_fraction leave nothing to train on; lower one")
        if self.num_test is not None and self.num_test < 1:
            raise ValueError(f"num_test is {self.num_test}; it must be at least 1")

    def make(self, pairs: PairSource, *, fold: int = 0) -> Manifest:
        """Parts the pairs; the same for any order that the source lists them in.

        Raises:
          ValueError: there are too few pairs, or a saved manifest names pairs that are not here.
        """
        order = sorted(range(len(pairs)), key=lambda index: pairs.ids[index])
        with_face = {index for index in order if self.faces == "exclude" and bool(pairs.has_face()[index].any())}
        groups = _grouped(order, pairs.groups)
        # A group with one face picture in it is out as a whole, or its parts would be split.
        eligible = [group for group in groups if not with_face & set(group)]
        saved = None if self.path is None else Manifest.load(Path(self.path))
        seed = self.seed if saved is None else saved.seed
        eligible = [eligible[i] for i in np.random.default_rng(seed).permutation(len(eligible))]
        available = sum(len(group) for group in eligible)
        if saved is None:
            wanted = self.num_test if self.num_test is not None else math.floor(self.test_fraction * available + 0.5)
            test = _take(eligible, wanted)
            if sum(map(len, test)) < wanted or len(test) == len(eligible):
                raise ValueError(
                    f"{wanted} test pairs are wanted, but of {len(pairs)} pairs only {available} may be tested and "
                    "some must be left to choose on: lower split.num_test or split.test_fraction"
                )
        else:
            test = _groups_of(saved.test, pairs, groups, str(self.path))
            _warn_of_changes(saved, pairs, str(self.path))
        tested = {index for group in test for index in group}
        rest = [group for group in eligible if not tested & set(group)]
        wanted = max(1, math.floor(self.validation_fraction * available + 0.5))
        start = (fold * wanted) % max(sum(map(len, rest)), 1)
        validation = _take(_rotate(rest, start), wanted)
        chosen = tested | {index for group in validation for index in group}
        train = [index for index in order if index not in chosen]
        if not self.train_on_faces:
            train = [index for index in train if index not in with_face]
        if not train or not validation:
            raise ValueError(f"the split of {len(pairs)} pairs leaves none to train or to choose on")
        return Manifest(
            train=[pairs.ids[index] for index in train],
            validation=sorted(pairs.ids[index] for group in validation for index in group),
            test=sorted(pairs.ids[index] for index in tested),
            rule=self._rule(),
            seed=seed,
            pairs_digest=pairs.digest(),
        )

    def _rule(self) -> str:
        if self.faces == "include":
            return "test and validation pairs drawn from all pairs"
        training = "face pairs train" if self.train_on_faces else "face pairs are left out"
        return f"test and validation pairs show no face on either side; {training}"


def _grouped(order: Sequence[int], group_of: np.ndarray) -> list[list[int]]:
    members: dict[int, list[int]] = {}
    for index in order:
        members.setdefault(int(group_of[index]), []).append(index)
    return list(members.values())


def _take(groups: Sequence[list[int]], count: int) -> list[list[int]]:
    """Groups from the front, whole ones only, until `count` pairs are taken; a group too large is passed over."""
    taken, total = [], 0
    for group in groups:
        if total + len(group) <= count:
            taken.append(group)
            total += len(group)
    return taken


def _rotate(groups: list[list[int]], pairs_to_skip: int) -> list[list[int]]:
    passed = 0
    for position, group in enumerate(groups):
        if passed >= pairs_to_skip:
            return groups[position:] + groups[:position]
        passed += len(group)
    return groups


def _groups_of(ids: Sequence[str], pairs: PairSource, groups: list[list[int]], path: str) -> list[list[int]]:
    wanted = set(ids)
    missing = sorted(wanted - set(pairs.ids))
    if missing:
        raise ValueError(
            f"{path} names {len(missing)} test pairs that this pair set does not have, such as {missing[0]!r}: "
            "it belongs to other data"
        )
    found = [group for group in groups if wanted & {pairs.ids[index] for index in group}]
    added = sorted({pairs.ids[index] for group in found for index in group} - wanted)
    if added:
        raise ValueError(
            f"{path} tests pairs that share a picture with {len(added)} pairs it does not test, such as {added[0]!r}: "
            "it belongs to other data"
        )
    return found


def _warn_of_changes(saved: Manifest, pairs: PairSource, path: str) -> None:
    lost = sorted({*saved.train, *saved.validation} - set(pairs.ids))
    if lost:
        logger.warning("%s names %d training pairs that are not here, such as %r", path, len(lost), lost[0])
    elif saved.pairs_digest != pairs.digest():
        logger.warning("%s was drawn from pairs of equal names but other content, or from a part of these", path)
