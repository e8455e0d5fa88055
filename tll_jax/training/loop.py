"""The training loop: batches in, checkpoints and metric records out; it can be stopped and goes on exactly."""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm
from jax.sharding import Mesh

from tll_jax import processes
from tll_jax.config import Loop
from tll_jax.contracts import Evaluator
from tll_jax.devices import batch_sharded, place, split_from, to_devices
from tll_jax.errors import FileProblem, Interrupted, NotFinite
from tll_jax.files import write_arrays, write_json
from tll_jax.training import records
from tll_jax.training.checkpoint import Checkpoints
from tll_jax.training.signals import stop_request
from tll_jax.training.state import TrainState
from tll_jax.training.step import Step

logger = logging.getLogger(__name__)

MAX_STEPS_IN_FLIGHT = 2
"""How far the host may run ahead of the device: enough to hide its work, few enough to bound memory."""


def train(
    step: Step,
    state: TrainState,
    make_batches: Callable[[int], Iterator[Any]],
    *,
    settings: Loop,
    folder: Path,
    mesh: Mesh,
    label: str,
    evaluator: Evaluator | None = None,
    watched: str = "",
    warn: Callable[[Mapping[str, float]], str | None] = lambda _: None,
) -> TrainState:
    """Runs to `settings.num_steps`, from the newest checkpoint in `folder` that leads to the end of an undisturbed run.

    Args:
      make_batches: the host batches from a given step on; a function of the step alone.
      evaluator: `variables -> metrics`, called every `evaluate_every` steps and at the end.
      watched: the metric whose largest value marks the best checkpoint; without it the last one is the best.
      warn: looks at logged metrics and returns a warning, or None.

    Returns:
      The best state.

    Raises:
      Interrupted: a signal asked to stop; the state is saved.
      OSError: a checkpoint could not be written.
      FloatingPointError: the loss was not finite; names the step and the file that keeps its batch.
    """
    checkpoints = Checkpoints(folder / "checkpoints")
    # The step reuses the memory of the state it is given; the caller's arrays outlive that.
    state = place(jax.tree.map(np.array, state), split_from(state, settings.split_from, mesh))
    state, best = _go_on(checkpoints, state, folder / "metrics.jsonl", settings, watched=watched, label=label)
    start = int(state.step)
    log = records.Records(folder / "metrics.jsonl", start_step=start)
    if start:
        logger.info("%s: going on at step %d of %d", label, start, settings.num_steps)
    sharding = batch_sharded(mesh)
    batches = make_batches(start)
    is_shown = sys.stderr.isatty() and processes.is_first()
    bar = tqdm.tqdm(total=settings.num_steps, initial=start, desc=label, unit="step", disable=not is_shown)
    in_flight: list[jax.Array] = []
    waited, since, since_step = 0.0, time.perf_counter(), start
    warned: set[str] = set()
    batch: Any = None
    try:
        with stop_request() as stop:
            for done in range(start + 1, settings.num_steps + 1):
                before = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - before
                state, metrics = step(state, to_devices(batch, sharding))
                in_flight.append(metrics["loss"])
                if len(in_flight) > MAX_STEPS_IN_FLIGHT:
                    in_flight.pop(0).block_until_ready()
                bar.update()
                stopping = stop.is_due()
                at_end = done == settings.num_steps
                logs = at_end or done % settings.log_every == 0
                evaluates = evaluator is not None and (
                    at_end or (settings.evaluate_every > 0 and done % settings.evaluate_every == 0)
                )
                saves = at_end or evaluates or stopping or done % settings.save_every == 0
                if logs or saves:
                    _stop_if_not_finite(state, make_batches, folder)
                if logs:
                    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                    now = time.perf_counter()
                    images = 2 * settings.batch_size * (done - since_step)
                    values |= {
                        "seconds": round(now - since, 3),
                        "images_per_second": round(images / (now - since), 1),
                        "data_wait_share": round(waited / (now - since), 3),
                    }
                    waited, since, since_step = 0.0, now, done
                    log.write(done, values)
                    _show(bar, f"{label}: step {done} of {settings.num_steps}", values)
                    warning = warn(values) if processes.is_first() else None
                    if warning and warning not in warned:
                        warned.add(warning)
                        logger.warning("%s, step %d: %s", label, done, warning)
                paused = time.perf_counter()
                if evaluates:
                    assert evaluator is not None
                    scores = dict(evaluator(state.variables))
                    log.write(done, scores)
                    # An infinite one has no place in the records, and another start would not know of it.
                    if watched and math.isfinite(scores[watched]) and (best is None or scores[watched] > best[1]):
                        best = done, scores[watched]
                        checkpoints.save("best", state)
                if saves:
                    # After the evaluation: a run killed in between goes on from before it and evaluates again.
                    checkpoints.save("last", state)
                since += time.perf_counter() - paused
                if stopping and not at_end:
                    checkpoints.finish()
                    raise Interrupted(
                        f"{label} stopped by {stop.signal_name} at step {done} of {settings.num_steps}; "
                        "the state is saved: the same command goes on from there"
                    )
        if best is None or best[0] == int(state.step):
            checkpoints.finish()
            return state
        best_state = checkpoints.restore("best", state, best[0])
        if best_state is None:
            raise FileProblem(
                f"the best checkpoint of {label}, of step {best[0]}, is gone from {checkpoints.folder}: run the same "
                "command again, which trains from the newest state before it"
            )
        return best_state
    finally:
        bar.close()
        # Worker processes have batches in shared memory, which must be given back before this process ends.
        batch = None
        if hasattr(batches, "close"):
            batches.close()
        checkpoints.close()


