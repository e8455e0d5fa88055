"""Which pairs train, choose and test: seeded, written down, and never split within a group of duplicates."""

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
    """The ids of every part, and what they were drawn from and how."""

    train: list[str]
    validation: list[str]
    test: list[str]
    rule: str
    seed: int
    pairs_digest: str
    face_overrides: dict[str, list[int | None]] = field(default_factory=dict)
    """Numbers of faces that a person had set, `{id: [left, right]}`; None where the finding stood."""
    hashes: dict[str, list[str]] = field(default_factory=dict)
    """The content hashes of every pair's pictures, `{id: [left, right]}`; empty in older manifests."""

    def save(self, path: Path) -> None:
        """Writes the manifest as JSON, one id a line."""
        write_whole(path, json.dumps(asdict(self), indent=0) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Reads what `save` wrote.

        Raises:
          FileNotFoundError, ValueError: the file is missing, or not a manifest.
        """
        if not path.exists():
            raise MissingFile(f"no split manifest at {path}: leave split.path empty to draw a new split")
        try:
            return cls(**read_json(path))
        except (TypeError, DamagedFile) as error:
            raise InvalidValue(f"{path} is not a split manifest: {error}") from error


@dataclass(kw_only=True)
class Split:
    """How pairs are parted: by a hold-out, or by one of `test_folds` folds. No group of duplicates is cut.

    `faces` names the rule (see `faces.dropped`) that keeps pairs from being tested or chosen on: with "none" those
    that are tested show no face on either side. All other pairs train, the dropped ones included unless
    `train_on_faces` is False.

    Hold-out: `num_test` pairs are tested, or `test_fraction` of those that may be, rounded up: 325 of 1,622, as in the
    study. Another `seed` draws anew: `Split(num_test=325, seed=k)` for k = 0, 1, ... is a repeated hold-out.
    Folds: with `test_folds=5` the pairs that may be tested are dealt to five folds of nearly equal size, each pair to
    one, and `test_fold` (from 0) is tested.

    What is chosen, is chosen on validation pairs: by default a fraction of those that may be tested. Where most of
    these are tested, few are left, and any two seeds have nearly the same. With `validation_faces` they are drawn from
    a pool of their own, all pairs that are not tested and that this rule keeps ("include": all, faces or not), and the
    fraction is of that pool. For what does not look for faces that is as fair; and as long as the fractions of all
    seeds add up to at most 1, no two seeds share one.

    The test pairs depend on the seed alone; `make(fold=...)` moves the validation pairs. With `path` the test pairs
    are those of a saved manifest, its seed stands for `seed`, and what shares a picture with one of them without being
    tested is left out.
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
    """None or empty: none."""
    validation_faces: FaceRule | None = field(default=None, metadata=ADDED)
    """Which pairs may be validated on; None: those that may be tested."""

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
        """Parts the pairs; the same for any order that the source lists them in.

        Raises:
          ValueError: there are too few pairs, or a saved manifest names pairs that are not here.
        """
        order = sorted(range(len(pairs)), key=lambda index: pairs.ids[index])
        out = set() if self.faces == "include" else set(np.flatnonzero(dropped(pairs.num_faces(), self.faces)).tolist())
        groups = _grouped(order, pairs.groups)
        # A group with one such pair in it is out as a whole, or its parts would be split.
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
        # With a saved manifest, finer groups may have been found since: what shares a picture with a tested pair leaks.
        beside = {index for group in groups if not tested.isdisjoint(group) for index in group} - tested
        if beside and fold == 0:  # Once for all folds.
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
        """The groups to validate on, in the order in which folds take them."""
        assert self.validation_faces is not None
        none = self.validation_faces == "include"
        out = set() if none else set(np.flatnonzero(dropped(pairs.num_faces(), self.validation_faces)).tolist())
        pool = [group for group in groups if taken.isdisjoint(group) and not out & set(group)]
        # Another order than that of the tested pairs, which the same seed shuffles.
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
    """How many groups of shared pictures there are, for a message; nothing where each pair is one."""
    largest = max(map(len, groups), default=0)
    if largest < 2:
        return ""
    return f", in {len(groups)} groups that share pictures, up to {largest} pairs each, and are never cut"


def _share(fraction: float, count: int) -> int:
    """Rounded up, but not by what floats add to a whole number."""
    return math.ceil(round(fraction * count, 9))


def _deal(groups: Sequence[list[int]], num_folds: int) -> list[list[list[int]]]:
    """Every group in one fold, the largest first and each to the smallest fold, so that folds are of like size."""
    folds: list[list[list[int]]] = [[] for _ in range(num_folds)]
    sizes = [0] * num_folds
    for group in sorted(groups, key=len, reverse=True):
        smallest = sizes.index(min(sizes))
        folds[smallest].append(group)
        sizes[smallest] += len(group)
    return folds


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
    """How many pairs, and the first of their ids."""
    ids = sorted(pairs.ids[index] for index in indices)
    return len(ids), first_few(ids)
