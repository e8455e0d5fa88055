"""The training loop, which writes checkpoints and metric records and resumes bit for bit after an interruption."""

import logging
import math
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh

from tll_jax import processes
from tll_jax.devices import batch_sharded, fsdp_shardings, place, platform_of
from tll_jax.errors import FileProblem, Interrupted, NotFinite
from tll_jax.files import write_arrays, write_json
from tll_jax.training import records
from tll_jax.training.checkpoint import Checkpoints
from tll_jax.training.feed import Feed
from tll_jax.training.pace import Pace, describe
from tll_jax.training.settings import Loop
from tll_jax.training.signals import stop_request
from tll_jax.training.state import TrainState
from tll_jax.training.step import Step
from tll_jax.typing import Evaluator

logger = logging.getLogger(__name__)

MAX_STEPS_IN_FLIGHT = 3
"""Steps that are dispatched and not done: enough to hide the host's work. On CPUs there is one, because XLA:CPU
allocates the buffers of a step when it is dispatched, and the host works on the same cores."""


@dataclass(kw_only=True)
class Training:
    """A training run and its folder."""

    step: Step
    make_batches: Callable[[int], Iterator[Any]]
    """step -> iterator of host batches from that step on; a function of the step only."""
    settings: Loop
    folder: Path
    mesh: Mesh
    label: str
    """Name of the run in messages."""
    evaluator: Evaluator | None = None
    """`variables -> metrics`, called every `evaluate_every` steps and at the end."""
    monitor: str = ""
    """Metric whose largest value selects the best checkpoint; if empty, the last one is the best."""
    warn: Callable[[Mapping[str, float]], str | None] = lambda _: None
    """Logged metrics -> warning, or None."""

    def run(self, state: TrainState) -> TrainState:
        """Train to `settings.num_steps`, from the newest checkpoint that gives the result of an uninterrupted run.

        Args:
          state: state before the first step; it is not modified.

        Returns:
          The best state by `monitor`.

        Raises:
          Interrupted: a signal requested a stop; the state is saved.
          OSError: a checkpoint could not be written.
          FloatingPointError: the loss is not finite; names the step and the file with its batch.
        """
        checkpoints = Checkpoints(self.folder / "checkpoints")
        try:
            # The step donates the memory of its state, but the caller's arrays must remain valid.
            state = place(jax.tree.map(np.array, state), fsdp_shardings(state, self.settings.fsdp_min_size, self.mesh))
            log = self.folder / "metrics.jsonl"
            state, best = _go_on(checkpoints, state, log, self.settings, monitor=self.monitor, label=self.label)
            if start := int(state.step):
                logger.info("%s: going on at step %d of %d", self.label, start, self.settings.num_steps)
            progress = _Progress(checkpoints=checkpoints, log=records.Records(log, start_step=start), best=best)
            state = self._train(state, progress)
            checkpoints.finish()
            return self._best_state(state, progress)
        finally:
            checkpoints.close()

    def _train(self, state: TrainState, progress: "_Progress") -> TrainState:
        """State after the last step."""
        start, num_steps = int(state.step), self.settings.num_steps
        pace = Pace(images_a_step=2 * self.settings.batch_size)
        in_flight: deque[jax.Array] = deque(maxlen=1 if platform_of(self.mesh) == "cpu" else MAX_STEPS_IN_FLIGHT)
        is_shown = sys.stderr.isatty() and processes.is_first()
        with (
            tqdm.tqdm(total=num_steps, initial=start, desc=self.label, unit="step", disable=not is_shown) as bar,
            closing(Feed(self.make_batches(start), batch_sharded(self.mesh))) as feed,
            stop_request() as stop,
        ):
            for done in range(start + 1, num_steps + 1):
                state, metrics = self.step(state, pace.next_batch(feed))
                pace.dispatched(metrics["loss"])
                in_flight.append(metrics["loss"])
                if len(in_flight) == in_flight.maxlen:
                    in_flight.popleft().block_until_ready()
                    if not in_flight:
                        pace.drained()
                bar.update()
                stopping = stop.is_due()
                evaluates = self.evaluator is not None and self._is_due(done, self.settings.evaluate_every)
                saves = evaluates or stopping or self._is_due(done, self.settings.save_every)
                logs = self._is_due(done, self.settings.log_every)
                if logs or saves:
                    self._stop_if_not_finite(state)
                    pace.drained()
                if logs:
                    self._log(done, metrics, pace, progress, bar)
                if saves:
                    with pace.paused():
                        if evaluates:
                            self._evaluate(done, state, progress)
                        # After the evaluation, so that a run killed in between resumes before it and evaluates again.
                        progress.checkpoints.save("last", state)
                if stopping:
                    progress.checkpoints.finish()
                    raise Interrupted(
                        f"{self.label} stopped by {stop.signal_name} at step {done} of {num_steps}; "
                        "the state is saved: the same command goes on from there"
                    )
        return state

    def _is_due(self, done: int, every: int) -> bool:
        return done == self.settings.num_steps or (every > 0 and done % every == 0)

    def _log(
        self, done: int, metrics: Mapping[str, jax.Array], pace: Pace, progress: "_Progress", bar: tqdm.tqdm
    ) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()} | pace.record()
        # `_has_records` reads log_every when a run resumes, possibly with another setting.
        progress.log.write(done, values | {"log_every": self.settings.log_every})
        shown = f"loss {values['loss']:.4g}, {describe(values)}"
        if bar.disable:
            logger.info("%s: step %d of %d, %s", self.label, done, self.settings.num_steps, shown)
        else:
            bar.set_postfix_str(shown)
        warning = self.warn(values) if processes.is_first() else None
        if warning and warning not in progress.warned:
            progress.warned.add(warning)
            logger.warning("%s, step %d: %s", self.label, done, warning)

    def _evaluate(self, done: int, state: TrainState, progress: "_Progress") -> None:
        assert self.evaluator is not None
        scores = dict(self.evaluator(state.variables))
        progress.log.write(done, scores)
        best, score = progress.best, scores[self.monitor] if self.monitor else math.nan
        # Scores that are not finite are null in the records, so a resumed run could not compare with them.
        if math.isfinite(score) and (best is None or score > best[1]):
            progress.best = done, score
            progress.checkpoints.save("best", state)

    def _best_state(self, state: TrainState, progress: "_Progress") -> TrainState:
        if progress.best is None or progress.best[0] == int(state.step):
            return state
        best = progress.checkpoints.restore("best", state, progress.best[0])
        if best is None:
            raise FileProblem(
                f"the best checkpoint of {self.label}, of step {progress.best[0]}, is gone from "
                f"{progress.checkpoints.folder}: run the same command again, which trains from the newest state "
                "before it"
            )
        return best

    def _stop_if_not_finite(self, state: TrainState) -> None:
        bad = int(state.first_nonfinite)
        if bad < 0:
            return
        # The data order is a function of the step, so the batch is made again.
        batch = next(self.make_batches(bad))
        # With several processes, each saves its own rows.
        part = f"-process-{jax.process_index()}" if processes.count() > 1 else ""
        path = self.folder / f"nonfinite-step-{bad + 1}{part}.npz"
        write_arrays(path, compressed=True, **batch._asdict())
        write_json(self.folder / f"nonfinite{part}.json", {"step": bad + 1, "batch": path.name})
        raise NotFinite(
            f"the loss of step {bad + 1} is not finite; its batch is kept in {path}. Lower the learning rate, lengthen "
            "the warm-up, or look at that batch; the last checkpoint is from before it"
        )


