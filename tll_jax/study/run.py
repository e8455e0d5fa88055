"""A study: every arm through its stages, then all systems judged on the same queries, compared and reported."""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tll_jax
from tll_jax import processes, serialize
from tll_jax.contracts import ImageSource, System
from tll_jax.data.pipeline import Readers, open_readers
from tll_jax.data.splits import Manifest
from tll_jax.devices import check_batch_size, hardware, local_mesh, make_mesh
from tll_jax.errors import DamagedFile, InvalidValue
from tll_jax.evaluation.probes import OpenedProbe
from tll_jax.files import LOCK, PARTIAL, locked, read_json, remove_partials, write_json, write_whole
from tll_jax.report import results_markdown, write_report
from tll_jax.settings import validate
from tll_jax.study.evaluate import evaluate_arm, evaluate_system, frozen_system, probe_frozen
from tll_jax.study.explain import explain_arm, write_pages
from tll_jax.study.folder import (
    RESULTS,
    Evaluation,
    Trained,
    explain_key,
    is_done,
    keep_ranks,
    read_mark,
    stage_folder,
    write_settings,
)
from tll_jax.study.networks import initial_variables, ready_made, siamese, training_network
from tll_jax.study.results import Evaluations, Finetuning, Trainings, collect, seeded_systems, write_pictures
from tll_jax.study.settings import Loop, Study
from tll_jax.study.train import Context, finetune, pretrain
from tll_jax.training import step
from tll_jax.training.state import initial_shapes

logger = logging.getLogger(__name__)

STAGES = ("pretrain", "finetune", "evaluate", "explain", "report")


@dataclass(frozen=True, kw_only=True)
class TrainedArm:
    """What the trainings of an arm have left."""

    planned: Trainings
    learned: dict[str, Trained | None]
    """By each pretraining; None where the backbone starts from random weights."""
    finetuned: list[Trained]
    """By each fine-tuning; none where only pretraining was asked for."""
    folders: dict[str, Path]
    """Where each stage lies, by what the results call it: "pretrain <arm>", "finetune <arm> seed <seed>"."""


def run(study: Study, *, workdir: Path, stages_to_run: Sequence[str] = STAGES, command: str = "") -> None:
    """Runs the study in `workdir`, going on from whatever an earlier run has left there.

    Everything that can be refused is refused before the first step: settings, data, batch sizes, the workdir.

    Raises:
      ValueError: impossible settings, a workdir of another study, a stage that needs one that was not asked for.
      FileNotFoundError: data that is not where the settings say.
      Interrupted: a signal asked to stop; what was done is saved.
    """
    started = time.perf_counter()
    unknown = sorted(set(stages_to_run) - set(STAGES))
    if unknown:
        raise InvalidValue(f"--stages names {', '.join(unknown)}; the stages are {', '.join(STAGES)}")
    validate(study)
    refuse_foreign(workdir, study)
    with (
        alone_in(workdir, study, stages_to_run, command),
        open_readers(make_mesh(), num_threads=study.num_threads, num_workers=study.num_workers) as readers,
    ):
        run_in(workdir, study, stages_to_run, readers, started=started, command=command)


@contextmanager
def alone_in(workdir: Path, study: Study, stages_to_run: Sequence[str], command: str) -> Iterator[None]:
    """Locks the workdir for all processes of this run: an equal run waits for its end, another one is refused."""
    with contextlib.ExitStack() as held:
        if processes.is_first():
            identity = serialize.fingerprint([study, tuple(stages_to_run)])
            held.enter_context(
                locked(workdir, identity=identity, command=command or f"a run of the study {study.name}")
            )
            remove_partials(workdir)
        processes.wait_for_all("the workdir is locked")
        yield


