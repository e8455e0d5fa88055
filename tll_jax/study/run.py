"""The stages of a study in order: train every model, evaluate all systems on the same queries, compare, report."""

import contextlib
import dataclasses
import datetime
import importlib
import importlib.metadata
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
from jax.sharding import Mesh

import tll_jax
from tll_jax import processes, serialize
from tll_jax.code import UNKNOWN
from tll_jax.data.pipeline import Readers, open_readers
from tll_jax.data.splits import Manifest
from tll_jax.devices import hardware, local_mesh, make_mesh
from tll_jax.errors import InvalidValue, UserError
from tll_jax.evaluation.probes import OpenedProbe
from tll_jax.files import locked, remove_partials, write_whole
from tll_jax.serialize import Fingerprint
from tll_jax.settings import validate
from tll_jax.study import STAGES, side_by_side
from tll_jax.study.checks import (
    check_batch_sizes,
    check_fits_nothing,
    check_grad_accum_steps,
    check_image_sizes,
    check_lora,
    check_trained,
)
from tll_jax.study.evaluate import (
    Evaluations,
    evaluate_model,
    evaluate_system,
    frozen_system,
    probe_frozen,
    seeded_systems,
)
from tll_jax.study.explain import Explainer, explain_model, write_pages, write_recommended
from tll_jax.study.folder import (
    RESULTS,
    StudyFolder,
    Trained,
    check_own_folder,
    is_done,
    read_mark,
    stage_folder,
    write_results,
    write_settings,
)
from tll_jax.study.keys import Evaluation, explain_key
from tll_jax.study.networks import initial_variables, pretraining_network, ready_made, siamese
from tll_jax.study.results import collect, write_pictures
from tll_jax.study.settings import Model, Study
from tll_jax.study.side_by_side import Task
from tll_jax.study.train import Context, Finetuning, Pretraining, Trainings, finetune, pretrain
from tll_jax.typing import Fits, Image, ImageSource, PairImages, PairSource, System

logger = logging.getLogger(__name__)


def run(
    study: Study,
    *,
    workdir: Path,
    stages_to_run: Sequence[str] = STAGES,
    command: str = "",
    parallel: int | None = 1,
) -> None:
    """Runs the study in `workdir`, continuing from the finished and interrupted stages of earlier runs.

    Settings, data, batch sizes and the workdir are checked before the first training step.

    Args:
      stages_to_run: names from `STAGES`.
      command: the command line, for the results and for messages to other processes.
      parallel: trainings at once, each in a process: on a CPU under Linux with a share of the cores, or on one GPU;
        None for the number that `side_by_side.num_at_once` chooses. On a CPU, results with another number of cores a
        training differ by rounding.

    Raises:
      ValueError: impossible settings, a workdir of another study, or a stage without the one that it needs.
      FileNotFoundError: data is missing from the path in the settings.
      Interrupted: a stop signal was received; finished work is saved.
    """
    started = time.perf_counter()
    unknown = sorted(set(stages_to_run) - set(STAGES))
    if unknown:
        raise InvalidValue(f"--stages names {', '.join(unknown)}; the stages are {', '.join(STAGES)}")
    validate(study)
    check_own_folder(workdir, study)
    mesh = make_mesh()
    with (
        locked_workdir(workdir, study, stages_to_run, command) as lock,
        side_by_side.opened_pool(mesh, lock) as pool,
        open_readers(mesh, num_threads=study.num_threads, num_workers=study.num_workers) as readers,
    ):
        if pool is not None and not (workdir / RESULTS).exists():
            pool.start(side_by_side.num_early(mesh, parallel=parallel))
        opened = Run.open(study, workdir, stages_to_run, readers)
        if processes.is_first():
            opened.write_settings()
        at_once, is_all_done = 1, False
        if pool is not None:
            at_once, is_all_done = opened.work_side_by_side(parallel, pool)
            # Those that were started early, if this process trains alone.
            pool.keep(0)
        with _without_skipped_stages() if is_all_done else contextlib.nullcontext():
            opened(started=started, command=command, at_once=at_once, is_evaluated=is_all_done)


