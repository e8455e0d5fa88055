"""Seeded train, validation and test splits of pairs, saved as manifests; groups of duplicates are never split."""

import json
import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from tll_jax.data.archive import first_few
from tll_jax.data.faces import RULES, FaceRule, dropped
from tll_jax.errors import DamagedFile, InvalidValue, MissingFile
from tll_jax.files import expand, read_json, write_whole
from tll_jax.serialize import ADDED
from tll_jax.typing import PairSource

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Manifest:
    """A split: the pair ids of each part, and the rule, seed and data that they were drawn with."""

    train: list[str]
    validation: list[str]
    test: list[str]
    rule: str
    seed: int
    pairs_digest: str
    face_overrides: dict[str, list[int | None]] = field(default_factory=dict)
    """Manual face counts in effect, `{id: [left, right]}`; None where the detected count applied."""
    hashes: dict[str, list[str]] = field(default_factory=dict)
    """Content hashes of the images of every pair, `{id: [left, right]}`; empty in older manifests."""

    def save(self, path: Path) -> None:
        """Writes the manifest as JSON with one id per line."""
        write_whole(path, json.dumps(asdict(self), indent=0) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Reads a manifest written by `save`.

        Raises:
          FileNotFoundError, ValueError: the file is missing, or is not a manifest.
        """
        if not path.exists():
            raise MissingFile(f"no split manifest at {path}: leave split.path empty to draw a new split")
        try:
            return cls(**read_json(path))
        except (TypeError, DamagedFile) as error:
            raise InvalidValue(f"{path} is not a split manifest: {error}") from error


@dataclass(kw_only=True)
class Split:
    """Settings of a split: a hold-out, or one of `test_folds` folds. Groups of duplicates are never split.

    `faces` is the rule (see `faces.dropped`) that excludes pairs from testing and validation: with "none", tested pairs
    have no face on either side. All other pairs are used for training, including the excluded ones unless
    `train_on_faces` is False.

    Hold-out: the test set has `num_test` pairs, or `test_fraction` of the eligible ones, rounded up: 325 of 1,622, as
    in [Munteanu 2022]. Different values of `seed` give a repeated hold-out: `Split(num_test=325, seed=k)` for k = 0, 1,
    ...
    Folds: with `test_folds=5`, eligible pairs are partitioned into five folds of nearly equal size, and fold
    `test_fold` (from 0) is the test set.

    Validation pairs, used for model selection, are by default a fraction of the eligible pairs. If most of these are
    tested, few remain, and any two seeds have nearly the same validation set. With `validation_faces`, they are drawn
    instead from all pairs that are not tested and that this rule keeps ("include": all pairs, with or without faces),
    and the fraction is of that pool. This is equally fair for models that do not detect faces; and while the fractions
    of all seeds sum to at most 1, no two seeds share a validation pair.

    The test pairs depend on the seed alone; `make(fold=...)` changes the validation pairs. With `path`, the test pairs
    and the seed come from a saved manifest, and untested pairs that share an image with a test pair are left out.
    """

    num_test: int | None = None
    test_fraction: float = 0.2
    test_folds: int | None = None
    test_fold: int = 0
    validation_fraction: float = 0.1
    seed: int = 0
    faces: FaceRule = "none"
    train_on_faces: bool = True
    path: str | None = None
    """Path of a saved manifest; None or empty to draw a new split."""
    validation_faces: FaceRule | None = field(default=None, metadata=ADDED)
    """Rule for the pool of validation pairs; None for the pairs eligible for testing."""

    def check(self) -> None:
        for name in ("test_fraction", "validation_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise InvalidValue(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        if self.test_fraction + self.validation_fraction >= 1:
            raise InvalidValue("test_fraction and validation_fraction leave nothing to train on; lower one")
        if self.seed < 0:
            raise InvalidValue(f"seed is {self.seed}; it must be 0 or more")
        if self.num_test is not None and self.num_test < 1:
            raise InvalidValue(f"num_test is {self.num_test}; it must be at least 1")
        if self.test_folds is None:
            if self.test_fold:
                raise InvalidValue(f"test_fold is {self.test_fold}, but test_folds is not set")
            return
        if self.num_test is not None or self.path:
            raise InvalidValue("test_folds says which pairs are tested; leave num_test and path empty beside it")
        if self.test_folds < 2:
            raise InvalidValue(f"test_folds is {self.test_folds}; it must be at least 2")
        if not 0 <= self.test_fold < self.test_folds:
            raise InvalidValue(f"test_fold is {self.test_fold}; it must be from 0 to {self.test_folds - 1}")

    def make(self, pairs: PairSource, *, fold: int = 0) -> Manifest:
        """Splits the pairs, independently of the order in which the source lists them.

        Args:
          fold: which validation set to take, from 0.

        Raises:
          ValueError: there are too few pairs, or a saved manifest contains ids that the source lacks.
        """
        order = sorted(range(len(pairs)), key=lambda index: pairs.ids[index])
        out = set() if self.faces == "include" else set(np.flatnonzero(dropped(pairs.num_faces(), self.faces)).tolist())
        groups = _grouped(order, pairs.groups)
        # One excluded pair excludes its whole group, or the group would be split.
        eligible = [group for group in groups if not out & set(group)]
        saved = Manifest.load(expand(self.path)) if self.path else None
        seed = self.seed if saved is None else saved.seed
        eligible = [eligible[i] for i in np.random.default_rng(seed).permutation(len(eligible))]
        available = sum(len(group) for group in eligible)
        if saved is not None:
            test = [_positions(saved.test, pairs, str(self.path))]
            if fold == 0:
                _warn_of_changes(saved, pairs, str(self.path))
        else:
            test = self._draw_test(eligible, num_pairs=len(pairs))
        tested = {index for group in test for index in group}
        # Duplicates may have been found since the manifest was saved: a pair that shares an image with a test pair is a
        # leak.
        beside = {index for group in groups if not tested.isdisjoint(group) for index in group} - tested
        if beside and fold == 0:  # Reported once, not for every fold.
            logger.warning("%d pairs are left out for sharing a picture with a test pair: %s", *_counted(beside, pairs))
        taken = tested | beside
        rest = [group for group in eligible if taken.isdisjoint(group)]
        if self.validation_faces is not None:
            rest = self._own_pool(groups, taken, pairs, seed)
            available = sum(map(len, rest))
        wanted = max(1, math.floor(self.validation_fraction * available + 0.5))
        start = (fold * wanted) % max(sum(map(len, rest)), 1)
        validation = _take(_rotate(rest, start), wanted)
        chosen = {index for group in validation for index in group}
        taken |= chosen
        train = [index for index in order if index not in taken]
        if not self.train_on_faces:
            train = [index for index in train if index not in out]
        if not validation:
            raise InvalidValue(
                f"the split of {len(pairs)} pairs tests {len(tested)}, and {wanted} to choose on cannot be taken from "
                f"the others that may be{_in_groups(rest)}: lower split.num_test or split.test_fraction, or raise "
                "split.validation_fraction"
            )
        if not train:
            faces = "" if self.train_on_faces else ", or set split.train_on_faces=True"
            raise InvalidValue(
                f"the split of {len(pairs)} pairs tests {len(tested)}, chooses on {len(chosen)} and leaves none to "
                f"train on: lower split.num_test, split.test_fraction or split.validation_fraction{faces}"
            )
        return Manifest(
            train=[pairs.ids[index] for index in train],
            validation=sorted(pairs.ids[index] for index in chosen),
            test=sorted(pairs.ids[index] for index in tested),
            rule=self._rule(),
            seed=seed,
            pairs_digest=pairs.digest(),
            face_overrides=pairs.face_overrides,
            hashes={pairs.ids[index]: list(pairs.hashes[index]) for index in order},
        )

    def _own_pool(self, groups: list[list[int]], taken: set[int], pairs: PairSource, seed: int) -> list[list[int]]:
        """Groups of the validation pool, in the order in which folds take them."""
        assert self.validation_faces is not None
        none = self.validation_faces == "include"
        out = set() if none else set(np.flatnonzero(dropped(pairs.num_faces(), self.validation_faces)).tolist())
        pool = [group for group in groups if taken.isdisjoint(group) and not out & set(group)]
        # A different order than that of the test pairs, which use the same seed.
        return [pool[i] for i in np.random.default_rng([seed, 1]).permutation(len(pool))]

    def _draw_test(self, eligible: list[list[int]], *, num_pairs: int) -> list[list[int]]:
        available = sum(map(len, eligible))
        if not available:
            raise InvalidValue(
                f"none of {num_pairs} pairs may be tested with split.faces={self.faces!r}; set another rule"
            )
        if len(eligible) == 1 < available:
            raise InvalidValue(
                f"all {available} pairs that may be tested share pictures, each with another of them: they are 1 "
                "group, which a split never cuts. Give pairs of different pictures, or have fewer of them taken for "
                "equal (duplicates)"
            )
        there = f"of {num_pairs} pairs {available} may be tested{_in_groups(eligible)}"
        if self.test_folds is not None:
            test = _deal(eligible, self.test_folds)[self.test_fold]
            if not test:
                raise InvalidValue(f"{there}, too few for split.test_folds={self.test_folds}; lower it")
            return test
        wanted = self.num_test if self.num_test is not None else _share(self.test_fraction, available)
        test = _take(eligible, wanted)
        if sum(map(len, test)) < wanted or len(test) == len(eligible):
            raise InvalidValue(
                f"{wanted} test pairs are wanted, but {there}, and some must be left to choose on: lower "
                "split.num_test or split.test_fraction"
            )
        return test

    def _rule(self) -> str:
        drawn = "" if self.test_folds is None else f"; fold {self.test_fold} of {self.test_folds} is tested"
        if self.faces == "include":
            return f"test and validation pairs drawn from all pairs{drawn}"
        training = "train" if self.train_on_faces else "are left out"
        if self.validation_faces is not None:
            training += " or are chosen on" if self.train_on_faces else " unless they are chosen on"
            which = "all" if self.validation_faces == "include" else f"those without {RULES[self.validation_faces]}"
            chosen = f"; validation pairs are drawn from {which} that are not tested"
            return f"pairs with {RULES[self.faces]} are not tested, and {training}{chosen}{drawn}"
        return f"pairs with {RULES[self.faces]} are neither tested nor chosen on, and {training}{drawn}"


def _grouped(order: Sequence[int], group_of: np.ndarray) -> list[list[int]]:
    members: dict[int, list[int]] = {}
    for index in order:
        members.setdefault(int(group_of[index]), []).append(index)
    return list(members.values())


def _in_groups(groups: Sequence[list[int]]) -> str:
    """Number and size of groups of shared images, for a message; empty if no pairs share images."""
    largest = max(map(len, groups), default=0)
    if largest < 2:
        return ""
    return f", in {len(groups)} groups that share pictures, up to {largest} pairs each, and are never cut"


def _share(fraction: float, count: int) -> int:
    """`fraction` of `count`, rounded up except for floating-point error."""
    return math.ceil(round(fraction * count, 9))


def _deal(groups: Sequence[list[int]], num_folds: int) -> list[list[list[int]]]:
    """Groups distributed over folds of similar size: the largest first, each to the smallest fold."""
    folds: list[list[list[int]]] = [[] for _ in range(num_folds)]
    sizes = [0] * num_folds
    for group in sorted(groups, key=len, reverse=True):
        smallest = sizes.index(min(sizes))
        folds[smallest].append(group)
        sizes[smallest] += len(group)
    return folds


def _take(groups: Sequence[list[int]], count: int) -> list[list[int]]:
    """Whole groups from the front until `count` pairs are taken; groups that would exceed it are skipped."""
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


def _positions(ids: Sequence[str], pairs: PairSource, path: str) -> list[int]:
    missing = sorted(set(ids) - set(pairs.ids))
    if missing:
        raise InvalidValue(
            f"{path} names {len(missing)} test pairs that this pair set does not have, such as {missing[0]!r}: "
            "it belongs to other data"
        )
    return [int(index) for index in pairs.indices(ids)]


def _warn_of_changes(saved: Manifest, pairs: PairSource, path: str) -> None:
    lost = sorted({*saved.train, *saved.validation} - set(pairs.ids))
    if lost:
        logger.warning("%s names %d training pairs that are not here, such as %r", path, len(lost), lost[0])
    changed = [
        index
        for index, (identity, hashes) in enumerate(zip(pairs.ids, pairs.hashes, strict=True))
        if saved.hashes.get(identity, list(hashes)) != list(hashes)
    ]
    if changed:
        logger.warning("%s was drawn from other pictures of %d pairs: %s", path, *_counted(changed, pairs))
    elif not lost and saved.pairs_digest != pairs.digest():
        logger.warning("%s was drawn from pairs of equal names but other content, or from a part of these", path)


def _counted(indices: Collection[int], pairs: PairSource) -> tuple[int, str]:
    """Number of pairs and the first of their ids."""
    ids = sorted(pairs.ids[index] for index in indices)
    return len(ids), first_few(ids)
