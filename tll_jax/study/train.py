"""The training stages of a model, pretraining and fine-tuning; finished stages of equal inputs are skipped."""

import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from tll_jax import processes, ranking
from tll_jax.data import pipeline
from tll_jax.data.splits import Manifest
from tll_jax.devices import fsdp_shardings, place
from tll_jax.evaluation.embed import head_embedding, pooled_embedding
from tll_jax.evaluation.probes import NEIGHBORS, OpenedProbe
from tll_jax.models.network import Network
from tll_jax.serialize import Fingerprint
from tll_jax.study.folder import VARIABLES, Trained, is_done, mark_trained, stage_folder, write_stage_settings
from tll_jax.study.keys import finetune_key, pretrain_key
from tll_jax.study.networks import (
    initial_variables,
    make_embedder,
    pretraining_network,
    recipe_of,
    shared_program,
    siamese,
)
from tll_jax.study.settings import Evaluate, Finetune, Model, Pretrain, Study
from tll_jax.training import checkpoint, loop
from tll_jax.training.collapse import collapse_warning
from tll_jax.training.state import init_variables, initial_shapes
from tll_jax.typing import Evaluator, Image, ImageSource, PairImages, PairSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Context:
    """Objects that all stages of a study share: folder, pairs, mesh and readers."""

    workdir: Path
    pairs: PairSource
    mesh: Mesh
    readers: pipeline.Readers

    @functools.cached_property
    def examples(self) -> pipeline.KeptExamples:
        """The pairs, with a cache of decoded images that all fine-tunings share."""
        return pipeline.KeptExamples(self.pairs, pipeline.KEPT_BYTES)

    def images(self, ids: Sequence[str]) -> PairImages:
        """The images of the pairs with these ids."""
        return self.pairs.images(self.pairs.indices(ids))


def seeded_pretrainings(name: str, model: Model, study: Study) -> list[tuple[Model, str]]:
    """The model with each of its pretraining seeds, and the run folder of its frozen backbone, relative to the study.

    Fine-tuning i starts from pretraining i modulo their number.
    """
    if model.pretrain is None or study.num_pretrainings == 1:
        return [(model, f"systems/{name}-frozen")]
    first = model.pretrain.seed
    return [
        (
            dataclasses.replace(model, pretrain=dataclasses.replace(model.pretrain, seed=seed)),
            f"systems/{name}-frozen/seed-{seed}",
        )
        for seed in range(first, first + study.num_pretrainings)
    ]


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """One pretraining of a model, or in its place weights from a file or random weights."""

    label: str
    model: Model
    """The model, with the seed of this pretraining."""
    key: Fingerprint | None
    """None for random weights."""
    frozen_folder: str
    """Run folder of the frozen backbone, relative to the study."""


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """One fine-tuning of a model."""

    label: str
    model: Model
    seed: int
    key: Fingerprint
    start: Pretraining
    manifest: Manifest


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """All trainings of one model, done or not."""

    name: str
    images: ImageSource | None
    """Images of the pretraining; None without one."""
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
        """The trainings that the settings and data of a study define.

        Args:
          manifests: one a seed.
        """
        model = study.models[name]
        starts = [
            Pretraining(
                label=name if number == 0 else f"{name} {number}",
                model=variant,
                key=pretrain_key(variant, images),
                frozen_folder=folder,
            )
            for number, (variant, folder) in enumerate(seeded_pretrainings(name, model, study))
        ]
        finetunings = []
        for index, (seed, manifest) in enumerate(zip(study.seeds, manifests, strict=True) if model.finetune else ()):
            start = starts[index % len(starts)]
            key = finetune_key(model, start.key, manifest, pairs, study.evaluate.geometry, seed=seed)
            label = f"{name} seed {seed}"
            finetunings.append(Finetuning(label=label, model=model, seed=seed, key=key, start=start, manifest=manifest))
        return cls(name=name, images=images, starts=starts, finetunings=finetunings)


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """A training: a network and the settings of its training."""

    kind: Literal["pretrain", "finetune"]
    label: str
    key: Fingerprint
    network: Network
    settings: Pretrain | Finetune
    size: int
    """Side of the network's input, in pixels."""
    seed: int

    def folder(self, context: Context) -> Path:
        return stage_folder(context.workdir, self.kind, self.key)

    def trained(self, context: Context) -> Trained:
        """The stage's output, whether or not it is finished."""
        return Trained.of(self.folder(context), initial_shapes(self.network, size=self.size))

    def is_done(self, context: Context) -> bool:
        """Whether the stage is finished, so that all processes skip it."""
        folder = self.folder(context)
        if not processes.from_first(is_done(folder, self.key, self.kind)):
            return False
        logger.info("%s %s: up to date, skipped (%s)", self.kind, self.label, folder)
        return True

    def train(
        self,
        variables: dict[str, Any],
        dataset: Any,
        context: Context,
        *,
        evaluator: Evaluator | None = None,
        monitor: str = "",
    ) -> None:
        """Trains `variables` on `dataset` and writes the final variables; `monitor` names the metric that chooses the
        checkpoint.

        With adapters, checkpoints hold only the trained parameters, and the final variables the whole network.
        """

        def make_batches(start: int) -> Iterator[Any]:
            batch_size = self.settings.loop.batch_size
            return pipeline.training_batches(dataset, batch_size=batch_size, start_step=start, readers=context.readers)

        folder = self.folder(context)
        program = shared_program(self.network, recipe_of(self.settings), size=self.size, mesh=context.mesh)
        key = jax.random.key(self.seed)
        trained, *base = program.split(variables, key)
        base = place(base, fsdp_shardings(base, self.settings.loop.fsdp_min_size, context.mesh))
        training = loop.Training(
            step=lambda state, batch: program.step(key, state, batch, *base),
            make_batches=make_batches,
            settings=self.settings.loop,
            folder=folder,
            mesh=context.mesh,
            label=f"{self.kind} {self.label}",
            warn=collapse_warning,
            evaluator=None if evaluator is None else lambda variables: evaluator(program.merge(variables, *base)),
            monitor=monitor,
        )
        state = training.run(program.start(trained))
        whole = program.merge(state.variables, *base)
        checkpoint.save_variables(folder / VARIABLES, whole, step=self.settings.loop.num_steps)

    def write_settings(self, context: Context) -> None:
        if processes.is_first():
            seed = {"seed": self.seed} if self.kind == "finetune" else {}
            write_stage_settings(self.folder(context), self.kind, self.settings, **seed)

    def mark(self, context: Context, **facts: Any) -> None:
        """Marks the stage as done; called after its files are written."""
        if processes.is_first():
            mark_trained(self.folder(context), self.key, self.kind, **facts)


