"""Objectives on networks whose output is the image itself, and on a real one."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax.models.heads import Classifier, Projection, Projector
from tll_jax.models.network import Network
from tll_jax.models.resnet import ResNetModule
from tll_jax.objectives.barlow_twins import BarlowTwins
from tll_jax.objectives.classification import Classification
from tll_jax.objectives.contrastive import Contrastive
from tll_jax.objectives.info_nce import InfoNCE
from tll_jax.objectives.multi_similarity import MultiSimilarity
from tll_jax.objectives.simclr import SimCLR
from tll_jax.objectives.triplet import Triplet
from tll_jax.objectives.vicreg import VICReg
from tll_jax.settings import validate
from tll_jax.typing import Features, Objective, PairBatch, ViewBatch


class Echo(nn.Module):
    """Returns its input as the head's output, and counts its calls."""

    @nn.compact
    def __call__(self, images: Any, *, train: bool) -> tuple[Features, Any]:
        calls = self.variable("batch_stats", "calls", lambda: jnp.zeros((), jnp.int32))
        if not self.is_initializing():
            calls.value += 1
        return Features(stages=(), pooled=images), images


def run(objective, batch, seed=0):
    """Loss, metrics and the number of forward calls with `Echo` as the network."""
    call = nn.apply(objective, Echo(), mutable=["batch_stats"])
    variables = {"batch_stats": {"calls": jnp.zeros((), jnp.int32)}}
    (loss, metrics), updated = jax.jit(call)(variables, batch, rngs={"sample": jax.random.key(seed)})
    return loss, metrics, int(updated["batch_stats"]["calls"])


def line(*positions):
    return jnp.asarray(positions, jnp.float32)[:, None]


def test_barlow_twins_gives_each_view_its_own_call():
    # c_00 = c_11 = 0, c_01 = c_10 = 1.
    view_a = jnp.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    batch = ViewBatch(view_a, view_a[:, ::-1], jnp.full(4, -1))
    loss, metrics, calls = run(BarlowTwins(redundancy_weight=0.5, scale=0.1), batch)
    assert calls == 2
    assert loss == pytest.approx(0.1 * (2 + 0.5 * 2), rel=1e-4)
    assert metrics["agreement"] == pytest.approx(0, abs=1e-6)
    assert metrics["redundancy"] == pytest.approx(1, rel=1e-4)


def test_classify_labels_both_views_in_one_call():
    view_a = jnp.log(jnp.array([[3.0, 1.0], [1.0, 1.0]]))
    view_b = jnp.log(jnp.array([[1.0, 3.0], [1.0, 1.0]]))
    # The second image has no label. Probability of class 0: 3/4 in view a, 1/4 in view b.
    loss, metrics, calls = run(Classification(), ViewBatch(view_a, view_b, jnp.array([0, -1])))
    assert calls == 1
    assert loss == pytest.approx((np.log(4 / 3) + np.log(4)) / 2)
    assert metrics["accuracy"] == 0.5


def test_triplet_anchors_on_both_sides_and_mines_on_the_other():
    # Left 0, 10; right 1, 12. Squared distances, positive then negative of each anchor:
    # left 0: 1, 144. left 10: 4, 81. right 1: 1, 81. right 12: 4, 144. Only a margin above 77 is violated.
    batch = PairBatch(line(0, 10), line(1, 12), jnp.array([0, 1]))
    loss, metrics, calls = run(Triplet(margin=78.0), batch)
    assert calls == 1
    assert loss == pytest.approx(1 / 4)
    assert metrics["active_fraction"] == 0.25
    assert metrics["positive_distance"] == 2.5
    assert metrics["negative_distance"] == (144 + 81 + 81 + 144) / 4


def test_same_side_negatives_adds_negatives_of_the_anchors_own_side():
    # As above; the nearest negatives now: left 0 and 10 have each other (100; but 81 from 10 to right 1),
    # right 1 has left 10 (81), right 12 has right 1 (121).
    batch = PairBatch(line(0, 10), line(1, 12), jnp.array([0, 1]))
    _, metrics, _ = run(Triplet(mining="batch_hard", same_side_negatives=True), batch)
    assert metrics["negative_distance"] == (100 + 81 + 81 + 121) / 4