def run_in(
    workdir: Path, study: Study, stages_to_run: Sequence[str], readers: Readers, *, started: float, command: str
) -> None:
    """`run`, in a folder that is locked."""
    processes.refuse_differences({"versions": versions(), "settings": serialize.fingerprint(study)})
    refuse_sizes(study)
    context = Context(workdir=workdir, pairs=study.pairs.open(), mesh=make_mesh(), readers=readers)
    processes.refuse_differences({"pairs": context.pairs.digest()})
    manifests = [study.split.make(context.pairs, fold=fold) for fold in range(len(study.seeds))]
    sources = open_sources(study, manifests[0])
    ready = {name: ready_made(arm) for name, arm in study.arms.items()}
    probe = None if study.probe is None else OpenedProbe(study.probe, context.mesh)
    refuse_batches(study, context, manifests[0], sources)
    refuse_microbatches(study, sources)
    refuse_fitted(study, context)
    planned = [Trainings.of(name, study, context.pairs, manifests, sources.get(name)) for name in study.arms]
    evaluations = Evaluations.of(study, context, manifests, planned, probe)
    refuse_untrained(planned, context, stages_to_run)
    evaluations.refuse_outdated(study, stages_to_run)

    if processes.is_first():
        write_study(study, workdir, manifests[0], stages_to_run)
    trained = [train_arm(one, ready[one.name], study, context, probe, stages_to_run) for one in planned]
    if processes.is_first():
        # What is left is done by one process alone, on its own devices.
        alone = dataclasses.replace(context, mesh=local_mesh())
        here = None if probe is None else probe.on(alone.mesh)
        for one in trained:
            judge_arm(one, evaluations, study, alone, here, stages_to_run)
        if "evaluate" in stages_to_run:
            judge_systems(study, alone, manifests, evaluations)
        if "report" in stages_to_run:
            how = how_it_was_made(trained, started=started, command=command)
            report(study, alone, manifests[0], evaluations, sources, how)
    processes.wait_for_all("the first process has judged")


def write_study(study: Study, workdir: Path, manifest: Manifest, stages_to_run: Sequence[str]) -> None:
    """Writes the study's settings and split into its folder.

    Beside results they stay as they are until something is ranked anew: each stage and run has its own settings.
    """
    if not (workdir / RESULTS).exists() or {"evaluate", "report"} & set(stages_to_run):
        write_settings(workdir, study, manifest)


def how_it_was_made(trained: Sequence[TrainedArm], *, started: float, command: str) -> dict[str, Any]:
    """What the results say of the run itself."""
    folders = {label: folder for one in trained for label, folder in one.folders.items()}
    seconds = {label: stage_seconds(folder, label.split()[0]) for label, folder in folders.items()}
    return {
        "command": command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions(),
        "seconds": seconds | {"total": round(time.perf_counter() - started, 1)},
    }


def report(
    study: Study,
    context: Context,
    manifest: Manifest,
    evaluations: Evaluations,
    sources: Mapping[str, ImageSource],
    how: dict[str, Any],
) -> None:
    """The results of what was evaluated, and the report."""
    write_pictures(study, context, manifest)
    ranks = evaluations.ranks()
    results = collect(study, context, manifest, evaluations, ranks, sources) | how
    write_json(context.workdir / RESULTS, results)
    keep_ranks(context.workdir, manifest.test, ranks)
    write_whole(context.workdir / "results.md", results_markdown(results))
    logger.info("report: %s", write_report(context.workdir))


