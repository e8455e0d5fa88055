"""Any Flax module as a function that can be entered behind a layer by its path."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.saliency import networks
from tll_jax import saliency
from tll_jax.errors import UserError
from tll_jax.models.heads import Projection
from tll_jax.saliency import EmbeddedScore, ModuleEmbedding, NetworkEmbedding
from tll_jax.saliency.methods import inapplicable, make_methods

SIZE = 8
(IMAGE,) = networks.images(1, SIZE)


class Encoder(nn.Module):
    """Maps of 4 x 4 positions, then tokens: one without a place, and the 16."""

    @nn.compact
    def __call__(self, images):
        maps = nn.relu(nn.Conv(3, (2, 2), 2, name="convolution")(images))
        first = jnp.ones((len(maps), 1, 3))
        return nn.Dense(4, name="mix")(jnp.concatenate([first, maps.reshape(len(maps), -1, 3)], axis=1))


class Foreign(nn.Module):
    """A network of nobody here: its call has an argument of its own, and it returns a dict."""

    @nn.compact
    def __call__(self, images, deterministic):
        tokens = Encoder(name="encoder")(images)
        twice = nn.Dense(4, name="twice")
        tokens = twice(twice(tokens))
        return {"logits": nn.Dense(2, name="last")(jnp.mean(tokens, axis=1)), "other": deterministic}


@pytest.fixture(scope="module")
def embed():
    module = Foreign()
    variables = module.init(jax.random.key(0), IMAGE[None], deterministic=True)
    return ModuleEmbedding(
        module=module, variables=variables, select=lambda found: found["logits"], options={"deterministic": True}
    )


def test_maps_and_tokens_of_any_module_can_be_replaced(embed):
    for layer, shape in (("encoder/convolution", (4, 4, 3)), ("encoder/mix", (4, 4, 4)), ("encoder", (4, 4, 4))):
        maps, rest = embed.split(IMAGE, layer)
        assert maps.shape == shape
        np.testing.assert_allclose(rest(maps), embed(IMAGE), rtol=1e-5)
        assert not np.allclose(rest(maps + 1), embed(IMAGE))
    # The token without a place is not among the maps: they are all that a change of the image moves.
    first = embed.split(jnp.zeros_like(IMAGE), "encoder/mix")[1]
    np.testing.assert_allclose(first(embed.split(IMAGE, "encoder/mix")[0]), embed(IMAGE), rtol=1e-5)


def test_cams_and_attributions_take_a_path(embed):
    score = EmbeddedScore(embed, lambda logits: logits[0])
    maps, rest = embed.split(IMAGE, "encoder/mix")
    # From there on the network is linear: values times their gradients are contributions.
    gradients = jax.grad(lambda maps: rest(maps)[0])(maps)
    contributions = np.maximum(np.sum(maps * gradients, axis=-1), 0)
    heatmap = saliency.hires_cam(score, IMAGE, stage="encoder/mix")
    np.testing.assert_allclose(heatmap, jax.image.resize(contributions, (SIZE, SIZE), "linear"), rtol=1e-4, atol=1e-6)
    found = saliency.pair_attributions(embed, IMAGE, IMAGE[::-1], stage="encoder/mix")
    assert found.parts.pairs.shape == (4, 4, 4, 4)
    assert float(found.error()) == pytest.approx(0, abs=1e-5)


def test_a_stage_of_a_network_is_the_layer_of_that_path():
    network = networks.tiny_network(Projection(widths=(4,)))
    embed = NetworkEmbedding(network=network, variables=networks.filled_variables(network, IMAGE[None]))
    by_number, by_path = embed.split(IMAGE, 1)[0], embed.split(IMAGE, "backbone/stage1")[0]
    np.testing.assert_array_equal(by_number, by_path)


@pytest.mark.parametrize(
    ("layer", "image", "named"),
    [
        ("encoder/nothing", IMAGE, "no layer 'encoder/nothing'; there are encoder, encoder/convolution, encoder/mix"),
        ("twice", IMAGE, "'twice' is called 2 times"),
        ("last", IMAGE, r"returns an array \[1, 2\] .* must be maps"),
        ("encoder", IMAGE[:4], r"tokens \[1, tokens, channels\] of a square image"),
    ],
)
def test_layers_without_maps_are_refused(embed, layer, image, named):
    with pytest.raises(UserError, match=named):
        embed.split(image, layer)


def test_all_that_is_promised_is_there():
    assert sorted(saliency.__all__) == saliency.__all__
    assert all(getattr(saliency, name) is not None for name in saliency.__all__)


def test_inapplicable_methods_are_listed_with_their_requirements():
    transformer = make_methods(size=SIZE, stage=1, pooling="class", has_relu=False)
    reasons = inapplicable(transformer)
    assert set(reasons) == {"guided-backprop", "deconvnet", "expected-gradients", "integrated-gradients-mean"}
    assert "ReLUs" in reasons["deconvnet"]
    reasons = inapplicable(make_methods(size=SIZE, stage=1, references=IMAGE[None]))
    assert set(reasons) == {"attention-rollout", "gradient-x-attention"}
    assert "attention weights" in reasons["attention-rollout"]