@dataclass(kw_only=True)
class _Progress:
    """Checkpoints, records and best score of a training run in progress."""

    checkpoints: Checkpoints
    log: records.Records
    best: tuple[int, float] | None
    """Step and score of the best evaluation so far."""
    warned: set[str] = field(default_factory=set)


def _go_on(
    checkpoints: Checkpoints, target: TrainState, log: Path, settings: Loop, *, monitor: str, label: str
) -> tuple[TrainState, tuple[int, float] | None]:
    """Newest state that gives the result of an uninterrupted run, and step and score of the best state up to it.

    All records up to such a state exist, and the best state up to it is readable, or a better one was saved later,
    which the run will reach again. Last and best states are both candidates. If there is none, the result is `target`,
    the state before the first step.
    """
    saved = sorted(((step, kind) for kind in ("best", "last") for step in checkpoints.steps(kind)), reverse=True)
    logged = records.read(log) if processes.is_first() else []
    known = [
        (_has_records(logged, step, settings, monitor), records.best([r for r in logged if r["step"] <= step], monitor))
        for step, _ in saved
    ]
    for (step, kind), (has_records, best) in zip(saved, processes.from_first(known), strict=True):
        lost = ""
        if not has_records:
            lost = f"records before it are missing from {log}"
        elif best is not None and best[0] < step and not _is_kept(checkpoints, best[0], step, target):
            lost = f"the best state before it, of step {best[0]}, is gone"
        if lost and processes.is_first():
            logger.warning("%s: cannot go on at step %d: %s", label, step, lost)
        state = None if lost else checkpoints.restore(kind, target, step)
        if state is None:
            continue
        if best is not None and best[0] == step and checkpoints.restore("best", target, step) is None:
            checkpoints.save("best", state)
        return state, None if best is None else (best[0], best[1])
    if saved and processes.is_first():
        logger.warning("%s: training again from the beginning", label)
    return target, None


def _is_kept(checkpoints: Checkpoints, best: int, step: int, target: TrainState) -> bool:
    """Whether a run resumed at `step` will have the best earlier state, of step `best`, if it needs it."""
    return max(checkpoints.steps("best"), default=0) > step or checkpoints.restore("best", target, best) is not None


def _has_records(logged: Sequence[Mapping[str, Any]], step: int, settings: Loop, monitor: str) -> bool:
    """Whether the records up to `step` are complete; only the last record of each kind is checked."""
    at_end = step == settings.num_steps
    evaluated = step if at_end else step - step % settings.evaluate_every if settings.evaluate_every else 0
    if monitor and evaluated > 0 and not any(r["step"] == evaluated and monitor in r for r in logged):
        return False
    logged = [r for r in logged if r["step"] <= step and "loss" in r]
    last = logged[-1] if logged else {"step": 0}
    if at_end:
        return bool(last["step"] == step)
    # Records of earlier versions lack log_every.
    every = last.get("log_every", settings.log_every)
    return bool(step < last["step"] - last["step"] % every + every)
