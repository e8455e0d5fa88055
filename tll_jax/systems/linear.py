"""Conversion of fitted systems to networks: a frozen backbone and one head, whose embeddings reproduce the scores."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from tll_jax.data.geometry import Resize
from tll_jax.errors import InvalidValue
from tll_jax.models.heads import ChainedHeads, Diagonal, GridProjection, LpipsVectors, Projection
from tll_jax.models.weights import load_backbone
from tll_jax.systems.adapter import Adapter
from tll_jax.systems.baselines import CosineDescriptor
from tll_jax.systems.csls import CSLS
from tll_jax.systems.ensemble import Ensemble
from tll_jax.systems.frozen_features import FrozenFeatures
from tll_jax.systems.local_features import Sift, Surf
from tll_jax.systems.lpips import Lpips
from tll_jax.systems.metric_learning import LinearMap
from tll_jax.systems.mirrored import Mirrored
from tll_jax.typing import Backbone, Geometry, Head, Weights


@dataclass(frozen=True, kw_only=True)
class FittedNetwork:
    """A fitted system as a network: settings, pretrained weights, and the variables of its head."""

    backbone: Backbone
    weights: Weights
    geometry: Geometry
    batch_size: int
    head: Head
    head_variables: dict[str, Any]
    """Variables of the head by collection ("params" and, if present, "batch_stats")."""

    def variables(self) -> dict[str, Any]:
        """Variables of the whole network; reads the pretrained weights."""
        found = {"batch_stats": {}, **load_backbone(self.backbone, self.weights)}
        return {
            name: {"backbone": values} | ({"head": self.head_variables[name]} if self.head_variables.get(name) else {})
            for name, values in found.items()
        }


@dataclass(frozen=True)
class _Affine:
    """Affine map `(x - center) @ kernel + bias` of a frozen backbone's features x; `x - center` without a kernel."""

    features: FrozenFeatures
    center: Float[np.ndarray, " dim"]
    """Mean of the training images' features, if known; contributions of positions are then relative to it."""
    kernel: Float[np.ndarray, "dim width"] | None = None
    bias: Any = 0.0

    def centered(self, mean: np.ndarray) -> "_Affine":
        if self.kernel is None:
            return replace(self, center=self.center + mean)
        return replace(self, bias=self.bias - mean)

    def mapped(self, kernel: np.ndarray, bias: Any = 0.0) -> "_Affine":
        kernel = np.asarray(kernel, np.float64)
        composed = kernel if self.kernel is None else self.kernel @ kernel
        return replace(self, kernel=composed, bias=(self.bias @ kernel if np.ndim(self.bias) else 0.0) + bias)


def fitted_network(system: Any) -> FittedNetwork:
    """Converts a fitted system to a network whose embeddings reproduce its ranking.

    Embeddings are compared by cosine, or by negative squared distance if they are not normalized. CSLS gives the
    network of its uncorrected cosines, and LPIPS the network of the vectors whose squared distance it is. A linear
    adapter is composed with the maps before it; another head is applied after them.

    Raises:
      InvalidValue: the system is not a network; the message gives the reason.
    """
    if isinstance(system, CSLS):
        return fitted_network(system.features)
    if isinstance(system, Lpips):
        return _lpips(system)
    if isinstance(system, Adapter):
        return _adapted(system)
    affine, normalize = _affine(system), True
    if isinstance(system, LinearMap):
        normalize = system.chosen.endswith(" cosine")
    elif isinstance(system, CosineDescriptor) and system.chosen == "centered":
        assert system.training_mean is not None
        affine = affine.centered(system.training_mean)
    head, params = _head(affine, normalize=normalize)
    return _network(affine, head, {"params": params})


def why_no_network(system: Any) -> str:
    """Reason why a system is not a network from an image to a vector; empty if it is one."""
    if isinstance(system, FrozenFeatures | Lpips):
        return ""
    if isinstance(system, LinearMap | Adapter | CSLS):
        return why_no_network(system.features)
    if isinstance(system, Mirrored):
        return "it adds up an image and its mirror image, each at unit length; take the system that it stands on"
    if isinstance(system, Ensemble):
        return f"its score is over all candidates at once; take one of its members: {', '.join(system.members)}"
    if isinstance(system, Sift | Surf):
        return "it counts matching keypoints, which has no gradient"
    if isinstance(system, CosineDescriptor):
        return "its descriptor is computed outside of JAX and has no gradient; take one on a frozen backbone"
    return "it stands on no frozen backbone"