@pytest.mark.parametrize("mining", ["random", "semi_hard", "batch_hard"])
def test_duplicate_groups_are_never_negatives(mining):
    # Pairs 0 and 1 share an image: their only negative is the far pair 2, whose anchors count too.
    batch = PairBatch(line(0, 0, 100), line(1, 0, 100), jnp.array([7, 7, 9]))
    for seed in range(3):
        _, metrics, _ = run(Triplet(mining=mining), batch, seed)
        assert metrics["negative_distance"] > 99**2 - 1


def test_a_batch_of_one_group_has_zero_loss():
    batch = PairBatch(line(0, 1), line(2, 3), jnp.array([5, 5]))
    loss, metrics, _ = run(Triplet(), batch)
    assert loss == 0
    assert metrics["active_fraction"] == 0


@pytest.mark.parametrize(("soft_margin", "expected"), [(False, 0.2), (True, np.log(2))])
def test_a_collapsed_embedding_has_the_margin_as_triplet_loss(soft_margin, expected):
    batch = PairBatch(jnp.ones((4, 3)), jnp.ones((4, 3)), jnp.arange(4))
    loss, metrics, _ = run(Triplet(soft_margin=soft_margin), batch)
    assert loss == pytest.approx(expected)
    assert metrics["embedding_std"] == 0
    assert metrics["participation_ratio"] == 0


