"""Evaluation of a study: test pairs ranked by trained models, by frozen backbones and by all other systems."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tll_jax import ranking, serialize
from tll_jax.data.splits import Manifest
from tll_jax.devices import resident
from tll_jax.errors import InvalidValue
from tll_jax.evaluation.embed import Embedding, head_embedding, pooled_embedding
from tll_jax.evaluation.probes import OpenedProbe
from tll_jax.renamed import FORMER_MODELS, FORMER_SYSTEMS
from tll_jax.serialize import Fingerprint
from tll_jax.study.folder import NUM_SHOWN, Embeddings, Trained, can_be_read, is_done, mark_done, place_in, unmark
from tll_jax.study.keys import Evaluation, check_explained, read_probe
from tll_jax.study.networks import make_embedder, siamese
from tll_jax.study.settings import Evaluate, Model, Study
from tll_jax.study.train import Context, Pretraining, Trainings
from tll_jax.systems.ensemble import kind_of, with_seed
from tll_jax.typing import PairImages, System

logger = logging.getLogger(__name__)

FACES_INCLUDED = "faces-included"


def seeded_systems(name: str, system: System, seeds: Sequence[int]) -> list[tuple[str, System]]:
    """The run folders of a system, relative to the study, and the system to fit in each: one a seed if it has a seed,
    else one."""
    if system.seed is None:
        return [(f"systems/{name}", system)]
    return [(f"systems/{name}/seed-{seed}", with_seed(system, seed)) for seed in seeds]


@dataclass(frozen=True, kw_only=True)
class Probed:
    """A kNN and linear probe of one frozen backbone: its folder, and the key of its inputs."""

    label: str
    folder: Path
    key: Fingerprint


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """The folders and keys of all evaluations of a study, by row and seed, done or not."""

    models: dict[str, list[Evaluation]]
    frozen: dict[str, list[Evaluation]]
    """Frozen backbones of the models, by the names of their rows."""
    systems: dict[str, list[Evaluation]]
    among_all: dict[str, Evaluation]
    """Systems that are also ranked among all pairs, faces included."""
    probes: dict[str, list[Probed]]
    """Probes of frozen backbones; empty where the study has no probe."""

    @classmethod
    def of(
        cls,
        study: Study,
        context: Context,
        manifests: Sequence[Manifest],
        trainings: Sequence[Trainings],
        probe: OpenedProbe | None = None,
    ) -> "Evaluations":
        """The evaluations that the settings and data of a study define."""
        systems = {name: system_evaluations(name, study, context, manifests) for name in study.systems}
        frozen, models, probes = {}, {}, {}
        for planned in trainings:
            name, row, test = planned.name, f"{planned.name}-frozen", manifests[0].test
            frozen[row] = [
                _evaluation(context, start.frozen_folder, test, _inputs_of_frozen(name, start, study))
                for start in planned.starts
            ]
            if planned.finetunings:
                models[name] = [
                    _evaluation(
                        context,
                        f"models/{name}/seed-{one.seed}",
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
                {_field_of_system(name): study.systems[name]} if name in study.systems else frozen[name][0].inputs,
            )
            for name in study.faces_included
        }
        return cls(models=models, frozen=frozen, systems=systems, among_all=among_all, probes=probes)

    @property
    def rows(self) -> dict[str, list[Evaluation]]:
        """Evaluations by seed, under the names of the results' rows, in table order, without the chance row."""
        return self.systems | self.frozen | self.models

    def kind(self, name: str, study: Study) -> str:
        """The kind of a row in the results: "model", "frozen", "fitted" or "baseline"."""
        if name in self.models:
            return "model"
        return "frozen" if name in self.frozen else kind_of(study.systems[name])

    def check_up_to_date(self, study: Study, stages_to_run: Sequence[str]) -> None:
        """Refuses to read results of other settings or data. Missing results are left out of the report.

        Raises:
          ValueError: names the outdated results and the stage that renews them.
        """
        evaluated, explained = "evaluate" in stages_to_run, "explain" in stages_to_run
        reported = "report" in stages_to_run
        if explained and not evaluated:
            for one in (one for seeds in self.models.values() for one in seeds):
                if not one.is_there:
                    raise InvalidValue(f"explaining {one.label} needs its ranks: add evaluate to --stages")
                one.read()
        if reported and not evaluated:
            self.ranks()
            self.ranks_among_all()
            self.accuracies()
        if reported and not explained:
            for one in (one for seeds in self.models.values() for one in seeds):
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
        """`[1, 2, pairs]` of every system that was ranked among all pairs; raises ValueError as `ranks` does."""
        return {name: one.read()[None] for name, one in self.among_all.items() if one.is_there}

    def accuracies(self) -> dict[str, list[dict[str, float]]]:
        """Probe accuracies of every frozen backbone that was probed; raises ValueError as `ranks` does."""
        read = {
            name: [read_probe(one.folder, one.key, one.label) for one in seeds] for name, seeds in self.probes.items()
        }
        found = {name: [one for one in seeds if one is not None] for name, seeds in read.items()}
        return {name: seeds for name, seeds in found.items() if seeds}