@contextmanager
def _without_skipped_stages() -> Iterator[None]:
    """Omits the messages that trainings are up to date, for those that were finished a moment ago."""
    of_training = logging.getLogger("tll_jax.study.train")
    level = of_training.level
    of_training.setLevel(logging.WARNING)
    try:
        yield
    finally:
        of_training.setLevel(level)


@contextmanager
def locked_workdir(workdir: Path, study: Study, stages_to_run: Sequence[str], command: str) -> Iterator[int | None]:
    """Locks the workdir for all processes of this run; an equal run waits for it, a different one is refused.

    Yields the lock's descriptor in the first process.
    """
    with contextlib.ExitStack() as held:
        lock = None
        if processes.is_first():
            identity = serialize.fingerprint([study, tuple(stages_to_run)])
            lock = held.enter_context(
                locked(workdir, identity=identity, command=command or f"a run of the study {study.name}")
            )
            remove_partials(workdir)
        processes.wait_for_all("the workdir is locked")
        yield lock


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """The finished trainings of a model."""

    planned: Trainings
    pretrained: dict[str, Trained | None]
    """The backbone of each pretraining, by its label; None for random weights."""
    finetuned: dict[str, Trained]
    """The network of each fine-tuning, by its label; empty where only pretraining was requested."""
    folders: dict[str, Path]
    """Folders of the stages by their names in the results: "pretrain <model>", "finetune <model> seed <seed>"."""


class Data(NamedTuple):
    """Opened data, which processes that train side by side get, so that each picture is checked and hashed once."""

    pairs: PairSource
    sources: dict[str, ImageSource]


class Job(NamedTuple):
    """One task of a study and its work."""

    task: Task
    do: Callable[[], object]
    key: Fingerprint | None = None
    """Of the stage of a training; None for evaluations, which find out by themselves what is up to date."""


@dataclass(frozen=True)
class _FrozenWhenUsed(System):
    """A frozen backbone that is opened when it first scores, so that ranks that are up to date trace no network."""

    open: Callable[[], System]

    @property
    def fits(self) -> Fits:
        return "nothing"

    def fit(self, train: PairImages, validation: PairImages) -> None:
        """Does nothing: the backbone is trained."""

    def score(self, queries: Sequence[Image], gallery: Sequence[Image]) -> np.ndarray:
        return self._opened.score(queries, gallery)

    @cached_property
    def _opened(self) -> System:
        return self.open()


