"""Model files from the trained models and fitted systems of a study."""

import dataclasses
from pathlib import Path
from typing import Any

from tll_jax import __version__, serialize
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.splits import Manifest
from tll_jax.errors import InvalidValue
from tll_jax.files import check_writable
from tll_jax.model_files import SUFFIX, ModelFile, is_model_file, model_path, write_model_file
from tll_jax.models.heads import LpipsVectors
from tll_jax.models.weights import WeightFile
from tll_jax.study.folder import RunFolder, read_settings
from tll_jax.study.learned import learned_in_study
from tll_jax.study.load import holds_weights, load_run
from tll_jax.study.model_file import fitted_tensors, network_settings
from tll_jax.study.settings import Evaluate, Model, Study

LICENSE = (
    "The file holds fitted numbers and no picture. Before you pass it on, ask those who hold the rights to the "
    "pictures that it was fitted on."
)
EMOJI_LICENSE = "Fitted on emoji of Noto (Apache-2.0) and Twemoji (CC BY 4.0), of which it holds no picture."


def fit(run: Path, out: Path) -> ModelFile:
    """Writes a trained model, or a fitted linear system on a frozen backbone, to a model file.

    The run folder of a system holds no fitted numbers, so the system is fitted again on the pairs of its study.

    Args:
      run: the run folder, `STUDY/models/<name>/seed-<k>` or `STUDY/systems/<name>`.
      out: ends in .safetensors.

    Raises:
      FileNotFoundError: the folder is not a run's, or what it needs is gone.
      InvalidValue: the system is no network, its study's pairs have changed, or `out` is not named .safetensors.
      MissingPackage: `tll_jax[find]` is not installed.
    """
    if out.suffix != SUFFIX:
        raise InvalidValue(f"--out is {out}; it must end in {SUFFIX}")
    check_writable(out)
    if is_model_file(model_path(run)):
        raise InvalidValue(f"{run} is a model file already; give the folder of a run")
    if holds_weights(run):
        raise InvalidValue(
            f"{run} holds pretrained weights, which commands such as tll find --model take as they are; give the "
            "folder of a run"
        )
    folder = RunFolder(run)
    model, evaluate, trained = load_run(run)
    if isinstance(model.head, LpipsVectors):
        raise InvalidValue(f"{run} is not written as a file: vectors of LPIPS are too long to search among")
    saved = serialize.from_json(read_settings(folder.study)["settings"])
    learned = learned_in_study(run)
    provenance = _provenance(saved, folder) | {"not_compared": learned.not_known}
    pictures = learned.hashes(getattr(saved.pairs, "duplicates", None))
    return write_network(out, model, evaluate, trained.variables, provenance=provenance, pictures=pictures)


def write_network(
    out: Path, model: Model, evaluate: Evaluate, variables: Any, *, provenance: dict[str, Any], pictures: dict[str, str]
) -> ModelFile:
    """Writes a network to a model file, without those weights that an installed package provides."""
    # Fine-tuned weights differ from the package's, and a user's own weight file may be missing on other machines.
    by_package = model.finetune is None and model.weights is not None and not isinstance(model.weights, WeightFile)
    if not by_package:
        model = dataclasses.replace(model, weights=None)
    tensors = fitted_tensors({name: dict(values) for name, values in variables.items()}, without_backbone=by_package)
    return write_model_file(
        out,
        network=network_settings(model, evaluate),
        provenance={"package_version": __version__, **provenance},
        tensors=tensors,
        pictures=pictures,
    )


def _provenance(saved: Study, run: RunFolder) -> dict[str, Any]:
    settings = saved.systems[run.name] if run.is_of_a_system else serialize.from_json(run.settings()["settings"])
    path = run.split()
    manifest = None if path is None else Manifest.load(path)
    counts = {} if manifest is None else {part: len(getattr(manifest, part)) for part in ("train", "validation")}
    return {
        "study": saved.name,
        "system": run.name,
        "seed": run.seed,
        "settings": serialize.to_json(settings),
        "pairs": serialize.to_json(saved.pairs),
        "split": serialize.to_json(saved.split),
        "counts": {f"{part}_pairs": count for part, count in counts.items()},
        "license": EMOJI_LICENSE if isinstance(saved.pairs, EmojiPairs) else LICENSE,
    }
