"""tll_jax finds images that look alike, and shows why.

Examples:
  >>> import tll_jax
  >>> model = tll_jax.load("runs/demo/models/barlow/seed-0")  # doctest: +SKIP
  >>> embeddings = model.embed(["one.png", "other.png"])  # doctest: +SKIP
  >>> neighbors, scores = model.rank(queries, gallery, k=10)  # doctest: +SKIP
  >>> model.explain("one.png", "other.png").write("why")  # doctest: +SKIP

Modules and functions are imported when they are first used: `import tll_jax` imports neither JAX nor OpenCV.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tll_jax import augment, data, losses, models, objectives, ranking, saliency, statistics
    from tll_jax.study.load import LoadedModel, load
    from tll_jax.study.run import run
    from tll_jax.study.settings import Evaluate, Explain, Finetune, Loop, Model, Pretrain, Study

__version__ = "0.2.0"

__all__ = [
    "Evaluate",
    "Explain",
    "Finetune",
    "LoadedModel",
    "Loop",
    "Model",
    "Pretrain",
    "Study",
    "augment",
    "data",
    "load",
    "losses",
    "models",
    "objectives",
    "ranking",
    "run",
    "saliency",
    "statistics",
]

_MODULES = {"augment", "data", "losses", "models", "objectives", "ranking", "saliency", "statistics"}
_HOMES = dict.fromkeys(("Evaluate", "Explain", "Finetune", "Loop", "Model", "Pretrain", "Study"), "study.settings") | {
    "LoadedModel": "study.load",
    # Former name of Model.
    "Arm": "study.settings",
    "load": "study.load",
    "run": "study.run",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