def test_random_mining_is_a_function_of_the_sample_key():
    random = np.random.default_rng(0)
    left, right = (jnp.asarray(random.normal(size=(16, 4)), jnp.float32) for _ in range(2))
    batch = PairBatch(left, right, jnp.arange(16))
    losses = [float(run(Triplet(mining="random", margin=5.0), batch, seed)[0]) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_info_nce_averages_both_directions_at_any_length_of_the_embeddings():
    # The cosine of every left picture (row) with every right one (column).
    batch = PairBatch(jnp.array([[2.0, 0], [0, 3]]), jnp.array([[5.0, 0], [1, 1]]), jnp.array([0, 1]))
    cosines = 4 * np.array([[1, np.sqrt(0.5)], [0, np.sqrt(0.5)]])
    rows = np.log(np.exp(cosines).sum(1)) - np.diag(cosines)
    columns = np.log(np.exp(cosines).sum(0)) - np.diag(cosines)
    loss, metrics, calls = run(InfoNCE(logit_scale=4.0), batch)
    assert calls == 1
    assert loss == pytest.approx((rows + columns).mean() / 2, rel=1e-5)
    assert metrics["batch_top1"] == 1


def test_info_nce_leaves_out_duplicates_and_rows_that_have_only_those():
    same = PairBatch(jnp.eye(2), jnp.eye(2)[::-1], jnp.array([3, 3]))
    assert run(InfoNCE(), same)[0] == 0
    # Pairs 0 and 1 share a picture, so pair 2 is the only negative of each.
    batch = PairBatch(jnp.ones((3, 2)), jnp.ones((3, 2)), jnp.array([3, 3, 4]))
    assert run(InfoNCE(), batch)[0] == pytest.approx((np.log(2) + np.log(2) + np.log(3)) / 3)


def test_contrastive_weighs_positives_and_negatives_equally():
    # Left 0, 10, 0.5; right 1, 12, 0.5, and pairs 0 and 2 share a picture. Matches: 1, 2, 0 apart. The others:
    # 0-12, 10-1, 10-0.5, 0.5-12, all beyond a margin of 9 but the second, which is at 9, and none lacks anything.
    batch = PairBatch(line(0, 10, 0.5), line(1, 12, 0.5), jnp.array([7, 8, 7]))
    loss, metrics, calls = run(Contrastive(margin=9.0), batch)
    assert calls == 1
    assert loss == pytest.approx((0.5 + 2 + 0) / 3)
    assert metrics["active_fraction"] == 0
    assert metrics["positive_distance"] == pytest.approx(1)
    assert metrics["negative_distance"] == pytest.approx((12 + 9 + 9.5 + 11.5) / 4)
    # With a margin of 11 the second lacks 2 and the third 1.5.
    loss, metrics, _ = run(Contrastive(margin=11.0), batch)
    assert loss == pytest.approx(2.5 / 3 + (2 + 1.125) / 4)
    assert metrics["active_fraction"] == 0.5


def test_a_collapsed_embedding_has_half_the_squared_margin_as_contrastive_loss():
    batch = PairBatch(jnp.ones((4, 3)), jnp.ones((4, 3)), jnp.arange(4))
    assert run(Contrastive(margin=3.0), batch)[0] == pytest.approx(4.5)


def test_multi_similarity_anchors_on_both_sides():
    # Cosines: left 0 with right 0, 1: 1, s; left 1: 0, s, for s = sqrt(1/2). With a margin of 0.5 both pairs of left 0
    # (1 and s) and of right 1 (s and s) are hard; of left 1 and right 0, whose negatives are at 0, none.
    batch = PairBatch(jnp.array([[2.0, 0], [0, 3]]), jnp.array([[5.0, 0], [1, 1]]), jnp.array([0, 1]))
    objective = MultiSimilarity(positive_scale=2.0, negative_scale=4.0, threshold=0.5, margin=0.5)
    loss, metrics, calls = run(objective, batch)
    s = np.sqrt(0.5)
    negative = np.log1p(np.exp(4 * (s - 0.5))) / 4
    left = np.log1p(np.exp(-2 * 0.5)) / 2 + negative
    right = np.log1p(np.exp(-2 * (s - 0.5))) / 2 + negative
    assert calls == 1
    assert loss == pytest.approx((left + right) / 4, rel=1e-5)
    assert metrics["active_fraction"] == 0.5


def test_multi_similarity_leaves_out_duplicates_and_anchors_that_have_only_those():
    same = PairBatch(jnp.eye(2), jnp.eye(2)[::-1], jnp.array([3, 3]))
    assert run(MultiSimilarity(), same)[0] == 0
    # Everything is alike; pairs 0 and 1 have one negative each, pair 2 has two.
    batch = PairBatch(jnp.ones((3, 2)), jnp.ones((3, 2)), jnp.array([3, 3, 4]))
    positive = np.log1p(np.exp(-1.0)) / 2
    one, two = (np.log1p(number * np.exp(25.0)) / 50 for number in (1, 2))
    assert run(MultiSimilarity(), batch)[0] == pytest.approx(positive + (2 * one + two) / 3, rel=1e-5)


def test_simclr_compares_all_views_in_one_call_at_any_length():
    batch = ViewBatch(jnp.array([[3.0, 0], [0, 2]]), jnp.array([[1.0, 0], [0, 5]]), jnp.full(2, -1))
    loss, metrics, calls = run(SimCLR(temperature=0.5), batch)
    assert calls == 1
    assert loss == pytest.approx(np.log(np.exp(2) + 2) - 2, rel=1e-5)
    assert metrics["batch_top1"] == 1
    swapped = ViewBatch(batch.view_a, batch.view_b[::-1], batch.label)
    assert run(SimCLR(), swapped)[1]["batch_top1"] == 0


def test_vicreg_gives_each_view_its_own_call():
    # The views differ by 2 in the second dimension of both images; dimensions (0, 1) and (0, 2) as in the loss's test.
    view_a = jnp.array([[0.0, 0.0], [1.0, 2.0]])
    objective = VICReg(invariance_weight=2.0, variance_weight=3.0, covariance_weight=5.0)
    loss, metrics, calls = run(objective, ViewBatch(view_a, view_a + jnp.array([0.0, 2.0]), jnp.full(2, -1)))
    short = (1 - np.sqrt(0.5001)) / 2
    assert calls == 2
    assert loss == pytest.approx(2 * 2 + 3 * short + 5 * 2, rel=1e-5)
    assert metrics["invariance"] == 2
    assert metrics["variance_hinge"] == pytest.approx(short, rel=1e-4)
    assert metrics["participation_ratio"] == pytest.approx(1, rel=1e-5)


def test_heads_belong_to_the_objective_except_on_pairs():
    assert BarlowTwins(projector=(8, 4)).head(num_classes=3) == Projector(widths=(8, 4))
    assert Classification().head(num_classes=3) == Classifier(num_classes=3)
    assert SimCLR(projector=(8, 4)).head(num_classes=3) == Projector(widths=(8, 4))
    assert VICReg(projector=(8, 4)).head(num_classes=3) == Projector(widths=(8, 4))
    for objective in (Triplet(), InfoNCE(), Contrastive(), MultiSimilarity()):
        assert objective.head(num_classes=3) is None
    with pytest.raises(ValueError, match="num_classes is 0"):
        Classification().head(num_classes=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (BarlowTwins(projector=()), "widths"),
        (BarlowTwins(scale=0.0), "scale is 0"),
        (Classification(label_smoothing=1.0), "label_smoothing is 1"),
        (Triplet(margin=0.0), "margin is 0"),
        (Triplet(margin=0.5, soft_margin=True), "margin is 0.5 beside soft_margin=True, which has none"),
        (InfoNCE(logit_scale=0.0), "logit_scale is 0"),
        (Contrastive(margin=0.0), "margin is 0"),
        (MultiSimilarity(negative_scale=0.0), "negative_scale is 0"),
        (MultiSimilarity(threshold=2.0), "threshold is 2"),
        (SimCLR(temperature=0.0), "temperature is 0"),
        (SimCLR(projector=()), "widths"),
        (VICReg(covariance_weight=-1.0), "covariance_weight is -1"),
        (Triplet(distance="l1"), "distance is 'l1'.*squared_l2, l2, cosine"),
        (Triplet(mining="hardest"), "mining is 'hardest'.*random, semi_hard, batch_hard"),
    ],
)
def test_impossible_objectives_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        validate(wrong)


