"""Fitted systems as networks: equal rankings, and reasons for systems that are not networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from tll_jax.data.geometry import Resize
from tll_jax.errors import UserError
from tll_jax.evaluation.embed import negative_squared_distance, unit_rows
from tll_jax.models.heads import Diagonal, GridProjection, Projection, lpips_vectors
from tll_jax.models.network import Network
from tll_jax.models.resnet import ResNet
from tll_jax.models.weights import WeightFile, to_torch
from tll_jax.objectives.info_nce import InfoNCE
from tll_jax.saliency.decomposition import contributions
from tll_jax.systems.adapter import Adapter
from tll_jax.systems.baselines import Hog, Pixels
from tll_jax.systems.csls import CSLS
from tll_jax.systems.ensemble import Ensemble
from tll_jax.systems.frozen_features import FrozenFeatures
from tll_jax.systems.linear import fitted_network, why_no_network
from tll_jax.systems.local_features import Sift
from tll_jax.systems.lpips import Lpips
from tll_jax.systems.metric_learning import MaximumMargin, PrincipalComponents, RelevantComponents
from tll_jax.systems.mirrored import Mirrored
from tll_jax.training.optimizers import AdamW
from tll_jax.typing import PairImages

BACKBONE = ResNet(depth=10, width=4)
SIZE = 32


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """A frozen backbone with random weights, on pictures of 32 pixels."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    images = jnp.zeros((1, SIZE, SIZE, 3))
    initial = jax.jit(lambda key: BACKBONE.build(dtype=jnp.float32).init(key, images, train=False))(jax.random.key(0))
    save_file(to_torch(initial, BACKBONE.torch_name), path)

    def make(**fields):
        fields = {"stages": (1, 3), "grid": 2, "geometry": Resize(size=SIZE), "batch_size": 8} | fields
        return FrozenFeatures(backbone=BACKBONE, weights=WeightFile(path=str(path)), **fields)

    return make


@pytest.fixture(scope="module")
def parts():
    """Training, validation and test pairs whose sides are noisy copies of one picture."""
    rng = np.random.default_rng(0)
    bases = rng.integers(0, 256, (30, 8, 8, 3)).repeat(5, axis=1).repeat(5, axis=2)
    sides = [np.clip(bases + rng.normal(0, 30, bases.shape), 0, 255).astype(np.uint8) for _ in range(2)]

    def pairs(start, stop):
        ids = [str(number) for number in range(start, stop)]
        return PairImages(ids, *(list(side[start:stop]) for side in sides), np.arange(start, stop, dtype=np.int32))

    return pairs(0, 16), pairs(16, 22), pairs(22, 30)


def rca_whitening(features, comparisons=("cosine",)):
    components = PrincipalComponents(features=features, widths=(12,), comparisons=("cosine",))
    metric = RelevantComponents(features=components, shrinkages=(0.4,), comparisons=("cosine",))
    return PrincipalComponents(features=metric, widths=(8,), whitenings=(-0.5,), comparisons=comparisons)


def adapter(features, head):
    optimizer = AdamW(learning_rate=1e-2)
    return Adapter(features=features, head=head, objective=InfoNCE(), optimizer=optimizer, num_steps=3)


SYSTEMS = {
    "frozen": lambda make: make(),
    "frozen and standardized": lambda make: make(standardize=True),
    "RCA whitening": lambda make: rca_whitening(make(standardize=True)),
    "compared by distance": lambda make: rca_whitening(make(standardize=True), ("euclidean",)),
    "margin": lambda make: MaximumMargin(features=make(), widths=(4, 8)),
    "linear adapter": lambda make: adapter(make(grid=1), Projection(widths=(8,))),
    "diagonal adapter": lambda make: adapter(PrincipalComponents(features=make(), widths=(12,)), Diagonal()),
    "deep adapter": lambda make: adapter(make(grid=1), Projection(widths=(8, 6), batch_norm=True)),
}


