"""Maps from attention weights: a closed form for one block, loops over the blocks of a real transformer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.saliency import networks
from tll_jax.errors import UserError
from tll_jax.models.heads import Projection, SpatialProjection
from tll_jax.models.network import Network
from tll_jax.models.vit import VisionTransformer
from tll_jax.saliency.attention import attention_rollout, gradient_x_attention
from tll_jax.saliency.cam import hires_cam
from tll_jax.saliency.decomposition import decompose, is_linear, places
from tll_jax.saliency.networks import NetworkEmbedding
from tll_jax.saliency.targets import EmbeddedScore, dot
from tll_jax.typing import Features

SIZE = 16
(IMAGE,) = networks.images(1, SIZE)
RANDOM = np.random.default_rng(0)
A = nn.softmax(jnp.asarray(RANDOM.normal(size=(2, 4, 4)), jnp.float32))
VALUES = jnp.asarray(RANDOM.normal(size=(2, 4)), jnp.float32)


class Fixed(nn.Module):
    """Two heads over four patches, of given weights; a patch has one value a head, times the image's mean."""

    @nn.compact
    def __call__(self, images):
        weights = self.perturb("weights", A[None])
        self.sow("intermediates", "weights", weights)
        return jnp.einsum("bhqk,hk->bq", weights, VALUES) * jnp.mean(images)


class FixedBackbone(nn.Module):
    @nn.compact
    def __call__(self, images, *, train, frozen_stages=0, rematerialize=False):
        tokens = Fixed(name="attention")(images)
        return Features(stages=(tokens.reshape(-1, 2, 2, 1),), pooled=tokens)


class Sum(nn.Module):
    def __call__(self, features, *, train):
        return features.pooled @ jnp.array([[1.0], [-1.0], [2.0], [0.5]])


def test_gradient_x_attention_of_one_block_is_its_closed_form():
    embed = NetworkEmbedding(network=Network(FixedBackbone(), Sum()), variables={"params": {}})
    score = EmbeddedScore(embed, lambda z: z[0])
    slopes = np.array([1.0, -1.0, 2.0, 0.5])
    speaking = np.zeros((4, 4))
    for head, query, key in np.ndindex(2, 4, 4):
        gradient = slopes[query] * VALUES[head, key] * np.mean(IMAGE)
        speaking[query, key] += max(0.0, float(A[head, query, key] * gradient)) / 2
    expected = (np.eye(4) + speaking).mean(axis=0).reshape(2, 2)
    found = gradient_x_attention(score, IMAGE, pooling="mean")
    np.testing.assert_allclose(found, jax.image.resize(expected, (SIZE, SIZE), "linear"), rtol=1e-4)
    rolled = ((np.asarray(A).mean(axis=0) + np.eye(4)) / 2).mean(axis=0).reshape(2, 2)
    found = attention_rollout(score, IMAGE, pooling="mean")
    np.testing.assert_allclose(found, jax.image.resize(rolled, (SIZE, SIZE), "linear"), rtol=1e-5)
    with pytest.raises(UserError, match="no class token; its pooling is 'mean'"):
        attention_rollout(score, IMAGE)


def embedding(pooling, normalize=True, depth=11):
    settings = VisionTransformer(
        width=8, depth=depth, num_heads=2, mlp_width=16, patch_size=4, image_size=SIZE, pooling=pooling, num_registers=1
    )
    head = Projection(widths=(5,), normalize=normalize)
    network = Network(settings.build(dtype=jnp.float32), head.build(dtype=jnp.float32))
    return NetworkEmbedding(network=network, variables=networks.filled_variables(network, IMAGE[None])), head


@pytest.fixture(scope="module")
def transformer():
    """Of eleven blocks, so that the tenth by number is not the tenth by name; a class token and a register."""
    return embedding("class")[0]


def test_rollout_is_a_product_of_all_blocks_in_their_order(transformer):
    _, sown = transformer.network.apply(transformer.variables, IMAGE[None], train=False, mutable=["intermediates"])
    blocks = sown["intermediates"]["backbone"]
    flow = np.eye(18)
    for number in range(1, 12):
        weights = np.asarray(blocks[f"stage{number}"]["attention"]["weights"][0][0])
        flow = (weights.mean(axis=0) + np.eye(18)) / 2 @ flow
    expected = jax.image.resize(flow[0, 2:].reshape(4, 4), (SIZE, SIZE), "linear")
    np.testing.assert_allclose(attention_rollout(EmbeddedScore(transformer, jnp.sum), IMAGE), expected, rtol=1e-4)
    # What the class token and the register get is not shown.
    assert float(flow.sum(axis=1)[0]) == pytest.approx(1, rel=1e-5)


def test_perturbations_of_attention_weights_change_the_score_by_their_gradient():
    score = EmbeddedScore(embedding("class", depth=3)[0], lambda z: z[0])
    weights, rest, grid = score.attention(IMAGE)
    assert (len(weights), grid) == (3, (4, 4))
    value_and_gradients = jax.jit(jax.value_and_grad(rest))
    value, gradients = value_and_gradients([jnp.zeros_like(one) for one in weights])
    assert float(value) == pytest.approx(float(score(IMAGE)), abs=1e-5)
    random = np.random.default_rng(1)
    changes = [jnp.asarray(random.normal(size=one.shape), jnp.float32) for one in weights]
    slope = sum(float(jnp.sum(a * b)) for a, b in zip(gradients, changes, strict=True))
    small = 1e-3
    there, back = (value_and_gradients([sign * small * one for one in changes])[0] for sign in (1, -1))
    assert float(there - back) / (2 * small) == pytest.approx(slope, rel=0.05)
    assert gradient_x_attention(score, IMAGE).max() > 0


def test_hires_cam_of_the_last_tokens_is_their_exact_contribution_where_they_are_averaged():
    embed, head = embedding("mean", normalize=False, depth=3)
    other = jnp.arange(5.0)
    score = EmbeddedScore(embed, lambda z: dot(z, other))
    parts = places(head, embed.variables["params"]["head"], embed.features(IMAGE))
    exact = decompose(parts, parts._replace(vectors=jnp.zeros_like(parts.vectors), bias=other), normalized=False).left
    expected = jax.image.resize(jnp.maximum(exact, 0), (SIZE, SIZE), "linear")
    assert 0 < np.count_nonzero(exact > 0) < 16
    np.testing.assert_allclose(hires_cam(score, IMAGE, stage=4), expected, rtol=1e-3, atol=1e-5)


def test_a_class_token_is_no_sum_over_places_so_that_only_heads_on_maps_are_linear_there():
    by_class, by_mean = (VisionTransformer(pooling=pooling) for pooling in ("class", "mean"))
    assert not is_linear(Projection(), by_class)
    assert is_linear(Projection(), by_mean)
    assert is_linear(SpatialProjection(), by_class)


def test_scores_without_attention_are_refused(transformer):
    with pytest.raises(UserError, match=r"need a score with attention\(image\)"):
        attention_rollout(jnp.sum, IMAGE)
    with pytest.raises(UserError, match="this embedding shows none"):
        attention_rollout(EmbeddedScore(jnp.ravel, jnp.sum), IMAGE)
    network = networks.tiny_network(Projection(widths=(4,)))
    embed = NetworkEmbedding(network=network, variables=networks.filled_variables(network, IMAGE[None]))
    with pytest.raises(UserError, match="no attention whose weights can be seen; a VisionTransformer has"):
        attention_rollout(EmbeddedScore(embed, jnp.sum), IMAGE)