def filled_variables(network, images):
    """Small positive numbers in the network's shapes: quicker than compiling its initialization."""
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), images, train=False))
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(random.uniform(0.05, 0.3, leaf.shape), leaf.dtype), shapes)


@pytest.mark.parametrize(
    "objective",
    [
        BarlowTwins(projector=(16, 16)),
        Classification(),
        SimCLR(projector=(16, 8)),
        VICReg(projector=(16, 16)),
        Triplet(mining="random"),
        InfoNCE(),
        Contrastive(),
        MultiSimilarity(),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_every_objective_trains_a_real_network(objective: Objective):
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 4, 16, 16, 3)), jnp.float32)
    head = objective.head(num_classes=3) or Projection(widths=(8,))
    backbone = ResNetModule(
        (1, 1), bottleneck=False, width=4, small_stem=False, pooled_shortcuts=False, dtype=jnp.float32
    )
    network = Network(backbone, head.build(dtype=jnp.float32))
    on_pairs = objective.head(num_classes=3) is None
    batch_type = PairBatch if on_pairs else ViewBatch
    batch = batch_type(images[0], images[1], jnp.arange(4) % 3)
    variables = filled_variables(network, images[0])

    @jax.jit
    def gradient(params):
        def loss(params):
            call = nn.apply(objective, network, mutable=["batch_stats"])
            (loss, metrics), _ = call({**variables, "params": params}, batch, rngs={"sample": jax.random.key(0)})
            return loss, metrics

        return jax.grad(loss, has_aux=True)(params)

    gradients, metrics = gradient(variables["params"])
    assert all(value.shape == () for value in metrics.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradients, metrics)))
    assert bool(jnp.any(gradients["backbone"]["stem"]["convolution"]["kernel"] != 0))
