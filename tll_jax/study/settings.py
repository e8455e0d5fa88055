"""The typed settings tree of a study, its validation, and its form as JSON.

Settings are plain dataclasses, so that `--config.dotted.field=value` can set them. Fields such as `objective`
hold values of the contracts in `contracts.py`; a config file imports and constructs them.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any, Literal, get_type_hints

from tll_jax.annotations import allowed, fits, of_entries, shown
from tll_jax.contracts import (
    Augment,
    Backbone,
    Geometry,
    Head,
    ImageSettings,
    Objective,
    Optimizer,
    PairSettings,
    SplitSettings,
    System,
    Weights,
)
from tll_jax.errors import InvalidValue
from tll_jax.serialize import NO_IDENTITY, renamed

logger = logging.getLogger(__name__)

LARGEST_SEED = 2**32 - 1
"""JAX takes a larger one for a smaller one, without a word."""


def _require(condition: bool, field_name: str, value: object, allowed: str) -> None:
    if not condition:
        raise InvalidValue(f"{field_name} is {value!r}; it must be {allowed}")


@dataclass(kw_only=True)
class Loop:
    """How long a training stage runs and what it leaves behind; all counts are optimizer steps."""

    num_steps: int
    batch_size: int
    log_every: int = field(default=20, metadata=NO_IDENTITY)
    save_every: int = field(default=200, metadata=NO_IDENTITY)
    evaluate_every: int = 0
    """0: evaluate at the end only."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute precision; parameters, statistics and losses stay float32."""
    rematerialize: bool = field(default=False, metadata=NO_IDENTITY)
    """Whether the backward pass computes what lies between the backbone's stages again instead of keeping it: equal
    results, less memory, about a third more work."""
    microbatches: int = 1
    """Into how many parts a batch is cut, one after the other; only where that changes nothing but memory, which is
    where each image has a loss of its own and no layer looks at the batch."""
    split_from: int = field(default=0, metadata=NO_IDENTITY)
    """Parameters of at least so many values, and what the optimizer keeps of them, are split over the devices; 0 for
    none: every device has all."""

    def check(self) -> None:
        for name in ("num_steps", "batch_size", "log_every", "save_every"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.split_from >= 0, "split_from", self.split_from, "0 (nothing is split) or more")
        _require(
            self.microbatches >= 1 and self.batch_size % self.microbatches == 0,
            "microbatches",
            self.microbatches,
            f"a divisor of batch_size, {self.batch_size}",
        )
        _require(self.evaluate_every >= 0, "evaluate_every", self.evaluate_every, "0 (end only) or more")


@dataclass(kw_only=True)
class Pretrain:
    """The first stage: a backbone learns from single images."""

    images: ImageSettings
    objective: Objective
    geometry: Geometry
    augment_a: Augment
    augment_b: Augment
    optimizer: Optimizer
    loop: Loop
    seed: int = 0
    sees_test_images: bool = False
    """Whether images of the test pairs, never their pairing, may be pretrained on; the results say which."""

    @property
    def augments(self) -> tuple[Augment, Augment]:
        """Of each view."""
        return self.augment_a, self.augment_b

    def check(self) -> None:
        _require(0 <= self.seed <= LARGEST_SEED, "seed", self.seed, f"from 0 to {LARGEST_SEED}")


@dataclass(kw_only=True)
class Finetune:
    """The second stage: the Siamese network learns from look-alike pairs."""

    objective: Objective
    geometry: Geometry
    augment: Augment
    optimizer: Optimizer
    loop: Loop
    frozen_stages: int = 0
    """How many stages of the backbone stay as they are, counted from the stem."""

    @property
    def augments(self) -> tuple[Augment, Augment]:
        """Of each side."""
        return self.augment, self.augment

    def check(self) -> None:
        _require(self.frozen_stages >= 0, "frozen_stages", self.frozen_stages, "0 or more")


