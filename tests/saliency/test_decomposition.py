"""The spatial decomposition sums to the real similarity of real heads, and to numbers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.saliency import networks
from tll_jax.models.heads import Diagonal, Identity, Projection, RectifiedProjection, SpatialProjection
from tll_jax.saliency.decomposition import Places, decompose, places
from tll_jax.saliency.side_by_side import decompose_pair

# Maps of 5, 3 and 2 positions a side in the last three stages.
LEFT, RIGHT = networks.images(2, 40)
HEADS = [
    Identity(),
    Diagonal(),
    Projection(widths=(4,)),
    SpatialProjection(stages=(4,), width=4),
    SpatialProjection(stages=(2, 3, 4), width=4),
]
PLACES_LEFT = Places(jnp.array([[[1.0, 0.0], [0.0, 2.0]]]), jnp.zeros(2))
PLACES_RIGHT = Places(jnp.array([[[3.0, 0.0], [1.0, 0.0]]]), jnp.array([0.0, 1.0]))


@pytest.fixture(scope="module")
def features():
    """Of the left and the right image."""
    backbone = networks.resnet()
    variables = networks.filled_variables(backbone, LEFT[None])
    apply = jax.jit(lambda image: backbone.apply(variables, image[None], train=False))
    return apply(LEFT), apply(RIGHT)


def head_variables(head, features):
    return networks.filled_variables(head.build(dtype=jnp.float32), features, seed=1)


def test_a_decomposition_of_two_positions_is_worked_by_hand():
    # Embeddings (1, 2) and (4, 1), so 4 + 2 = 6.
    found = decompose(PLACES_LEFT, PLACES_RIGHT, normalized=False)
    assert found.pairs.tolist() == [[[[3.0, 1.0]], [[0.0, 0.0]]]]
    assert found.left.tolist() == [[0.0, 2.0]]
    assert found.right.tolist() == [[0.0, 0.0]]
    assert found.bias == 0
    assert found.total() == 6
    assert [side.tolist() for side in found.heatmaps()] == [[[4.0, 2.0]], [[3.0, 1.0]]]
    cosine = decompose(PLACES_LEFT, PLACES_RIGHT)
    assert cosine.total() == pytest.approx(6 / np.sqrt(5 * 17))
    np.testing.assert_allclose(cosine.pairs * np.sqrt(5 * 17), found.pairs, rtol=1e-5)


def test_an_image_without_an_embedding_has_an_empty_decomposition():
    nothing = Places(jnp.zeros((1, 2, 2)), jnp.zeros(2))
    assert decompose(nothing, PLACES_RIGHT).total() == 0


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_all_parts_sum_to_the_cosine(head, features):
    left, right = features
    variables = head_variables(head, left)
    embed = lambda one: head.build(dtype=jnp.float32).apply(variables, one, train=False)[0]  # noqa: E731
    cosine = float(jnp.dot(embed(left), embed(right)))
    assert abs(cosine) < 0.9999
    sides = [places(head, variables.get("params", {}), one) for one in features]
    decomposition = decompose(*sides)
    assert float(decomposition.total()) == pytest.approx(cosine, abs=1e-5)
    assert decomposition.pairs.shape == ((5,) * 4 if head == HEADS[-1] else (2,) * 4)
    of_left, of_right = decomposition.heatmaps()
    of_right_alone, of_left_alone = (
        jnp.sum(one) + decomposition.bias for one in (decomposition.right, decomposition.left)
    )
    assert float(jnp.sum(of_left) + of_right_alone) == pytest.approx(cosine, abs=1e-5)
    assert float(jnp.sum(of_right) + of_left_alone) == pytest.approx(cosine, abs=1e-5)


@pytest.mark.parametrize(
    "head", [Identity(normalize=False), Projection(widths=(4,), normalize=False), HEADS[-1]], ids=str
)
def test_all_parts_sum_to_the_dot_product(head, features):
    variables = head_variables(head, features[0])
    if isinstance(head, SpatialProjection):
        layer = variables["params"]["linear1"]
        z_left, z_right = (
            np.concatenate([np.ravel(one.stages[stage]) for stage in (2, 3, 4)]) @ layer["kernel"] + layer["bias"]
            for one in features
        )
    else:
        z_left, z_right = (head.build(dtype=jnp.float32).apply(variables, one, train=False)[0] for one in features)
    sides = [places(head, variables.get("params", {}), one) for one in features]
    for side, z in zip(sides, (z_left, z_right), strict=True):
        np.testing.assert_allclose(jnp.sum(side.vectors, axis=(0, 1)) + side.bias, z, rtol=1e-4, atol=1e-5)
    assert float(decompose(*sides, normalized=False).total()) == pytest.approx(float(z_left @ z_right), rel=1e-5)


def test_a_coarse_position_is_divided_among_the_positions_it_covers(features):
    # Only the first of the 2 x 2 positions of stage 4 is not zero: on a grid of 5 it covers places 0, 1 and half of 2.
    left, _ = features
    head = SpatialProjection(stages=(2, 4), width=4)
    params = head_variables(head, left)["params"]
    coarse = jnp.zeros_like(left.stages[4]).at[0, 0, 0].set(1.0)
    stages = (*left.stages[:2], jnp.zeros_like(left.stages[2]), left.stages[3], coarse)
    vectors = np.asarray(places(head, params, left._replace(stages=stages)).vectors)
    shares = np.array([0.4, 0.4, 0.2, 0.0, 0.0])
    np.testing.assert_allclose(vectors, np.outer(shares, shares)[..., None] * vectors.sum((0, 1)), atol=1e-6)
    assert np.abs(vectors).max() > 0.01


def test_swapping_the_pair_transposes_its_decomposition(features):
    left, right = features
    params = head_variables(HEADS[2], left)["params"]
    sides = [places(HEADS[2], params, one) for one in (left, right)]
    one, other = decompose(*sides), decompose(*sides[::-1])
    np.testing.assert_allclose(other.pairs, np.transpose(one.pairs, (2, 3, 0, 1)), rtol=1e-5)
    np.testing.assert_allclose(other.left, one.right, rtol=1e-5)


def test_a_pair_of_images_is_decomposed_through_its_network():
    head = Projection(widths=(4,))
    network = networks.tiny_network(head)
    variables = networks.filled_variables(network, LEFT[None])
    z_left, z_right = (network.apply(variables, one[None], train=False)[1][0] for one in (LEFT, RIGHT))
    found = decompose_pair(head, network, variables, LEFT, RIGHT)
    assert found.pairs.shape == (20, 20, 20, 20)
    assert float(found.total()) == pytest.approx(float(z_left @ z_right), abs=1e-5)


@pytest.mark.parametrize("head", [Projection(widths=(4, 3)), RectifiedProjection(width=4)], ids=str)
def test_a_head_that_is_not_linear_is_refused_with_those_that_are(head, features):
    with pytest.raises(
        ValueError, match="Identity, Diagonal, a Projection of one layer, a SpatialProjection, or a GridProjection"
    ):
        places(head, {}, features[0])