def pretrain(start: Pretraining, images: ImageSource, context: Context, *, probe: OpenedProbe | None = None) -> Trained:
    """Trains a model's backbone on single images, or loads it from a finished stage of equal inputs.

    Args:
      probe: if given, its kNN accuracy is recorded during training; it does not affect the training.
    """
    settings, key = start.model.pretrain, start.key
    assert settings is not None
    assert key is not None
    network = pretraining_network(start.model, num_classes=images.num_classes)
    size, seed = settings.geometry.size, settings.seed
    stage = _Stage(
        kind="pretrain", label=start.label, key=key, network=network, settings=settings, size=size, seed=seed
    )
    if stage.is_done(context):
        return stage.trained(context)
    variables = init_variables(network, size=size, seed=seed)
    stage.write_settings(context)
    dataset = pipeline.view_dataset(images, settings.geometry, seed=seed)
    stage.train(variables, dataset, context, evaluator=None if probe is None else _watch(network, probe))
    stage.mark(context, skipped=[list(item) for item in images.skipped])
    return stage.trained(context)


def finetune(finetuning: Finetuning, pretrained: Trained | None, evaluate: Evaluate, context: Context) -> Trained:
    """Trains the Siamese network on look-alike pairs; the checkpoint with the best validation MRR is chosen.

    Args:
      pretrained: the backbone's initial weights; None for random ones.
    """
    settings = finetuning.model.finetune
    assert settings is not None
    network, size, seed = siamese(finetuning.model), evaluate.geometry.size, finetuning.seed
    stage = _Stage(
        kind="finetune",
        label=finetuning.label,
        key=finetuning.key,
        network=network,
        settings=settings,
        size=size,
        seed=seed,
    )
    if stage.is_done(context):
        return stage.trained(context)
    variables = initial_variables(finetuning.model, pretrained, size=size, seed=seed)
    stage.write_settings(context)
    indices = context.pairs.indices(finetuning.manifest.train)
    dataset = pipeline.pair_dataset(context.examples, indices, settings.geometry, seed=seed)
    evaluator = _validation(network, finetuning.manifest, evaluate, context)
    stage.train(variables, dataset, context, evaluator=evaluator, monitor="validation/mrr")
    stage.mark(context)
    return stage.trained(context)


def _watch(network: Network, probe: OpenedProbe) -> Any:
    """An evaluator of the backbone's kNN accuracy during training."""
    embedder = probe.embedder(pooled_embedding(network))
    return lambda variables: {f"probe/{NEIGHBORS}": probe.neighbors(embedder, variables)}


def _validation(network: Network, manifest: Manifest, evaluate: Evaluate, context: Context) -> Any:
    """An evaluator that ranks the validation pairs among themselves, in both directions."""
    embedder = make_embedder(head_embedding(network), evaluate, context.mesh, context.readers)

    @functools.cache
    def sides() -> tuple[list[Image], list[Image]]:
        images, rng = context.images(manifest.validation), np.random.default_rng(0)
        left, right = ([evaluate.geometry(rng, image) for image in side] for side in (images.left, images.right))
        return left, right

    def validate(variables: Any) -> dict[str, float]:
        left, right = sides()  # Not earlier: the first step does not wait for them.
        found = ranking.pair_ranks(embedder(variables, left), embedder(variables, right), mesh=context.mesh)
        return {
            "validation/mrr": float(np.mean(1 / found)),
            "validation/top1": float(np.mean(found <= 1)),
            "validation/top5": float(np.mean(found <= 5)),
        }

    return validate
