"""Seconds from the call of a fine-tuning to the end of its first step, for four of a study in turn.

python benchmarks/second_finetuning.py [--out benchmarks/results/second_finetuning.json]

The models of configs/emoji.py start from zeros in place of pretrained weights, whose values no program depends on. The
first fine-tuning traces and compiles, the others should find everything there: counted are traces, and programs that
are compiled or loaded. One JSON line a fine-tuning.
"""

import argparse
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from harness import show, write_results

from tll_jax.config_files import load_study
from tll_jax.data.pipeline import Readers
from tll_jax.devices import make_mesh
from tll_jax.program import start_with_huge_pages
from tll_jax.serialize import Fingerprint
from tll_jax.study import train
from tll_jax.study.folder import Trained
from tll_jax.study.networks import Program, siamese
from tll_jax.training.state import initial_shapes

CONFIG = Path(__file__).parents[1] / "configs" / "emoji.py"
COUNTED = {"jaxpr_trace_duration": "traces", "backend_compile_duration": "programs"}


def measure(folder: Path) -> list[dict[str, Any]]:
    """One row a fine-tuning: two seeds of two models."""
    study = load_study(str(CONFIG))
    pairs = study.pairs.open()
    context = train.Context(workdir=folder, pairs=pairs, mesh=make_mesh(), readers=Readers(num_threads=2))
    manifest = study.split.make(pairs)
    counts: Counter[str] = Counter()
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: counts.update([event.rsplit("/", 1)[-1]])
    )
    rows = []
    for name in ("barlow", "classification"):
        model = study.models[name]
        assert model.finetune is not None
        model.finetune.loop.num_steps = 2
        for seed in range(2):
            shapes = initial_shapes(siamese(model), size=study.evaluate.geometry.size)
            variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
            pretrained = Trained(folder=folder, read=lambda variables=variables: variables)
            counts.clear()
            label = f"{name} seed {seed}"
            key = Fingerprint(label, former=label)
            start = train.Pretraining(label=name, model=model, key=None, frozen_folder="")
            one = train.Finetuning(label=label, model=model, seed=seed, key=key, start=start, manifest=manifest)
            seconds = first_step(partial(train.finetune, one, pretrained, study.evaluate, context))
            row = {"fine-tuning": label, "seconds_to_first_step": round(seconds, 3)}
            rows.append(row | {name: counts[event] for event, name in COUNTED.items()})
            show(rows[-1])
    return rows


def first_step(finetune: Any) -> float:
    """Seconds from the call of `finetune` to the end of its first step."""
    ended = []
    make_step = train.shared_program

    def watched(*arguments: Any, **keywords: Any) -> Any:
        program = make_step(*arguments, **keywords)

        def step(*given: Any) -> Any:
            results = program.step(*given)
            if not ended:
                jax.block_until_ready(results)
                ended.append(time.perf_counter())
            return results

        return Program(step=step, start=program.start, state_shapes=program.state_shapes)

    train.shared_program = watched  # type: ignore[assignment]
    started = time.perf_counter()
    try:
        finetune()
    finally:
        train.shared_program = make_step  # type: ignore[assignment]
    return ended[0] - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    start_with_huge_pages()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder))
    write_results(arguments.out, rows=rows)


if __name__ == "__main__":
    main()