def refuse_foreign(workdir: Path, study: Study) -> None:
    """Raises ValueError where `workdir` holds another study, or something else altogether."""
    if not workdir.is_dir():
        return
    there = {path.name for path in workdir.iterdir() if not _is_own_litter(path.name)}
    if "config.json" not in there:
        if there:
            raise InvalidValue(f"{workdir} is not empty and not a study's folder; give another --workdir")
        return
    # Results name the study, too, where the settings were cut short.
    others = (study_named_in(workdir / name) for name in ("config.json", "results.json") if name in there)
    other = next((name for name in others if name is not None), None)
    if other is None and not there & {"split.json", "stages"}:
        raise DamagedFile(
            f"{workdir / 'config.json'} names no study: give another --workdir, or delete that file to start anew there"
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
    """Whether a run leaves a file of this name in a folder where it could not even write its settings."""
    return name in (LOCK, processes.FAILURE) or name.endswith(PARTIAL)


def open_sources(study: Study, manifest: Manifest) -> dict[str, ImageSource]:
    """The opened pretraining images of every arm that pretrains, without the test pairs' images."""
    sources: dict[str, ImageSource] = {}
    opened: dict[str, ImageSource] = {}
    for name, arm in study.arms.items():
        if arm.pretrain is None:
            continue
        held_out = frozenset() if arm.pretrain.sees_test_images else frozenset(manifest.test)
        shortest_side = arm.pretrain.geometry.shortest_side
        key = serialize.fingerprint([arm.pretrain.images, arm.pretrain.sees_test_images, shortest_side])
        if key not in opened:
            opened[key] = arm.pretrain.images.open(held_out=held_out, shortest_side=shortest_side)
        sources[name] = opened[key]
    return sources


def refuse_sizes(study: Study) -> None:
    """Raises ValueError where a head that looks at whole maps is fine-tuned at one size of images and judged at
    another, at which it has other parameters."""
    judged = study.evaluate.geometry.size
    for name, arm in study.arms.items():
        if arm.finetune is None or arm.finetune.geometry.size == judged:
            continue
        tuned = arm.finetune.geometry.size
        network = siamese(arm)
        if initial_shapes(network, size=tuned) != initial_shapes(network, size=judged):
            raise InvalidValue(
                f"config.arms.{name}.finetune.geometry.size is {tuned} and config.evaluate.geometry.size is {judged}: "
                f"{type(arm.head).__name__} has other parameters for images of another size; make the two equal, or "
                "take a head on pooled features, such as Projection"
            )


def refuse_batches(study: Study, context: Context, manifest: Manifest, sources: Mapping[str, ImageSource]) -> None:
    """Raises ValueError where a batch is larger than its data or cannot be shared by the devices."""
    for name, arm in study.arms.items():
        parts: list[tuple[str, Loop, int]] = []
        if arm.pretrain is not None:
            parts.append(("pretrain", arm.pretrain.loop, len(sources[name])))
        if arm.finetune is not None:
            parts.append(("finetune", arm.finetune.loop, len(manifest.train)))
        for stage, loop_settings, available in parts:
            path = f"config.arms.{name}.{stage}.loop.batch_size"
            if loop_settings.batch_size > available:
                raise InvalidValue(
                    f"{path} is {loop_settings.batch_size}, more than the {available} training examples there are"
                )
            try:
                check_batch_size(loop_settings.batch_size, context.mesh)
            except ValueError as error:
                raise InvalidValue(f"{path}: {error}") from error


def refuse_microbatches(study: Study, sources: Mapping[str, ImageSource]) -> None:
    """Raises ValueError where a batch cut into parts would have another loss."""
    for name, arm in study.arms.items():
        for stage, settings in (("pretrain", arm.pretrain), ("finetune", arm.finetune)):
            if settings is None or settings.loop.microbatches == 1:
                continue
            classes = sources[name].num_classes if name in sources else 0
            network = training_network(arm, stage, num_classes=classes)
            shapes = initial_shapes(network, size=settings.geometry.size)
            try:
                step.refuse_microbatches(settings.objective, shapes["batch_stats"])
            except ValueError as error:
                raise InvalidValue(f"config.arms.{name}.{stage}.loop.{error}") from error


def refuse_fitted(study: Study, context: Context) -> None:
    """Raises ValueError where a system that learns is to be ranked among all pairs, which it would have seen."""
    nothing = context.pairs.images([])
    for name in study.faces_included:
        if name in study.systems:
            try:
                study.systems[name].fit(nothing, nothing)
            except ValueError as error:
                raise InvalidValue(
                    f"config.faces_included names {name}, which learns from pairs that it would be tested on "
                    f"({error}); leave it out"
                ) from error


def refuse_untrained(planned: Sequence[Trainings], context: Context, stages_to_run: Sequence[str]) -> None:
    """Raises ValueError where a training stage is neither done nor asked for."""
    for arm in planned:
        needed = [("pretrain", one.label, one.key) for one in arm.starts if arm.images is not None]
        if set(stages_to_run) != {"pretrain"}:
            needed += [("finetune", arm.name, one.key) for one in arm.finetunings]
        for stage, label, key in needed:
            assert key is not None
            folder = stage_folder(context.workdir, stage, key)
            if stage not in stages_to_run and not processes.from_first(is_done(folder, key, stage)):
                # What was trained anew must be ranked anew.
                stale = {"explain", "report"} & set(stages_to_run) and "evaluate" not in stages_to_run
                raise InvalidValue(
                    f"{stage} of arm {label} has not been done with these settings by this version: add "
                    f"{f'{stage} and evaluate' if stale else stage} to --stages"
                )


def train_arm(
    planned: Trainings,
    ready_made: Trained | None,
    study: Study,
    context: Context,
    probe: OpenedProbe | None,
    stages_to_run: Sequence[str],
) -> TrainedArm:
    """One arm through its training stages for every seed; all processes take part."""
    name, arm = planned.name, study.arms[planned.name]
    learned, finetuned, folders = {}, [], {}
    for start in planned.starts:
        learned[start.label] = ready_made
        if planned.images is not None:
            done = pretrain(start.label, start.arm, planned.images, context, probe=probe)
            learned[start.label], folders[f"pretrain {start.label}"] = done, done.folder
    if set(stages_to_run) != {"pretrain"}:
        for one in planned.finetunings:
            done = finetune(
                name,
                arm,
                learned[one.start.label],
                one.manifest,
                study.evaluate,
                context,
                key=one.key,
                seed=one.seed,
            )
            folders[f"finetune {name} seed {one.seed}"] = done.folder
            finetuned.append(done)
    return TrainedArm(planned=planned, learned=learned, finetuned=finetuned, folders=folders)


def judge_arm(
    trained: TrainedArm,
    evaluations: Evaluations,
    study: Study,
    context: Context,
    probe: OpenedProbe | None,
    stages_to_run: Sequence[str],
) -> None:
    """Ranks and explanations of one arm, in its run folders."""
    name = trained.planned.name
    arm = study.arms[name]
    if "evaluate" in stages_to_run:
        judge_frozen(trained, evaluations, study, context, probe)
    for index, (one, done) in enumerate(zip(trained.planned.finetunings, trained.finetuned, strict=False)):
        evaluation = evaluations.arms[name][index]
        test = context.pairs.images(context.pairs.indices(evaluation.ids))
        write_run(trained, one, done, study, evaluation)
        if "evaluate" in stages_to_run:
            evaluate_arm(arm, done, test, study.evaluate, context, evaluation)
        if "explain" in stages_to_run:
            explain_arm(arm, done, test, study.explain, study.evaluate, evaluation)
            if index == 0:
                key = explain_key(evaluation, study.explain)
                write_pages(arm, done, test, study.explain, study.evaluate, evaluation.folder, key=key)


def judge_frozen(
    trained: TrainedArm,
    evaluations: Evaluations,
    study: Study,
    context: Context,
    probe: OpenedProbe | None,
) -> None:
    """Ranks the test pairs by the backbones as pretraining left them, and probes them."""
    row = f"{trained.planned.name}-frozen"
    for number, start in enumerate(trained.planned.starts):
        learned, size = trained.learned[start.label], study.evaluate.geometry.size
        variables = initial_variables(start.arm, learned, size=size, seed=study.seeds[0])
        frozen = frozen_system(start.arm, variables, study.evaluate, context)
        judge_system(frozen, evaluations.frozen[row][number], context)
        if number == 0 and row in evaluations.among_all:
            judge_system(frozen, evaluations.among_all[row], context)
        if probe is not None:
            asked = evaluations.probes[row][number]
            probe_frozen(start.arm, variables, probe, asked.folder, key=asked.key)


def judge_systems(study: Study, context: Context, manifests: Sequence[Manifest], evaluations: Evaluations) -> None:
    """Fits and ranks every system that is not an arm; each seed of one that has seeds chooses on its own fold."""
    for name, system in study.systems.items():
        seeded = seeded_systems(name, system, study.seeds)
        for (_, one), manifest, evaluation in zip(seeded, manifests, evaluations.systems[name], strict=False):
            judge_system(one, evaluation, context, manifest)
        if name in evaluations.among_all:
            judge_system(system, evaluations.among_all[name], context)


def judge_system(system: System, evaluation: Evaluation, context: Context, manifest: Manifest | None = None) -> None:
    """Ranks pairs with a system, fitted on the parts of the manifest; without one the system fits nothing."""
    parts = ([], []) if manifest is None else (manifest.train, manifest.validation)
    train, validation, test = (context.pairs.images(context.pairs.indices(ids)) for ids in (*parts, evaluation.ids))
    evaluate_system(evaluation, system, train, validation, test)


def stage_seconds(folder: Path, stage: str) -> float:
    """Training time of a finished stage."""
    return read_mark(folder, stage)["seconds"]


def write_run(
    trained: TrainedArm,
    finetuning: Finetuning,
    finetuned: Trained,
    study: Study,
    evaluation: Evaluation,
) -> None:
    """What a run folder needs to be used on its own: settings, split, variables and metric records."""
    arm = finetuning.start.arm
    learned = trained.learned[finetuning.start.label]
    pretrained = {"pretrain": learned} if arm.pretrain is not None and learned is not None else {}
    settings = {
        "study": study.name,
        "arm": trained.planned.name,
        "seed": finetuning.seed,
        "settings": serialize.to_json(arm),
        "evaluate": serialize.to_json(study.evaluate),
        # Embeddings and ranks in the folder are of these settings where their mark has this key.
        "key": evaluation.key,
    }
    evaluation.run.write_settings(settings, finetuning.manifest, pretrained | {"finetune": finetuned})


def versions() -> dict[str, str]:
    """The versions that a number depends on."""
    names = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "opencv-python-headless")
    return {"tll_jax": tll_jax.__version__} | {name: importlib.metadata.version(name) for name in names}