@dataclass(frozen=True, kw_only=True)
class Run:
    """A checked study with its data opened, ready to run."""

    study: Study
    context: Context
    manifests: list[Manifest]
    """The split of each seed."""
    sources: dict[str, ImageSource]
    """Images of the models that pretrain."""
    weights: dict[str, Trained | None]
    """Pretrained backbones of the models that start from a file; None for the others."""
    probe: OpenedProbe | None
    trainings: list[Trainings]
    evaluations: Evaluations
    stages: Sequence[str]

    @classmethod
    def open(
        cls, study: Study, workdir: Path, stages: Sequence[str], readers: Readers, data: Data | None = None
    ) -> "Run":
        """Opens the data of a study in a locked folder, unless given, and checks everything; raises as `run` does."""
        processes.check_equal_settings({"versions": versions(), "settings": serialize.fingerprint(study)})
        check_image_sizes(study)
        check_lora(study)
        pairs = study.pairs.open() if data is None else data.pairs
        context = Context(workdir=workdir, pairs=pairs, mesh=make_mesh(), readers=readers)
        processes.check_equal_settings({"pairs": context.pairs.digest()})
        manifests = [study.split.make(context.pairs, fold=fold) for fold in range(len(study.seeds))]
        sources = open_sources(study, manifests[0]) if data is None else data.sources
        weights = {name: ready_made(model) for name, model in study.models.items()}
        probe = None if study.probe is None else OpenedProbe(study.probe, context.mesh)
        check_batch_sizes(study, context, manifests[0], sources)
        check_grad_accum_steps(study, sources)
        check_fits_nothing(study)
        trainings = [Trainings.of(name, study, context.pairs, manifests, sources.get(name)) for name in study.models]
        evaluations = Evaluations.of(study, context, manifests, trainings, probe)
        check_trained(trainings, context, stages)
        evaluations.check_up_to_date(study, stages)
        return cls(
            study=study,
            context=context,
            manifests=manifests,
            sources=sources,
            weights=weights,
            probe=probe,
            trainings=trainings,
            evaluations=evaluations,
            stages=stages,
        )

    def __call__(self, *, started: float, command: str, at_once: int, is_evaluated: bool) -> None:
        """Runs the requested stages, and trains one after the other what is not trained.

        Args:
          at_once: number of trainings that ran side by side, for the results.
          is_evaluated: whether those processes have evaluated all, too.
        """
        workers = self.context.readers.workers
        if workers is not None and ("report" in self.stages or self.has_to_train()):
            # They import what they need while the first step is compiled, or the statistics are computed.
            workers.start()
        trained = [self.train(planned, planned.starts, self.finetunings_of(planned)) for planned in self.trainings]
        if processes.is_first():
            # Evaluation runs in the first process alone, on its own devices.
            alone = self.on(local_mesh())
            if not is_evaluated:
                alone.evaluate(trained)
            if "report" in self.stages:
                how = how_it_was_made(trained, started=started, command=command)
                how |= {"trainings_at_once": at_once}
                alone.report(how | {"code": code_of(trained, self.evaluations)})
        processes.wait_for_all("the first process has evaluated")

    def on(self, mesh: Mesh) -> "Run":
        """The same run on other devices."""
        probe = None if self.probe is None else self.probe.on(mesh)
        return dataclasses.replace(self, context=dataclasses.replace(self.context, mesh=mesh), probe=probe)

    def write_settings(self) -> None:
        """Writes settings and split into the study's folder.

        If there are results, the files change only when something is evaluated or reported again, so that they belong
        to the results; each stage and run has settings of its own.
        """
        workdir = self.context.workdir
        if not (workdir / RESULTS).exists() or {"evaluate", "report"} & set(self.stages):
            write_settings(workdir, self.study, self.manifests[0])

    def work_side_by_side(self, parallel: int | None, pool: side_by_side.Pool) -> tuple[int, bool]:
        """Trains what is not finished in several processes, where there can be more than one; see `run`.

        They also evaluate, as soon as there is less to train than there are processes. Their number does not depend on
        what is finished, nor on other programs, so that a training goes on with as many cores as it began with.

        Returns the number of trainings at once, and whether anything was done.
        """
        workdir, mesh, has_to_train = self.context.workdir, self.context.mesh, self.has_to_train()
        if not has_to_train:
            # As they were trained, whatever this command would do.
            with contextlib.suppress(UserError):
                return StudyFolder(workdir).results.get("trainings_at_once", 1), False
        trainings = [job.task for job in self.jobs() if job.key is not None]
        at_once = side_by_side.num_at_once(mesh, trainings, self.workloads, parallel=parallel)
        if not has_to_train or at_once == 1:
            return at_once, False
        payload = cloudpickle.dumps((self.study, workdir, self.stages, Data(self.context.pairs, self.sources)))
        tasks = [job.task for job in self.jobs() if not self.is_trained(job)]
        pool.work(payload, tasks, at_once=at_once, at_last=self.prepare_report)
        return at_once, True

    def prepare_report(self) -> None:
        """Does for the report what needs no results: writes its pictures, and imports what writes it, Matplotlib above
        all, here and in the workers, which draw for it. Processes that only train need not wait for that."""
        if "report" not in self.stages:
            return
        workers = self.context.readers.workers
        if workers is not None:
            workers.start()
        importlib.import_module("tll_jax.report.html")
        write_pictures(self.study, self.context, self.manifests[0])
        if workers is not None:
            deque(workers.read(_import_figures, range(workers.num_workers)), maxlen=0)

    def jobs(self) -> Iterator[Job]:
        """All requested trainings, then the evaluations: of the systems, the frozen backbones and the models."""
        for planned in self.trainings:
            yield from self.trainings_of(planned)
        if "evaluate" in self.stages and self.study.systems:
            # Before the models, which wait for trainings: a long task that begins last is waited for alone.
            yield Job(Task("evaluate the systems"), self.evaluate_systems)
        if "evaluate" in self.stages:
            for planned in self.trainings:
                after = tuple(job.task.name for job in self.trainings_of(planned) if job.task.kind == "pretrain")
                train = partial(self.train, planned, planned.starts, [])
                yield Job(Task(f"evaluate {planned.name}-frozen", after), partial(_then, train, self.evaluate_frozen))
        if {"evaluate", "explain"} & set(self.stages):
            runs = [(planned, *run) for planned in self.trainings for run in enumerate(planned.finetunings)]
            # The first seeds first, whose explanations take longest.
            for planned, _, one in sorted(runs, key=lambda run: run[1]):
                train = partial(self.train, planned, [one.start], [one])
                task = Task(f"evaluate {one.label}", (f"finetune {one.label}",))
                yield Job(task, partial(_then, train, self.evaluate_finetuned))

    def trainings_of(self, planned: Trainings) -> Iterator[Job]:
        """The trainings of one model."""
        pretrains = planned.images is not None
        for start in planned.starts if pretrains else ():
            assert start.key is not None
            task = Task(f"pretrain {start.label}")
            yield Job(task, partial(self.pretrained, planned, start), start.key)
        for one in self.finetunings_of(planned):
            task = Task(f"finetune {one.label}", (f"pretrain {one.start.label}",) if pretrains else ())
            yield Job(task, partial(self.train, planned, [one.start], [one]), one.key)

    def finetunings_of(self, planned: Trainings) -> list[Finetuning]:
        """The requested fine-tunings of one model."""
        return planned.finetunings if set(self.stages) != {"pretrain"} else []

    def has_to_train(self) -> bool:
        """Whether a requested training is not finished."""
        return any(job.key is not None and not self.is_trained(job) for job in self.jobs())

    def is_trained(self, job: Job) -> bool:
        """Whether a job is a training that is finished."""
        stage, key = job.task.kind, job.key
        return key is not None and is_done(stage_folder(self.context.workdir, stage, key), key, stage)

    def workloads(self) -> Iterator[side_by_side.Workload]:
        """The sizes of the steps of all trainings."""
        for planned in self.trainings:
            model = self.study.models[planned.name]
            if model.pretrain is not None and planned.images is not None:
                network = pretraining_network(model, num_classes=planned.images.num_classes)
                yield side_by_side.Workload.of(network, model.pretrain.geometry.size, model.pretrain.loop)
            if model.finetune is not None:
                yield side_by_side.Workload.of(siamese(model), self.study.evaluate.geometry.size, model.finetune.loop)

    def do(self, name: str) -> None:
        """Does the job whose task has this name."""
        next(job for job in self.jobs() if job.task.name == name).do()

    def pretrained(self, planned: Trainings, start: Pretraining) -> Trained | None:
        """The backbone from which fine-tuning starts, trained unless it is; None for random weights."""
        if planned.images is None:
            return self.weights[planned.name]
        return pretrain(start, planned.images, self.context, probe=self.probe)

    def train(
        self, planned: Trainings, starts: Sequence[Pretraining], finetunings: Sequence[Finetuning]
    ) -> TrainedModel:
        """Trains these stages of one model, unless they are; all processes take part."""
        pretrained, finetuned, folders = {}, {}, {}
        for start in starts:
            done = pretrained[start.label] = self.pretrained(planned, start)
            if planned.images is not None and done is not None:
                folders[f"pretrain {start.label}"] = done.folder
        for one in finetunings:
            tuned = finetune(one, pretrained[one.start.label], self.study.evaluate, self.context)
            folders[f"finetune {one.label}"] = tuned.folder
            finetuned[one.label] = tuned
        return TrainedModel(planned=planned, pretrained=pretrained, finetuned=finetuned, folders=folders)

    def evaluate(self, trained: Sequence[TrainedModel]) -> None:
        """Writes what the requested stages find out about the models and the systems, unless it is there."""
        for one in trained:
            if "evaluate" in self.stages:
                self.evaluate_frozen(one)
            self.evaluate_finetuned(one)
        if "evaluate" in self.stages:
            self.evaluate_systems()

    def evaluate_finetuned(self, trained: TrainedModel) -> None:
        """Writes ranks and explanations of a model's fine-tunings, and what else their run folders need."""
        for index, one in enumerate(trained.planned.finetunings):
            if one.label not in trained.finetuned:
                continue
            done, evaluation = trained.finetuned[one.label], self.evaluations.models[trained.planned.name][index]
            test = self.context.images(evaluation.ids)
            self.write_run(trained, index)
            if "evaluate" in self.stages:
                evaluate_model(one.model, done, test, self.study.evaluate, self.context, evaluation)
            if "explain" in self.stages:
                explain_model(one.model, done, test, self.study.explain, self.study.evaluate, evaluation)
                if index == 0:
                    open_explainer = partial(Explainer.of, one.model, self.study.evaluate, done, test)
                    key = explain_key(evaluation, self.study.explain)
                    write_recommended(open_explainer, test, evaluation.run, key=key)
                    write_pages(open_explainer, test, self.study.explain, evaluation.run, key=key)

    def write_run(self, trained: TrainedModel, index: int) -> None:
        """Writes what the run folder of a fine-tuning needs to be used without the study."""
        planned = trained.planned
        one, evaluation = planned.finetunings[index], self.evaluations.models[planned.name][index]
        model, backbone = one.start.model, trained.pretrained[one.start.label]
        pretrained = {"pretrain": backbone} if model.pretrain is not None and backbone is not None else {}
        settings = {
            "study": self.study.name,
            "model": planned.name,
            "seed": one.seed,
            "settings": serialize.to_json(model),
            "evaluate": serialize.to_json(self.study.evaluate),
            # Embeddings and ranks in the folder belong to these settings if their mark has this key.
            "key": evaluation.key,
        }
        evaluation.run.write_settings(settings, one.manifest, pretrained | {"finetune": trained.finetuned[one.label]})

    def evaluate_frozen(self, trained: TrainedModel) -> None:
        """Ranks the test pairs by the frozen backbones, and probes these."""
        study, row = self.study, f"{trained.planned.name}-frozen"
        for number, start in enumerate(trained.planned.starts):
            pretrained, size = trained.pretrained[start.label], study.evaluate.geometry.size
            variables = cache(partial(initial_variables, start.model, pretrained, size=size, seed=study.seeds[0]))
            frozen = _FrozenWhenUsed(partial(self.open_frozen, start.model, variables))
            self.rank(frozen, self.evaluations.frozen[row][number])
            if number == 0 and row in self.evaluations.among_all:
                self.rank(frozen, self.evaluations.among_all[row])
            if self.probe is not None:
                probed = self.evaluations.probes[row][number]
                probe_frozen(start.model, variables, self.probe, probed.folder, key=probed.key)

    def open_frozen(self, model: Model, variables: Callable[[], Any]) -> System:
        """The frozen backbone of a model as a system."""
        return frozen_system(model, variables(), self.study.evaluate, self.context)

    def evaluate_systems(self) -> None:
        """Fits and ranks every system that is not a model, once a seed if it has a seed, each on its own fold."""
        for name, system in self.study.systems.items():
            seeded = seeded_systems(name, system, self.study.seeds)
            evaluations = self.evaluations.systems[name]
            for (_, one), manifest, evaluation in zip(seeded, self.manifests, evaluations, strict=False):
                self.rank(one, evaluation, manifest)
            if name in self.evaluations.among_all:
                self.rank(system, self.evaluations.among_all[name])

    def rank(self, system: System, evaluation: Evaluation, manifest: Manifest | None = None) -> None:
        """Fits a system on the training and validation pairs of `manifest` (none if None), then ranks pairs with it."""
        parts = ([], []) if manifest is None else (manifest.train, manifest.validation)
        train, validation, test = (self.context.images(ids) for ids in (*parts, evaluation.ids))
        evaluate_system(evaluation, system, train, validation, test)

    def report(self, how: dict[str, Any]) -> None:
        """Writes the results and the report; `how` are the entries of `how_it_was_made` and the code's hashes."""
        # See `prepare_report`.
        from tll_jax.report.html import write_report
        from tll_jax.report.table import results_markdown

        study, context, manifest = self.study, self.context, self.manifests[0]
        write_pictures(study, context, manifest)
        ranks = self.evaluations.ranks()
        results = collect(study, context, manifest, self.evaluations, ranks, self.sources) | how
        write_results(context.workdir, results, manifest.test, ranks)
        write_whole(context.workdir / "results.md", results_markdown(results))
        logger.info("report: %s", write_report(context.workdir, context.readers.workers))