@dataclass(kw_only=True)
class Arm:
    """One way to an embedding: a backbone, where it starts (pretrained here, from ready-made weights, or from random
    ones), a head, fine-tuning."""

    backbone: Backbone
    head: Head
    pretrain: Pretrain | None = None
    weights: Weights | None = None
    finetune: Finetune | None = None

    def check(self) -> None:
        both = self.pretrain is not None and self.weights is not None
        _require(not both, "weights", self.weights, "None in an arm that pretrains; leave out one of the two")
        stages = self.backbone.num_stages
        highest = max(getattr(self.head, "stages", ()), default=0)
        _require(highest < stages, "head.stages", highest, f"at most {stages - 1}, the last stage of this backbone")
        if self.finetune is None:
            return
        _require(
            self.finetune.frozen_stages <= stages,
            "finetune.frozen_stages",
            self.finetune.frozen_stages,
            f"at most {stages}, the stages of this backbone",
        )


@dataclass(kw_only=True)
class Evaluate:
    """How images are embedded when systems are judged."""

    geometry: Geometry
    batch_size: int = 256

    def check(self) -> None:
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")


@dataclass(kw_only=True)
class Probe:
    """Images with classes that frozen backbones are asked about: by the votes of the nearest training images, also
    while they pretrain (every `loop.evaluate_every` steps), and by a linear classifier on their pooled features."""

    train: ImageSettings
    test: ImageSettings
    geometry: Geometry
    batch_size: int = 256
    num_neighbors: int = 20
    weight_decay: float = 1e-3
    """Of the linear classifier."""

    def check(self) -> None:
        for name in ("batch_size", "num_neighbors"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")


@dataclass(kw_only=True)
class Explain:
    """For how many matched pairs of best and of worst rank saliency maps are made."""

    num_best: int = 6
    num_worst: int = 4
    num_pages: int = 0
    """Of how many of them, best and worst in turn, the first seed of each arm gets a page with all methods."""

    def check(self) -> None:
        _require(self.num_pages >= 0, "num_pages", self.num_pages, "0 or more")
        _require(self.num_best >= 0, "num_best", self.num_best, "0 or more")
        _require(self.num_worst >= 0, "num_worst", self.num_worst, "0 or more")


@dataclass(kw_only=True)
class Study:
    """Arms that share pairs, split and evaluation, judged side by side with systems that need no training."""

    name: str
    pairs: PairSettings
    split: SplitSettings
    arms: dict[str, Arm]
    systems: dict[str, System]
    evaluate: Evaluate
    explain: Explain = field(default_factory=Explain)
    probe: Probe | None = None
    seeds: tuple[int, ...] = (0,)
    """Fine-tuning seeds: they vary initialization, sampling and the validation fold, never the test pairs."""
    num_pretrainings: int = 1
    """How often each arm pretrains, with seeds from `pretrain.seed` on; the fine-tuning seeds take turns on them."""
    planned: tuple[tuple[str, str], ...] = ()
    """Comparisons named beforehand; Holm's correction is over these and the metrics compared."""
    faces_included: tuple[str, ...] = ()
    """Systems and frozen arms that fit nothing, to be ranked among all pairs as well, pairs with faces included."""
    num_threads: int | None = field(default=None, metadata=NO_IDENTITY)
    """Threads that read pictures where no workers do: by default two beside a training and one a core for evaluation;
    0 makes each batch when it is asked for."""
    num_workers: int | None = field(default=None, metadata=renamed("num_processes", identity=False))
    """Worker processes that read pictures, for all stages: by default none on a CPU, or where `num_threads` is set, and
    on accelerators enough to feed them, at most one for each core but one; 0 for none. Each keeps up to 512 MiB of
    decoded pictures. Results are the same with any number."""
    num_processes: InitVar[int | None] = None

    def __post_init__(self, num_processes: int | None) -> None:
        if num_processes is not None:
            tell_renamed("num_processes", "num_workers", "config")
            self.num_workers = num_processes

    def check(self) -> None:
        possible = bool(self.seeds) and all(0 <= seed <= LARGEST_SEED for seed in self.seeds)
        _require(possible, "seeds", self.seeds, f"at least one whole number, from 0 to {LARGEST_SEED}")
        _require(len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "distinct")
        most = len(self.seeds)
        _require(
            1 <= self.num_pretrainings <= most, "num_pretrainings", self.num_pretrainings, f"1 to {most}, the seeds"
        )
        for name in ("num_threads", "num_workers"):
            value = getattr(self, name)
            _require(value is None or value >= 0, name, value, "0 or more")
        clash = sorted(set(self.arms) & set(self.systems))
        _require(not clash, "arms", clash, "named unlike every system")
        for name in (*self.arms, *self.systems):
            allowed = name.replace("-", "").replace("_", "").isalnum()
            _require(allowed, "a name in arms or systems", name, "letters, digits, - and _")
        rows = set(self.rows())
        for pair in self.planned:
            unknown = sorted(set(pair) - rows)
            _require(not unknown, "planned", unknown, f"names of rows: {', '.join(sorted(rows))}")

        fixed = [*self.systems, *(f"{name}-frozen" for name in self.arms)]
        unknown = sorted(set(self.faces_included) - set(fixed))
        _require(not unknown, "faces_included", unknown, f"names of systems or frozen arms: {', '.join(fixed)}")

    def rows(self) -> list[str]:
        """The names of the systems that will stand in the results table, chance aside."""
        finetuned = (name for name, arm in self.arms.items() if arm.finetune is not None)
        return [*self.systems, *(f"{name}-frozen" for name in self.arms), *finetuned]


def tell_renamed(old: str, new: str, where: str) -> None:
    """Warns that a field goes by another name, and by the old one for this release."""
    logger.warning("%s.%s is now called %s; the old name works in this release and not in the next", where, old, new)


def validate(settings: Any, *, path: str = "config") -> None:
    """Refuses values that do not fit the annotations of their fields, then calls `check` on every settings value of the
    tree, which so can rely on them.

    Raises:
      ValueError: names the dotted path, the value and what is allowed.
    """
    refuse_unfit(settings, path=path)
    _check(settings, path=path)


def refuse_unfit(value: Any, annotation: Any = Any, *, path: str) -> None:
    """Raises ValueError where `value`, or one below it, does not fit the annotation of its field, or is nothing that
    settings can hold."""
    if isinstance(value, type):
        raise InvalidValue(f"{path} is the class {value.__name__}; write {value.__name__}(...)")
    entries = of_entries(annotation)
    if isinstance(value, Mapping) and entries is not None:
        names = [name for name in value if not isinstance(name, str)]
        _require(not names, f"a name in {path}", next(iter(names), None), "a string")
        annotations = dict.fromkeys(value, entries)
    elif fits(value, annotation):
        annotations = field_annotations(value)
    else:
        raise InvalidValue(f"{path} is {shown(value)}; it must be {allowed(annotation)}")
    plain = value is None or isinstance(value, str | bool | int | float | tuple | list | Mapping)
    if not plain and not dataclasses.is_dataclass(value):
        raise InvalidValue(f"{path} is {shown(value)}; settings hold numbers, strings, tuples, dicts and dataclasses")
    for name, child in _children(value):
        refuse_unfit(child, annotations.get(name, Any), path=f"{path}.{name}")


def field_annotations(settings: Any) -> dict[str, Any]:
    """Annotations of the fields of a dataclass, by name; empty for other values."""
    if not dataclasses.is_dataclass(settings):
        return {}
    entries = {entry.name: entry.type for entry in dataclasses.fields(settings) if entry.init}
    if not any(isinstance(annotation, str) for annotation in entries.values()):
        return entries
    try:
        hints = get_type_hints(type(settings))
    except Exception:
        # Names that only a type checker sees: nothing is known of the fields.
        hints = {}
    return {name: hints.get(name, Any) for name in entries}


def _check(settings: Any, *, path: str) -> None:
    if hasattr(settings, "check"):
        try:
            settings.check()
        except ValueError as error:
            raise InvalidValue(f"{path}: {error}") from error
    for name, child in _children(settings):
        _check(child, path=f"{path}.{name}")


def separate(settings: Any) -> Any:
    """The same settings, with no dataclass or dict in two places: what is set in one place changes no other."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return dataclasses.replace(settings, **{name: separate(child) for name, child in _children(settings)})
    if isinstance(settings, Mapping):
        return {name: separate(child) for name, child in settings.items()}
    if isinstance(settings, tuple | list):
        return type(settings)(map(separate, settings))
    return settings


def _children(settings: Any) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(settings):
        for entry in dataclasses.fields(settings):
            if entry.init:
                yield entry.name, getattr(settings, entry.name)
    elif isinstance(settings, Mapping):
        yield from settings.items()
    elif isinstance(settings, tuple | list):
        yield from ((str(i), child) for i, child in enumerate(settings))