def system_evaluations(name: str, study: Study, context: Context, manifests: Sequence[Manifest]) -> list[Evaluation]:
    """The evaluations of a system that is not a trained model, one a seed, each with its own validation fold."""
    # `fit` gets the groups of near-duplicates; the content digest does not cover the settings that found them.
    groups = context.pairs.groups.tolist()
    seeded = seeded_systems(name, study.systems[name], study.seeds)
    return [
        _evaluation(
            context,
            place,
            manifest.test,
            {
                _field_of_system(name): system,
                "training pairs": tuple(manifest.train),
                "validation pairs": tuple(manifest.validation),
                "groups of duplicates": groups,
            },
        )
        for (place, system), manifest in zip(seeded, manifests, strict=False)
    ]


def _field_of_system(name: str) -> str:
    # The key contains the name: a renamed system keeps its former one here, so its finished ranks stay valid.
    return f"config.systems.{FORMER_SYSTEMS.get(name, name)}"


def _inputs_of_frozen(name: str, start: Pretraining, study: Study) -> dict[str, Any]:
    # Likewise.
    model, path = start.model, f"config.{FORMER_MODELS}.{name}"
    return {
        "config.evaluate": study.evaluate,
        "pretraining": start.key,
        f"{path}.backbone": model.backbone,
        f"{path}.finetune.loop.dtype": model.finetune.loop.dtype if model.finetune else "float32",
        "first of config.seeds": study.seeds[0],
    }


def _evaluation(context: Context, place: str, ids: Sequence[str], inputs: Mapping[str, Any]) -> Evaluation:
    label = place.partition("/")[2].replace(f"/{FACES_INCLUDED}", " among all pairs").replace("/seed-", " seed ")
    return Evaluation(
        label=label,
        folder=place_in(context.workdir, place),
        ids=ids,
        inputs={"content of the pairs": context.pairs.digest(), **inputs},
    )


def evaluate_model(
    model: Model,
    trained: Trained,
    images: PairImages,
    evaluate: Evaluate,
    context: Context,
    evaluation: Evaluation,
) -> None:
    """Embeds the test pairs, ranks them in both directions, and writes embeddings, ranks and records."""
    run = evaluation.run
    if is_done(run.path, evaluation.key, "evaluate") and can_be_read(run.embedding_file, *run.rank_files):
        logger.info("evaluate %s: up to date, skipped", evaluation.label)
        return
    network = siamese(model)
    embedder = make_embedder(head_embedding(network), evaluate, context.mesh, context.readers)
    variables = resident(trained.variables, context.mesh)
    left, right = (embedder(variables, side) for side in (images.left, images.right))
    unmark(run.path, "evaluate")
    run.write_embeddings(Embeddings(list(images.ids), left, right))
    run.write_ranks(
        images.ids,
        ranks=ranking.pair_ranks(left, right, mesh=context.mesh),
        top=[
            ranking.embedding_top_k(queries, candidates, NUM_SHOWN, mesh=context.mesh)
            for queries, candidates in ((left, right), (right, left))
        ],
    )
    evaluation.mark()


def evaluate_system(
    evaluation: Evaluation, system: Any, train: PairImages, validation: PairImages, test: PairImages
) -> None:
    """Fits a system that is not a trained model, ranks the test pairs in both directions, and writes the ranks."""
    run = evaluation.run
    if is_done(run.path, evaluation.key, "evaluate") and can_be_read(*run.rank_files):
        logger.info("evaluate %s: up to date, skipped", evaluation.label)
        return
    logger.info("evaluate %s", evaluation.label)
    system.fit(train, validation)
    scores = [system.score(test.left, test.right), system.score(test.right, test.left)]
    matches = np.arange(len(test.ids))
    unmark(run.path, "evaluate")
    run.write_ranks(
        test.ids,
        ranks=[ranking.ranks(one_way, matches) for one_way in scores],
        top=[ranking.top_k(one_way, NUM_SHOWN) for one_way in scores],
    )
    evaluation.mark(chosen=getattr(system, "chosen", None))


def frozen_system(model: Model, variables: dict[str, Any], evaluate: Evaluate, context: Context) -> Embedding:
    """The frozen backbone of a model as a system: cosine similarity of its pooled features."""
    embedder = make_embedder(pooled_embedding(siamese(model)), evaluate, context.mesh, context.readers)
    return Embedding(embedder=embedder, variables=resident(variables, context.mesh))


def probe_frozen(
    model: Model, variables: Callable[[], dict[str, Any]], probe: OpenedProbe, folder: Path, *, key: Fingerprint
) -> None:
    """Writes kNN and linear-probe accuracies of the frozen backbone into `folder`, unless they are there."""
    if not is_done(folder, key, "probe"):
        device_variables = resident(variables(), probe.mesh)
        embedder = probe.embedder(pooled_embedding(siamese(model)))
        mark_done(folder, key, "probe", accuracy=probe.accuracies(embedder, device_variables))
