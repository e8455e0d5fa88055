"""Every method that has a name, on a tiny network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.saliency import networks
from tll_jax.models.heads import Projection
from tll_jax.saliency.guided import guided_relu
from tll_jax.saliency.methods import baselines, make_methods
from tll_jax.saliency.side_by_side import explain_by
from tll_jax.saliency.targets import cosine

SIZE = 16
LEFT, RIGHT, *REFERENCES = networks.images(5, SIZE)
HEAD = Projection(widths=(4,))
METHODS = make_methods(size=SIZE, stage=1, references=jnp.stack(REFERENCES))


def make_network(activation):
    return networks.tiny_network(HEAD, activation=activation)


@pytest.fixture(scope="module")
def maps():
    """Of one pair both ways, by every method."""
    variables = networks.filled_variables(make_network(guided_relu), LEFT[None])
    left, right = jnp.stack([LEFT, RIGHT]), jnp.stack([RIGHT, LEFT])
    return explain_by(METHODS, make_network, variables, left, right, target=cosine)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_maps_of_the_images_that_swap_with_the_pair(name, maps):
    left, right = maps[name]
    assert left.shape == right.shape == (2, SIZE, SIZE)
    assert np.isfinite(left).all()
    assert left[0].std() > 0
    scale = np.abs(left).max()
    np.testing.assert_allclose(left[0], right[1], atol=1e-4 * scale)
    np.testing.assert_allclose(left[1], right[0], atol=1e-4 * scale)
    assert np.abs(left[0] - left[1]).max() > 0.05 * left[0].std()


def test_no_two_methods_give_the_same_map(maps):
    names = list(maps)
    for number, name in enumerate(names):
        for other in names[:number]:
            assert not np.allclose(maps[name].left, maps[other].left, rtol=1e-3), (name, other)


def test_methods_with_references_exist_only_with_them():
    without = make_methods(size=SIZE, stage=1)
    assert set(METHODS) - set(without) == {"expected-gradients", "integrated-gradients-mean"}
    assert set(without) < set(METHODS)
    assert set(baselines(size=SIZE, key=jax.random.key(0), references=None)) == {"gray", "black", "blurred", "noise"}


def test_heat_maps_with_nan_are_an_error_that_names_the_method():
    variables = networks.filled_variables(make_network(guided_relu), LEFT[None])
    variables = jax.tree.map(lambda leaf: leaf * jnp.nan, variables)
    methods = {"gradient": METHODS["gradient"]}
    with pytest.raises(ValueError, match="gradient gave a map with values that are no numbers"):
        explain_by(methods, make_network, variables, LEFT[None], RIGHT[None], target=cosine)
