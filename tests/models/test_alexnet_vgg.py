"""The trunks of LPIPS with their real weights compute what PyTorch computes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import references
from tll_jax.models.alexnet_vgg import AlexNet, Vgg16
from tll_jax.models.weights import AlexNetLpips, Vgg16Lpips, load_backbone, to_torch

TRUNKS = [("alexnet", AlexNet(), AlexNetLpips()), ("vgg16", Vgg16(), Vgg16Lpips())]


@pytest.mark.parametrize(("name", "backbone", "weights"), TRUNKS)
def test_every_tap_is_that_of_pytorch(name, backbone, weights):
    variables = load_backbone(backbone, weights)
    apply = jax.jit(partial(backbone.build(dtype=jnp.float32).apply, train=False))
    found = apply(variables, references.images(64, 64))
    references.assert_as_stored(found.stages, references.load(f"lpips_{name}")["summaries"], tolerance=1e-4)
    np.testing.assert_allclose(found.pooled, np.asarray(found.stages[-1]).mean((1, 2)), rtol=1e-4)
    assert len(found.stages) == backbone.num_stages == 5


@pytest.mark.parametrize(("backbone", "places"), [(AlexNet(), 10), (Vgg16(), 28)])
def test_names_are_those_of_torchvision(backbone, places):
    module, images = backbone.build(dtype=jnp.float32), jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), images, train=False))
    names = list(to_torch(jax.tree.map(lambda shape: np.zeros(shape.shape), shapes), backbone.torch_name))
    assert {"features.0.weight", "features.0.bias", f"features.{places}.weight"} < set(names)
    assert len(set(names)) == len(names) == {10: 10, 28: 26}[places]


def test_frozen_stages_get_no_gradient():
    module, images = AlexNet().build(dtype=jnp.float32), references.images(32, 32)
    variables = load_backbone(AlexNet(), AlexNetLpips())

    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.sum(module.apply({"params": params}, images, train=True, frozen_stages=3).pooled ** 2)

    gradients = gradient(variables["params"])
    moved = {name for name in gradients if any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(gradients[name]))}
    assert moved == {"stage3", "stage4"}
