"""What a study came to: where the ranks of every system lie in its folder and what they follow from, and the rows and
comparisons of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tll_jax import ranking, serialize
from tll_jax.contracts import ImageSource, PairSource, System
from tll_jax.data.duplicates import count_duplicates
from tll_jax.data.faces import RULES, dropped
from tll_jax.data.imaging import BrokenImage, read_image, shrink, write_image
from tll_jax.data.pairs import SIDES
from tll_jax.data.splits import Manifest
from tll_jax.errors import InvalidValue
from tll_jax.evaluation import metrics
from tll_jax.evaluation.ensemble import has_seed, kind_of, with_seed
from tll_jax.evaluation.probes import OpenedProbe
from tll_jax.serialize import Fingerprint
from tll_jax.study.folder import (
    PICTURES,
    Evaluation,
    check_explained,
    finetune_key,
    picture_path,
    pretrain_key,
    read_picture_index,
    read_probe,
    write_picture_index,
)
from tll_jax.study.settings import Arm, Study
from tll_jax.study.train import Context

FACES_INCLUDED = "faces-included"
MAX_PICTURE_SIZE = 128
NUM_EXCLUDED_SHOWN = 24


def seeded_pretrainings(name: str, arm: Arm, study: Study) -> list[tuple[Arm, str]]:
    """The arm with each of its pretraining seeds, and where the ranks of its frozen backbone lie.

    Fine-tuning seed number i stands on pretraining number i modulo their count.
    """
    if arm.pretrain is None or study.num_pretrainings == 1:
        return [(arm, f"systems/{name}-frozen")]
    first = arm.pretrain.seed
    return [
        (
            dataclasses.replace(arm, pretrain=dataclasses.replace(arm.pretrain, seed=seed)),
            f"systems/{name}-frozen/seed-{seed}",
        )
        for seed in range(first, first + study.num_pretrainings)
    ]


def seeded_systems(name: str, system: System, seeds: Sequence[int]) -> list[tuple[str, System]]:
    """Where the ranks of a system lie, and what is fitted: once, or once a seed if the system has a seed."""
    if not has_seed(system):
        return [(f"systems/{name}", system)]
    return [(f"systems/{name}/seed-{seed}", with_seed(system, seed)) for seed in seeds]


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """One pretraining of an arm, or what stands in its place: ready-made or random weights."""

    label: str
    arm: Arm
    """With the seed of this pretraining."""
    key: Fingerprint | None
    """None where the backbone starts from random weights."""
    frozen_folder: str
    """Where the ranks of the backbone as it is then lie."""


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """One fine-tuning of an arm."""

    seed: int
    key: Fingerprint
    start: Pretraining
    manifest: Manifest


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """All trainings of one arm, done or not."""

    name: str
    images: ImageSource | None
    """To pretrain on."""
    starts: list[Pretraining]
    finetunings: list[Finetuning]

    @classmethod
    def of(
        cls,
        name: str,
        study: Study,
        pairs: PairSource,
        manifests: Sequence[Manifest],
        images: ImageSource | None,
    ) -> "Trainings":
        """What settings and data ask for."""
        arm = study.arms[name]
        starts = [
            Pretraining(
                label=name if number == 0 else f"{name} {number}",
                arm=variant,
                key=pretrain_key(variant, images),
                frozen_folder=folder,
            )
            for number, (variant, folder) in enumerate(seeded_pretrainings(name, arm, study))
        ]
        finetunings = []
        for index, (seed, manifest) in enumerate(zip(study.seeds, manifests, strict=True) if arm.finetune else ()):
            start = starts[index % len(starts)]
            key = finetune_key(arm, start.key, manifest, pairs, study.evaluate.geometry, seed=seed)
            finetunings.append(Finetuning(seed=seed, key=key, start=start, manifest=manifest))
        return cls(name=name, images=images, starts=starts, finetunings=finetunings)


@dataclass(frozen=True, kw_only=True)
class Probed:
    """The question what one frozen backbone knows of classes: where the answer lies, and what it follows from."""

    label: str
    folder: Path
    key: Fingerprint


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """All that a study ranks, seed by seed, evaluated or not: where it lies and what it follows from."""

    arms: dict[str, list[Evaluation]]
    frozen: dict[str, list[Evaluation]]
    """Of the arms as pretraining left them, by the names of their rows."""
    systems: dict[str, list[Evaluation]]
    among_all: dict[str, Evaluation]
    """Of what is ranked among all pairs as well."""
    probes: dict[str, list[Probed]]
    """Of frozen backbones; none where the study has no probe."""

    @classmethod
    def of(
        cls,
        study: Study,
        context: Context,
        manifests: Sequence[Manifest],
        trainings: Sequence[Trainings],
        probe: OpenedProbe | None = None,
    ) -> "Evaluations":
        """What settings and data ask for."""
        systems = {name: system_evaluations(name, study, context, manifests) for name in study.systems}
        frozen, arms, probes = {}, {}, {}
        for planned in trainings:
            name, row, test = planned.name, f"{planned.name}-frozen", manifests[0].test
            frozen[row] = [
                _evaluation(context, start.frozen_folder, test, _inputs_of_frozen(name, start, study))
                for start in planned.starts
            ]
            if planned.finetunings:
                arms[name] = [
                    _evaluation(
                        context,
                        f"arms/{name}/seed-{one.seed}",
                        test,
                        {"config.evaluate": study.evaluate, "fine-tuning": one.key},
                    )
                    for one in planned.finetunings
                ]
            if probe is not None:
                probes[row] = [
                    Probed(
                        label=one.label,
                        folder=one.folder,
                        key=serialize.fingerprint([one.key, study.probe, probe.digest()]),
                    )
                    for one in frozen[row]
                ]
        everything = context.pairs.ids
        among_all = {
            name: _evaluation(
                context,
                f"systems/{name}/{FACES_INCLUDED}",
                everything,
                {f"config.systems.{name}": study.systems[name]} if name in study.systems else frozen[name][0].inputs,
            )
            for name in study.faces_included
        }
        return cls(arms=arms, frozen=frozen, systems=systems, among_all=among_all, probes=probes)

    @property
    def rows(self) -> dict[str, list[Evaluation]]:
        """By the names of the rows of the results, chance aside, in their order."""
        return self.systems | self.frozen | self.arms

    def kind(self, name: str, study: Study) -> str:
        """What the results call a row."""
        if name in self.arms:
            return "arm"
        return "frozen" if name in self.frozen else kind_of(study.systems[name])

    def refuse_outdated(self, study: Study, stages_to_run: Sequence[str]) -> None:
        """Raises ValueError where a stage would read what follows from other settings or data, naming the mend.

        What is not there is not read: a study of which a part was evaluated is reported in part.
        """
        evaluated, explained = "evaluate" in stages_to_run, "explain" in stages_to_run
        reported = "report" in stages_to_run
        if explained and not evaluated:
            for one in (one for seeds in self.arms.values() for one in seeds):
                if not one.is_there:
                    raise InvalidValue(f"explaining {one.label} needs its ranks: add evaluate to --stages")
                one.read()
        if reported and not evaluated:
            self.ranks()
            self.ranks_among_all()
            self.accuracies()
        if reported and not explained:
            for one in (one for seeds in self.arms.values() for one in seeds):
                check_explained(one, study.explain)

    def ranks(self) -> dict[str, np.ndarray]:
        """`[seeds, 2, pairs]` of every row that was evaluated: left to right, right to left.

        Raises:
          ValueError: nothing was evaluated, or something with other settings, data or pairs.
        """
        read = {name: [one.read() for one in seeds if one.is_there] for name, seeds in self.rows.items()}
        found = {name: np.stack(ranks) for name, ranks in read.items() if ranks}
        if not found:
            raise InvalidValue("no system has been evaluated yet: add evaluate to --stages")
        return found

    def ranks_among_all(self) -> dict[str, np.ndarray]:
        """`[1, 2, pairs]` of what was ranked among all pairs; raises ValueError as `ranks` does."""
        return {name: one.read()[None] for name, one in self.among_all.items() if one.is_there}

    def accuracies(self) -> dict[str, list[dict[str, float]]]:
        """What probes found of every frozen backbone that was probed; raises ValueError as `ranks` does."""
        read = {
            name: [read_probe(one.folder, one.key, one.label) for one in seeds] for name, seeds in self.probes.items()
        }
        found = {name: [one for one in seeds if one is not None] for name, seeds in read.items()}
        return {name: seeds for name, seeds in found.items() if seeds}


def system_evaluations(name: str, study: Study, context: Context, manifests: Sequence[Manifest]) -> list[Evaluation]:
    """Of a system that is no arm; each seed of one that has seeds chooses on its own fold."""
    # Systems are told which pairs share a picture, of which the pairs' content does not say how it was found.
    groups = context.pairs.groups.tolist()
    seeded = seeded_systems(name, study.systems[name], study.seeds)
    return [
        _evaluation(
            context,
            place,
            manifest.test,
            {
                f"config.systems.{name}": system,
                "training pairs": tuple(manifest.train),
                "validation pairs": tuple(manifest.validation),
                "groups of duplicates": groups,
            },
        )
        for (place, system), manifest in zip(seeded, manifests, strict=False)
    ]


def _inputs_of_frozen(name: str, start: Pretraining, study: Study) -> dict[str, Any]:
    arm, path = start.arm, f"config.arms.{name}"
    return {
        "config.evaluate": study.evaluate,
        "pretraining": start.key,
        f"{path}.backbone": arm.backbone,
        f"{path}.finetune.loop.dtype": arm.finetune.loop.dtype if arm.finetune else "float32",
        "first of config.seeds": study.seeds[0],
    }


def _evaluation(context: Context, place: str, ids: Sequence[str], inputs: Mapping[str, Any]) -> Evaluation:
    label = place.partition("/")[2].replace(f"/{FACES_INCLUDED}", " among all pairs").replace("/seed-", " seed ")
    return Evaluation(
        label=label,
        folder=context.workdir / place,
        ids=ids,
        inputs={"content of the pairs": context.pairs.digest(), **inputs},
    )


def collect(
    study: Study,
    context: Context,
    manifest: Manifest,
    evaluations: Evaluations,
    found: Mapping[str, np.ndarray],
    sources: Mapping[str, ImageSource],
) -> dict[str, Any]:
    """The rows and comparisons of the results file; `found` are the ranks of all rows that were evaluated."""
    num_test = len(manifest.test)
    among_all = evaluations.ranks_among_all()
    planned = [pair for pair in study.planned if set(pair) <= set(found)]
    taken_out = excluded_ids(study, context)
    places = {
        name: [one.folder.relative_to(context.workdir).as_posix() for one in seeds]
        for name, seeds in evaluations.rows.items()
    }
    return {
        "study": study.name,
        "data": {
            "pairs": len(context.pairs),
            "skipped": [list(item) for item in context.pairs.skipped],
            "train": len(manifest.train),
            "validation": len(manifest.validation),
            "test": num_test,
            "rule": manifest.rule,
            "duplicates": count_duplicates(context.pairs.groups),
            "excluded": {RULES[study.split.faces]: len(taken_out)} if taken_out else {},
            "pretraining_saw": {name: what_pretraining_saw(arm, sources.get(name)) for name, arm in study.arms.items()},
        },
        "protocol": {
            "queries": num_test,
            "candidates": num_test,
            "paper_k": ranking.paper_k(num_test),
        },
        "rows": [
            metrics.chance_row(num_test),
            *(metrics.metrics_row(name, evaluations.kind(name, study), ranks) for name, ranks in found.items()),
        ],
        "faces_included": [
            metrics.chance_row(len(context.pairs)),
            *(metrics.metrics_row(name, evaluations.kind(name, study), ranks) for name, ranks in among_all.items()),
        ]
        if among_all
        else [],
        "probes": evaluations.accuracies(),
        "comparisons": metrics.compare(found, planned=planned),
        "significance": metrics.significance(found),
        "runs": places,
        "keys": {
            place: one.key
            for name in found
            for place, one in zip(places[name], evaluations.rows[name], strict=True)
            if one.is_there
        },
    }


def what_pretraining_saw(arm: Arm, source: ImageSource | None) -> str:
    """A sentence for the results: which images, and whether the test pairs' were among them."""
    if arm.weights is not None:
        return f"another's images: ready-made weights, {arm.weights.find().name}"
    if arm.pretrain is None or source is None:
        return "nothing: random initial weights"
    tests = "the test pairs' images included" if arm.pretrain.sees_test_images else "no image of a test pair"
    return f"{len(source):,} images, {tests}"