def embed(network, images):
    module = Network(backbone=network.backbone.build(dtype=jnp.float32), head=network.head.build(dtype=jnp.float32))
    batch = jnp.asarray(np.stack([network.geometry(None, image) for image in images]), jnp.float32) / 255
    features, output = jax.jit(lambda *given: module.apply(*given, train=False))(network.variables(), batch)
    return features, np.asarray(output)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_network_embeds_as_its_system_scores(features, parts, name):
    train, validation, test = parts
    system = SYSTEMS[name](features)
    system.fit(train, validation)
    network = fitted_network(system)
    maps, left = embed(network, test.left)
    _, right = embed(network, test.right)
    by_distance = getattr(system, "chosen", "").endswith("euclidean")
    expected = system.score(test.left, test.right)
    if by_distance:
        scale = np.abs(expected).max()
        np.testing.assert_allclose(negative_squared_distance(left, right) / scale, expected / scale, atol=1e-4)
    else:
        np.testing.assert_allclose(np.sum(left**2, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(left @ right.T, expected, atol=1e-4)
    if isinstance(network.head, GridProjection):
        first = jax.tree.map(lambda one: one[:1], maps)
        found = np.asarray(contributions(network.head, network.variables()["params"]["head"], first))
        assert found.shape[:3] == (len(network.head.stages), network.head.grid, network.head.grid)
        np.testing.assert_allclose(found.sum(axis=(0, 1, 2)), unit_rows(left[:1])[0], atol=1e-5)


def test_a_position_contributes_nothing_where_its_features_equal_the_training_mean(features, parts):
    train, validation, _ = parts
    system = rca_whitening(features(standardize=True))
    system.fit(train, validation)
    network = fitted_network(system)
    params = network.head_variables["params"]
    rows = np.concatenate([system.features.features.features.describe_all(side) for side in train[1:3]])
    # Reorders stage-major features to cells of all channels.
    ends = np.cumsum([4 * width for width in system.features.features.features.stage_widths])
    mean = np.concatenate([part.reshape(4, -1) for part in np.split(rows.mean(axis=0), ends[:-1])], axis=1)
    np.testing.assert_allclose(params["center"], mean, atol=1e-6)
    # The means of later maps are rounding errors.
    assert np.abs(params["bias"]).max() < 1e-3 * np.abs(params["kernel"]).max()


def test_csls_gives_the_network_of_its_uncorrected_cosines(features, parts):
    train, validation, _ = parts
    system = CSLS(features=PrincipalComponents(features=features(), widths=(4,), comparisons=("cosine",)))
    system.fit(train, validation)
    beneath = fitted_network(system.features)
    np.testing.assert_array_equal(
        fitted_network(system).head_variables["params"]["kernel"], beneath.head_variables["params"]["kernel"]
    )


def test_the_network_of_lpips_has_the_distances_of_lpips_and_a_gradient(parts):
    images, system = parts[2].left[:2], Lpips(size=32)
    network = fitted_network(system)
    _, (one, other) = embed(network, images)
    expected = system.score(images[:1], images[1:])[0, 0]
    assert -np.sum((one - other) ** 2) == pytest.approx(expected, rel=1e-4)
    # Behind a ReLU all channels of a place may be 0.
    stages = [jnp.zeros((1, 1, 2, 3)).at[0, 0, 0].set(jnp.array([0.0, 3.0, 4.0]))]
    gradient = jax.grad(lambda maps: jnp.sum(lpips_vectors([maps], [jnp.ones(3)])[:, :3]))(stages[0])
    # d(x / |x|) / dx, summed: (1 - sum(u) u) / |x| at u = (0, .6, .8), over the root of two places.
    np.testing.assert_allclose(
        gradient[0, 0, 0], np.array([1, 1 - 1.4 * 0.6, 1 - 1.4 * 0.8]) / 5 / np.sqrt(2), rtol=1e-5
    )
    assert np.array_equal(gradient[0, 0, 1], np.zeros(3))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda features: Mirrored(features=features), "take the system that it stands on"),
        (lambda features: Ensemble(members={"a": features, "b": Hog()}), "take one of its members: a, b"),
        (lambda features: Hog(), "has no gradient"),
        (lambda features: MaximumMargin(features=Hog()), "has no gradient"),
        (lambda features: Sift(), "keypoints"),
        (lambda features: MaximumMargin(features=Pixels()), "has no gradient"),
    ],
)
def test_a_system_that_is_not_a_network_is_refused_with_the_reason(features, make, reason):
    assert reason in why_no_network(make(features()))


def test_a_system_that_is_not_fitted_is_refused_in_words(features):
    for system in (rca_whitening(features()), adapter(features(), Diagonal())):
        with pytest.raises(UserError, match="call fit first"):
            fitted_network(system)