def _affine(system: Any) -> _Affine:
    reason = why_no_network(system)
    if reason:
        raise InvalidValue(f"a {type(system).__name__} is no network: {reason}")
    if isinstance(system, FrozenFeatures):
        return _Affine(system, np.zeros(system.grid**2 * sum(system.stage_widths)))
    assert isinstance(system, LinearMap)
    if not system.chosen:
        raise InvalidValue(f"{type(system).__name__} has learned no map yet: call fit first")
    mean = np.asarray(system.training_mean, np.float64)
    return _affine(system.features).centered(mean).mapped(system.maps[system.chosen.rsplit(" ", 1)[0]])


def _adapted(system: Adapter) -> FittedNetwork:
    if system.variables is None:
        raise InvalidValue("Adapter is not trained yet: call fit first")
    affine, head = _affine(system.features), system.head
    variables = {name: values["head"] for name, values in system.variables.items() if "head" in values}
    params = variables.get("params", {})
    if isinstance(head, Projection) and len(head.widths) == 1:
        layer = params["linear1"]
        affine = affine.mapped(np.asarray(layer["kernel"]), np.asarray(layer["bias"]))
    elif isinstance(head, Diagonal):
        affine = affine.mapped(np.diag(np.maximum(np.asarray(params["weights"]), 0)))
    else:
        first, first_params = _head(affine, normalize=False)
        chained = {name: {"last": values} for name, values in variables.items()}
        chained["params"] = chained.get("params", {}) | {"first": first_params}
        return _network(affine, ChainedHeads(first=first, last=head), chained)
    composed, composed_params = _head(affine, normalize=True)
    return _network(affine, composed, {"params": composed_params})


def _lpips(system: Lpips) -> FittedNetwork:
    weights = {f"weights{number}": weights for number, weights in enumerate(system.channel_weights())}
    return FittedNetwork(
        backbone=system.trunk,
        weights=system.weights,
        geometry=Resize(size=system.size),
        batch_size=system.batch_size,
        head=LpipsVectors(),
        head_variables={"params": weights},
    )


def _network(affine: _Affine, head: Head, head_variables: dict[str, Any]) -> FittedNetwork:
    features = affine.features
    return FittedNetwork(
        backbone=features.backbone,
        weights=features.weights,
        geometry=features.geometry,
        batch_size=features.batch_size,
        head=head,
        head_variables=head_variables,
    )


def _head(affine: _Affine, *, normalize: bool) -> tuple[GridProjection, dict[str, np.ndarray]]:
    """Head of an affine map, and its parameters.

    If only directions count, the kernel is scaled to a mean square of 1, which half precision can represent.
    """
    features, kernel = affine.features, affine.kernel
    width = None if kernel is None else kernel.shape[1]
    head = GridProjection(
        stages=tuple(features.stages),
        grid=features.grid,
        width=width,
        standardize=features.standardize,
        normalize=normalize,
    )
    params: dict[str, np.ndarray] = {}
    if features.standardize:
        assert features.channels is not None, "fit measures the channels"
        params |= zip(("mean", "deviation"), features.channels, strict=True)
    params["center"] = _by_cells(features, affine.center[:, None])[..., 0]
    if kernel is not None:
        scale = 1 / np.sqrt(np.mean(kernel**2)) if normalize else 1.0
        params["kernel"] = _by_cells(features, kernel * scale)
        params["bias"] = np.broadcast_to(affine.bias * scale, kernel.shape[1:])
    return head, {name: np.asarray(values, np.float32) for name, values in params.items()}


def _by_cells(features: FrozenFeatures, rows: Float[np.ndarray, "dim width"]) -> Float[np.ndarray, "cells _ width"]:
    """Reorders feature rows from stage-major to one row of channels per grid cell."""
    num_cells = features.grid**2
    ends = np.cumsum([num_cells * width for width in features.stage_widths])
    parts = np.split(rows, ends[:-1])
    return np.concatenate([part.reshape(num_cells, -1, rows.shape[1]) for part in parts], axis=1)