def write_pictures(study: Study, context: Context, manifest: Manifest) -> None:
    """The test pictures, and some pairs that the face filter took out, small, for the report.

    A picture of the same pairs that is there and can be read is kept.
    """
    taken_out = excluded_ids(study, context)
    spread = taken_out[:: max(len(taken_out) // NUM_EXCLUDED_SHOWN, 1)][:NUM_EXCLUDED_SHOWN]
    index, digest = context.workdir / PICTURES, context.pairs.digest()
    are_of_these = read_picture_index(context.workdir).get("pairs") == digest
    if not are_of_these:
        # Cut short from here on, the pictures are of no known pairs.
        index.unlink(missing_ok=True)
    for identities, excluded in ((manifest.test, False), (spread, True)):
        for position, identity in zip(context.pairs.indices(identities), identities, strict=True):
            paths = [picture_path(context.workdir, side, identity, excluded=excluded) for side in SIDES]
            if are_of_these and all(map(_is_picture, paths)):
                continue
            pair = context.pairs[position]
            for path, image in zip(paths, (pair.left, pair.right), strict=True):
                write_image(path, shrink(image, MAX_PICTURE_SIZE))
    write_picture_index(context.workdir, pairs=digest, excluded=spread)


def _is_picture(path: Path) -> bool:
    try:
        read_image(path)
    except (BrokenImage, OSError):
        return False
    return True


def excluded_ids(study: Study, context: Context) -> list[str]:
    """Pairs that may not be test pairs because of the faces they show; empty where the split does not look at faces."""
    if study.split.faces == "include":
        return []
    out = dropped(context.pairs.num_faces(), study.split.faces)
    return [context.pairs.ids[index] for index in np.flatnonzero(out)]
