"""Conversion between networks and the content of model files."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from tll_jax import serialize
from tll_jax.errors import InvalidValue
from tll_jax.model_files import OF_PICTURES, ModelFile
from tll_jax.models.weights import content_of, load_backbone
from tll_jax.study.networks import siamese
from tll_jax.study.settings import Evaluate, Model
from tll_jax.training.state import initial_shapes

KERNEL_AXES = 3
"""Cells, channels and width: those of a `GridProjection`'s kernel, scaled to fit half precision."""


def network_settings(model: Model, evaluate: Evaluate) -> dict[str, Any]:
    """JSON of all settings that determine an embedding, for `ModelFile.network`.

    Weights that an installed package provides are named by it; those of a user's own file are copied into the model
    file instead.

    Raises:
      FileNotFoundError, ImportError: the pretrained weights are not there.
    """
    found = {
        "backbone": serialize.to_json(model.backbone),
        "head": serialize.to_json(model.head),
        "geometry": serialize.to_json(evaluate.geometry),
        "batch_size": evaluate.batch_size,
    }
    if model.weights is None:
        return found
    return found | {"weights": serialize.to_json(model.weights), "weights_sha256": content_of(model.weights)}


def fitted_tensors(variables: Any, *, without_backbone: bool) -> dict[str, np.ndarray]:
    """Variables by their paths, "params/head/kernel"; the kernel of a fitted map in half precision."""
    found = {}
    for name, values in traverse_util.flatten_dict(variables, sep="/").items():
        if not (without_backbone and name.split("/")[1] == "backbone"):
            found[name] = np.asarray(values)
    for name in ("params/head/kernel", "params/head/first/kernel"):
        if name in found and found[name].ndim == KERNEL_AXES:
            found[name] = found[name].astype(np.float16)
    return found


def open_model_file(file: ModelFile, *, trusted: Collection[str] = ()) -> tuple[Model, Evaluate, dict[str, Any]]:
    """The network of a model file, its evaluation settings (geometry, batch size), and its variables.

    Raises:
      ImportError: the package of its pretrained weights is not installed.
      InvalidValue: its settings are not of this version, its tensors not those of its network, or the pretrained
        weights not those that it was fitted on.
    """
    try:
        backbone, head, geometry = (
            serialize.from_json(file.network[name], trusted=trusted) for name in ("backbone", "head", "geometry")
        )
        model = Model(backbone=backbone, head=head)
        evaluate = Evaluate(geometry=geometry, batch_size=int(file.network["batch_size"]))
        weights = serialize.from_json(file.network.get("weights"), trusted=trusted)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidValue(f"{file.path} is not a model file that this version can read: {error}") from error
    tensors = {name: values for name, values in file.tensors.items() if name not in OF_PICTURES}
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(
        {name: np.asarray(values, np.float32) for name, values in tensors.items()}, sep="/"
    )
    if weights is not None:
        if content_of(weights) != file.network["weights_sha256"]:
            raise InvalidValue(
                f"{file.path} was fitted on other weights than those in {weights.find()}: install the version of the "
                "package that its metadata name"
            )
        for collection, values in load_backbone(backbone, weights).items():
            variables[collection]["backbone"] = values
    expected = jax.tree.map(lambda leaf: leaf.shape, initial_shapes(siamese(model), size=geometry.size))
    if expected != jax.tree.map(np.shape, variables):
        raise InvalidValue(f"{file.path} is damaged: its tensors are not those of its network")
    # Moved to the device once; host arrays would be copied there for every batch.
    return model, evaluate, jax.tree.map(jnp.asarray, variables)
