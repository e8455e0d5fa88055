"""The keys of a study: hashes of all that determines the numbers of a stage, an evaluation or an explanation.

A stage is skipped, and ranks are read, only where the mark of what was made earlier has the present key.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tll_jax import serialize
from tll_jax.data.splits import Manifest
from tll_jax.errors import InvalidValue
from tll_jax.models.weights import content_of, weights_in
from tll_jax.renamed import present_place
from tll_jax.serialize import Fingerprint
from tll_jax.study.folder import RunFolder, is_done, is_of, mark_done, read_mark
from tll_jax.study.settings import Explain, Model
from tll_jax.typing import Geometry, ImageSource, PairSource

FORMAT = 3
"""Version number in every stage's hash: raised when equal settings come to mean another computation."""


def pretrain_key(model: Model, images: ImageSource | None) -> Fingerprint | None:
    """The hash of the backbone's initial weights (weight file or pretraining); None for random weights.

    Images and weight files count by their content, not by their paths.
    """
    if model.weights is not None:
        return serialize.fingerprint(
            {"format": FORMAT, "backbone": model.backbone, "weights": content_of(model.weights)}
        )
    if model.pretrain is None or images is None:
        return None
    settings = {field.name: getattr(model.pretrain, field.name) for field in dataclasses.fields(model.pretrain)}
    return serialize.fingerprint(
        {"format": FORMAT, "backbone": model.backbone, "pretrain": settings | {"images": images.digest()}}
    )


def finetune_key(
    model: Model,
    pretrained: Fingerprint | None,
    manifest: Manifest,
    pairs: PairSource,
    geometry: Geometry,
    *,
    seed: int,
) -> Fingerprint:
    """The hash of a fine-tuning stage.

    Args:
      pretrained: key of the pretraining.
      geometry: of the evaluation, because ranking the validation pairs chooses the checkpoint, and the image size sets
        the shapes of a head on whole maps. The evaluation's batch size is left out: it changes rounding alone.
    """
    return serialize.fingerprint(
        {
            "format": FORMAT,
            "backbone": model.backbone,
            "head": model.head,
            "finetune": model.finetune,
            "evaluate": geometry,
            "pretrained": pretrained,
            "pairs": pairs.digest(),
            "groups": pairs.groups.tolist(),
            "train": tuple(manifest.train),
            "validation": tuple(manifest.validation),
            "seed": seed,
        }
    )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One ranking of pairs by one system: its run folder, its pairs, and the inputs that determine the ranks."""

    label: str
    """Name in messages."""
    folder: Path
    ids: Sequence[str]
    """Ids of the pairs, in the order of the ranks."""
    inputs: Mapping[str, Any]
    """Settings, keys and content hashes, by their names in messages."""

    @cached_property
    def fingerprints(self) -> dict[str, Fingerprint]:
        """Fingerprints of each input, of the pairs' ids, and of the content of the weight files in the settings."""
        held = [content_of(weights) for value in self.inputs.values() for weights in weights_in(value)]
        everything = {**self.inputs, "pairs ranked": tuple(self.ids), "files of weights": held}
        return {name: serialize.fingerprint(value) for name, value in everything.items()}

    @cached_property
    def key(self) -> Fingerprint:
        """The hash of everything that changes the ranks; ranks are marked with it, and reading checks the mark."""
        return serialize.fingerprint({"format": FORMAT, **self.fingerprints})

    @property
    def is_there(self) -> bool:
        """Whether there are ranks, of any key."""
        return self.run.rank_files[0].exists()

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folder)

    def mark(self, **facts: Any) -> None:
        """Marks the ranks in the folder as those of this key; written after them."""
        mark_done(self.folder, self.key, "evaluate", inputs=self.fingerprints, **facts)

    def check(self) -> None:
        """Refuses ranks that were made from other inputs.

        Raises:
          ValueError: names the inputs that differ, and the stage to run.
        """
        mark = read_mark(self.folder, "evaluate")
        if is_of(mark, self.key):
            return
        before = mark.get("inputs", {})
        now = {name: (value, value.former) for name, value in self.fingerprints.items()}
        differing = sorted(name for name in now.keys() | before.keys() if before.get(name) not in now.get(name, ()))
        if not mark:
            reason = "their evaluation was cut short"
        elif not before or not differing:
            reason = "another version of tll_jax made them"
        else:
            reason = f"made with other {' and '.join(map(_present_field, differing))}"
        raise outdated(f"the ranks of {self.label}", self.folder, reason, stage="evaluate")

    def read(self) -> np.ndarray:
        """Reads the ranks: int `[2, pairs]`, left to right and right to left.

        Raises:
          ValueError: the ranks are of other settings, data or pairs.
        """
        self.check()
        saved, path = self.run.ranks(), self.run.rank_files[0]
        if saved.ids != list(self.ids):
            raise InvalidValue(
                f"{path} does not hold the ranks of the {len(self.ids)} pairs that {self.label} is evaluated on, in "
                f"their order: delete it, and add evaluate to --stages"
            )
        return np.stack([saved.left_to_right, saved.right_to_left])


def _present_field(label: str) -> str:
    """The present name of an input whose label in the key is a former one, such as "config.arms.barlow.backbone"."""
    root, *place = label.split(".", 2)
    return label if len(place) < 2 else f"{root}.{present_place('/'.join(place)).replace('/', '.')}"


def explain_key(evaluation: Evaluation, settings: Explain) -> Fingerprint:
    """The hash of the explanations of a model's pairs of best and of worst rank, and of their pages."""
    return serialize.fingerprint([evaluation.key, settings])


def check_explained(evaluation: Evaluation, settings: Explain) -> None:
    """Refuses explanations and pages in a run folder that were made from other ranks or settings.

    Raises:
      ValueError: names the run folder and the stage to run.
    """
    key = explain_key(evaluation, settings)
    for stage, is_there in evaluation.run.has_explanations().items():
        if is_there and not is_done(evaluation.folder, key, stage):
            reason = "made of other ranks, with another config.explain, or cut short"
            raise outdated(f"the explanations of {evaluation.label}", evaluation.folder, reason, stage="explain")


def read_probe(folder: Path, key: Fingerprint, label: str) -> dict[str, float] | None:
    """Accuracies that `probe_frozen` wrote into `folder`; None if there are none.

    Raises:
      ValueError: they are of other settings or data.
    """
    mark = read_mark(folder, "probe")
    if mark and not is_of(mark, key):
        reason = "made with another config.probe, or of other ranks"
        raise outdated(f"the accuracies of {label}", folder, reason, stage="evaluate")
    return mark.get("accuracy")


def outdated(what: str, folder: Path, reason: str, *, stage: str) -> InvalidValue:
    """The error for files in a study's folder that were made with other settings."""
    return InvalidValue(f"{what} in {folder} are not of these settings: {reason}. Add {stage} to --stages")
