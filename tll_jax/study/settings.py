"""The settings of a study.

They are plain dataclasses, so that `--config.dotted.field=value` can set them. Fields such as `objective` hold values
of the contracts in `typing.py`; a config file imports and constructs them.
"""

from dataclasses import dataclass, field

from tll_jax.evaluation.settings import Probe
from tll_jax.models.weights import moved_weights
from tll_jax.renamed import first_class_names, with_first_names
from tll_jax.serialize import ADDED, NO_IDENTITY, renamed
from tll_jax.settings import LARGEST_SEED, require
from tll_jax.training.lora import Lora
from tll_jax.training.settings import Loop
from tll_jax.typing import (
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

__all__ = ["Evaluate", "Explain", "Finetune", "Loop", "Lora", "Model", "Pretrain", "Probe", "Study"]

__getattr__ = first_class_names(__name__, Arm="Model")


@dataclass(kw_only=True)
class Pretrain:
    """Pretraining: a backbone trained on single images."""

    images: ImageSettings
    objective: Objective
    geometry: Geometry
    augment_a: Augment
    augment_b: Augment
    optimizer: Optimizer
    loop: Loop
    seed: int = 0
    sees_test_images: bool = False
    """Whether pretraining may use images of the test pairs (never their pairing); noted in the results."""

    @property
    def augments(self) -> tuple[Augment, Augment]:
        """The augmentations of view a and view b."""
        return self.augment_a, self.augment_b

    def check(self) -> None:
        require(0 <= self.seed <= LARGEST_SEED, "seed", self.seed, f"from 0 to {LARGEST_SEED}")


@dataclass(kw_only=True)
class Finetune:
    """Fine-tuning: the Siamese network trained on look-alike pairs."""

    objective: Objective
    geometry: Geometry
    augment: Augment
    optimizer: Optimizer
    loop: Loop
    frozen_stages: int = 0
    """Number of frozen stages of the backbone, counted from the stem."""
    lora: Lora | None = field(default=None, metadata=ADDED)
    """Trains low-rank adapters (LoRA) in place of the backbone's own weights; None trains the weights."""

    @property
    def augments(self) -> tuple[Augment, Augment]:
        """The augmentations of the left and the right side."""
        return self.augment, self.augment

    def check(self) -> None:
        require(self.frozen_stages >= 0, "frozen_stages", self.frozen_stages, "0 or more")


@dataclass(kw_only=True)
class Model:
    """A model variant: backbone, initial weights (pretraining here, a weight file, or random), head, fine-tuning."""

    backbone: Backbone
    head: Head
    pretrain: Pretrain | None = None
    weights: Weights | None = None
    """A file of pretrained weights; by default the one in the backbone's settings, if any (see `from_weights`)."""
    finetune: Finetune | None = None

    def __post_init__(self) -> None:
        self.backbone, self.weights = moved_weights(self.backbone, self.weights)

    def check(self) -> None:
        both = self.pretrain is not None and self.weights is not None
        require(not both, "weights", self.weights, "None in a model that pretrains; leave out one of the two")
        stages = self.backbone.num_stages
        highest = max(getattr(self.head, "stages", ()), default=0)
        require(highest < stages, "head.stages", highest, f"at most {stages - 1}, the last stage of this backbone")
        if self.finetune is None:
            return
        require(
            self.finetune.frozen_stages <= stages,
            "finetune.frozen_stages",
            self.finetune.frozen_stages,
            f"at most {stages}, the stages of this backbone",
        )
        is_random = self.pretrain is None and self.weights is None
        require(
            self.finetune.lora is None or not is_random,
            "finetune.lora",
            self.finetune.lora,
            "None for a backbone that starts from random weights; give it weights, or pretrain it",
        )


@dataclass(kw_only=True)
class Evaluate:
    """Geometry and batch size with which images are embedded for evaluation."""

    geometry: Geometry
    batch_size: int = 256

    def check(self) -> None:
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")


@dataclass(kw_only=True)
class Explain:
    """Numbers of test pairs, of best and of worst rank, that get saliency maps."""

    num_best: int = 6
    num_worst: int = 4
    num_pages: int = 0
    """Number of those pairs, best and worst in turn, that get a page with all methods, for the first seed of each
    model."""

    def check(self) -> None:
        require(self.num_pages >= 0, "num_pages", self.num_pages, "0 or more")
        require(self.num_best >= 0, "num_best", self.num_best, "0 or more")
        require(self.num_worst >= 0, "num_worst", self.num_worst, "0 or more")


@with_first_names
@dataclass(kw_only=True)
class Study:
    """A study: models that share pairs, split and evaluation, compared with systems that need no network training."""

    name: str
    pairs: PairSettings
    split: SplitSettings
    models: dict[str, Model] = field(default_factory=dict, metadata=renamed("arms"))
    systems: dict[str, System]
    evaluate: Evaluate
    explain: Explain = field(default_factory=Explain)
    probe: Probe | None = None
    seeds: tuple[int, ...] = (0,)
    """Fine-tuning seeds: they vary initialization, sampling and the validation fold, never the test pairs."""
    num_pretrainings: int = 1
    """Number of pretrainings of each model, with seeds `pretrain.seed`, `pretrain.seed + 1`, ...; fine-tuning i starts
    from pretraining i modulo this number."""
    planned: tuple[tuple[str, str], ...] = ()
    """Planned comparisons, pairs of rows; Holm's correction is over these times the metrics compared."""
    faces_included: tuple[str, ...] = ()
    """Systems without fitted parameters and frozen models ("<name>-frozen") to rank among all pairs as well, those with
    faces included."""
    num_threads: int | None = field(default=None, metadata=NO_IDENTITY)
    """Threads that read pictures if no worker processes do: by default two during training and one a core during
    evaluation; 0 makes each batch synchronously."""
    num_workers: int | None = field(default=None, metadata=renamed("num_processes", identity=False))
    """Worker processes that read pictures, for all stages: by default none on a CPU or if `num_threads` is set, and on
    accelerators up to the number of cores minus one. Each caches up to 512 MiB of decoded pictures. The number does not
    change results."""

    def check(self) -> None:
        possible = bool(self.seeds) and all(0 <= seed <= LARGEST_SEED for seed in self.seeds)
        require(possible, "seeds", self.seeds, f"at least one whole number, from 0 to {LARGEST_SEED}")
        require(len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "distinct")
        most = len(self.seeds)
        require(
            1 <= self.num_pretrainings <= most, "num_pretrainings", self.num_pretrainings, f"1 to {most}, the seeds"
        )
        for name in ("num_threads", "num_workers"):
            value = getattr(self, name)
            require(value is None or value >= 0, name, value, "0 or more")
        clash = sorted(set(self.models) & set(self.systems))
        require(not clash, "models", clash, "named unlike every system")
        for name in (*self.models, *self.systems):
            allowed = name.replace("-", "").replace("_", "").isalnum()
            require(allowed, "a name in models or systems", name, "letters, digits, - and _")
        rows = set(self.rows())
        for pair in self.planned:
            unknown = sorted(set(pair) - rows)
            require(not unknown, "planned", unknown, f"names of rows: {', '.join(sorted(rows))}")

        fixed = [*self.systems, *(f"{name}-frozen" for name in self.models)]
        unknown = sorted(set(self.faces_included) - set(fixed))
        require(not unknown, "faces_included", unknown, f"names of systems or frozen models: {', '.join(fixed)}")

    def rows(self) -> list[str]:
        """Names of the rows of the results table, without chance."""
        finetuned = (name for name, model in self.models.items() if model.finetune is not None)
        return [*self.systems, *(f"{name}-frozen" for name in self.models), *finetuned]