def _go_on(
    checkpoints: Checkpoints, target: TrainState, log: Path, settings: Loop, *, watched: str, label: str
) -> tuple[TrainState, tuple[int, float] | None]:
    """The newest state that leads to the end of an undisturbed run, with the step and the value of the best before it.

    Of such a state all records are there, and the best state so far either can still be read or was followed by a
    better one, which the run comes by again. The best state is a start like any other. Where none is left, it is
    `target`, the state before the first step.
    """
    kept = sorted(((step, kind) for kind in ("best", "last") for step in checkpoints.steps(kind)), reverse=True)
    found = records.read(log) if processes.is_first() else []
    known = [
        (_has_records(found, step, settings, watched), records.best([r for r in found if r["step"] <= step], watched))
        for step, _ in kept
    ]
    for (step, kind), (has_records, best) in zip(kept, processes.from_first(known), strict=True):
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
    if kept and processes.is_first():
        logger.warning("%s: training again from the beginning", label)
    return target, None


def _is_kept(checkpoints: Checkpoints, best: int, step: int, target: TrainState) -> bool:
    """Whether a run from `step` will have the best state of the steps before, of step `best`, if it needs it."""
    return max(checkpoints.steps("best"), default=0) > step or checkpoints.restore("best", target, best) is not None


def _has_records(found: Sequence[Mapping[str, Any]], step: int, settings: Loop, watched: str) -> bool:
    """Whether nothing is missing of the records up to `step`; the last of each sort stand for those before."""
    at_end = step == settings.num_steps
    logged = step if at_end else step - step % settings.log_every
    evaluated = step if at_end else step - step % settings.evaluate_every if settings.evaluate_every else 0
    return (logged == 0 or any(r["step"] == logged and "loss" in r for r in found)) and (
        not watched or evaluated == 0 or any(r["step"] == evaluated and watched in r for r in found)
    )


def _show(bar: tqdm.tqdm, where: str, values: Mapping[str, float]) -> None:
    shown = (
        f"loss {values['loss']:.4g}, {values['images_per_second']:.0f} images/s, "
        f"{values['data_wait_share']:.0%} waiting for data"
    )
    if bar.disable:
        logger.info("%s, %s", where, shown)
    else:
        bar.set_postfix_str(shown)


def _stop_if_not_finite(state: TrainState, make_batches: Callable[[int], Iterator[Any]], folder: Path) -> None:
    bad = int(state.first_nonfinite)
    if bad < 0:
        return
    # The data order is a function of the step, so the batch need not have been kept: it is made again.
    batch = next(make_batches(bad))
    # Of several processes each keeps its own rows.
    part = f"-process-{jax.process_index()}" if processes.count() > 1 else ""
    path = folder / f"nonfinite-step-{bad + 1}{part}.npz"
    write_arrays(path, compressed=True, **batch._asdict())
    write_json(folder / f"nonfinite{part}.json", {"step": bad + 1, "batch": path.name})
    raise NotFinite(
        f"the loss of step {bad + 1} is not finite; its batch is kept in {path}. Lower the learning rate, lengthen "
        "the warm-up, or look at that batch; the last checkpoint is from before it"
    )