def _import_figures(_: int) -> None:
    importlib.import_module("tll_jax.report.figures")


def _then(train: Callable[[], TrainedModel], evaluate: Callable[[TrainedModel], None]) -> None:
    """Evaluates what is trained first, unless it is."""
    evaluate(train())


def open_sources(study: Study, manifest: Manifest) -> dict[str, ImageSource]:
    """Opens the pretraining images of every model that pretrains.

    The test pairs' images are left out, unless a model has `sees_test_images`.
    """
    sources: dict[str, ImageSource] = {}
    opened: dict[str, ImageSource] = {}
    for name, model in study.models.items():
        if model.pretrain is None:
            continue
        held_out = frozenset() if model.pretrain.sees_test_images else frozenset(manifest.test)
        shortest_side = model.pretrain.geometry.shortest_side
        key = serialize.fingerprint([model.pretrain.images, model.pretrain.sees_test_images, shortest_side])
        if key not in opened:
            opened[key] = model.pretrain.images.open(held_out=held_out, shortest_side=shortest_side)
        sources[name] = opened[key]
    return sources


def how_it_was_made(trained: Sequence[TrainedModel], *, started: float, command: str) -> dict[str, Any]:
    """The results' entries on the run itself: command, date, hardware, versions and seconds a stage."""
    folders = {label: folder for one in trained for label, folder in one.folders.items()}
    seconds = {label: read_mark(folder, label.split()[0])["seconds"] for label, folder in folders.items()}
    return {
        "command": command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions(),
        "seconds": seconds | {"total": round(time.perf_counter() - started, 1)},
    }


def code_of(trained: Sequence[TrainedModel], evaluations: Evaluations) -> list[str]:
    """Hashes of the code that trained and ranked; several if the code changed between stages. See `code.py`."""
    marks = [read_mark(folder, label.split()[0]) for one in trained for label, folder in one.folders.items()]
    marks += [read_mark(one.folder, "evaluate") for seeds in evaluations.rows.values() for one in seeds if one.is_there]
    return sorted({mark.get("code", UNKNOWN) for mark in marks})


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    names = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "opencv-python-headless")
    return {"tll_jax": tll_jax.__version__} | {name: importlib.metadata.version(name) for name in names}
