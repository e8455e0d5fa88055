"""Ensembles: weights selected from hand-made scores, and invariances."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from tll_jax import serialize
from tll_jax.ranking import ranks
from tll_jax.systems.bag_of_words import BagOfWords
from tll_jax.systems.baselines import ColorHistogram, Pixels
from tll_jax.systems.csls import CSLS
from tll_jax.systems.ensemble import Ensemble, choose_weights, kind_of, reciprocal_ranks, with_seed, z_scores
from tll_jax.systems.local_features import Sift
from tll_jax.systems.metric_learning import RelevantComponents
from tll_jax.systems.mirrored import Mirrored
from tll_jax.typing import PairImages, System

NUM_PAIRS = 12


@dataclass(kw_only=True)
class Told(System):
    """System with a given score matrix; image i is the number i."""

    scores: np.ndarray
    fitted_on: list = field(default_factory=list)

    def fit(self, train, validation):
        self.fitted_on.append((list(train.ids), list(validation.ids)))

    def score(self, queries, candidates):
        return self.scores[np.ix_(queries, candidates)].astype(np.float32)


@dataclass(kw_only=True)
class Seeded(Told):
    seed: int = 0


def numbered(numbers):
    """Pairs whose left and right picture are the same number."""
    ids = [str(number) for number in numbers]
    return PairImages(ids=ids, left=list(numbers), right=list(numbers), groups=np.arange(len(ids)))


TRAIN, VALIDATION, TEST = numbered([]), numbered(range(NUM_PAIRS)), list(range(NUM_PAIRS, 2 * NUM_PAIRS))
PERFECT = np.eye(2 * NUM_PAIRS)
NOISE = np.random.default_rng(0).normal(size=(2 * NUM_PAIRS, 2 * NUM_PAIRS))


def fitted(by="score", **members):
    ensemble = Ensemble(members={name: Told(scores=scores) for name, scores in members.items()}, by=by)
    ensemble.fit(TRAIN, VALIDATION)
    return ensemble


def ranks_on_test(system):
    return ranks(system.score(TEST, TEST), np.arange(NUM_PAIRS)).tolist()


@pytest.mark.parametrize("by", ["score", "rank"])
def test_a_perfect_member_beside_noise_stays_perfect_on_pairs_the_weights_were_not_chosen_on(by):
    # Correct by a small margin: with equal weights noise decides.
    perfect = np.random.default_rng(1).uniform(size=PERFECT.shape)
    np.fill_diagonal(perfect, 1.01)
    ensemble = fitted(by, noise=NOISE, perfect=perfect)
    assert ranks_on_test(ensemble) == [1] * NUM_PAIRS
    assert ensemble.validation_mrr == 1
    assert ensemble.chosen["perfect"] > ensemble.chosen["noise"]
    assert sum(ensemble.chosen.values()) == pytest.approx(1)


@pytest.mark.parametrize("by", ["score", "rank"])
def test_equal_members_rank_as_one_of_them_and_weigh_the_same(by):
    scores = PERFECT + NOISE
    ensemble = fitted(by, a=scores, b=scores, c=scores)
    assert (
        ranks_on_test(ensemble) == ranks(scores[np.ix_(TEST, TEST)].astype(np.float32), np.arange(NUM_PAIRS)).tolist()
    )
    assert ensemble.chosen == {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}


def test_members_that_rank_different_pairs_well_are_better_together():
    even, odd = (PERFECT * (np.arange(2 * NUM_PAIRS) % 2 == parity) for parity in (0, 1))
    ensemble = fitted(even=even + 0.01 * NOISE, odd=odd + 0.01 * NOISE.T)
    assert ensemble.validation_mrr == 1
    assert ranks_on_test(ensemble) == [1] * NUM_PAIRS
    assert min(ensemble.chosen.values()) > 0


def test_the_scale_and_shift_of_a_member_do_not_matter():
    one = fitted(a=PERFECT + NOISE, b=NOISE.T)
    other = fitted(a=1000 * (PERFECT + NOISE) - 70, b=0.001 * NOISE.T + 3)
    assert other.chosen == one.chosen
    np.testing.assert_allclose(other.score(TEST, TEST), one.score(TEST, TEST), atol=1e-4)


def test_z_scores_are_worked_by_hand_for_each_query_alone():
    # Mean 4, deviations -2, -2, 4: variance 8. The second query has equal scores.
    found = z_scores(np.array([[2.0, 2.0, 8.0], [0.1, 0.1, 0.1]], np.float32))
    np.testing.assert_allclose(found, [np.array([-2, -2, 4]) / np.sqrt(8), [0, 0, 0]])


def test_reciprocal_ranks_are_worked_by_hand_with_ties_last():
    assert reciprocal_ranks(np.array([[0.9, 0.5, 0.5, 0.1]])).tolist() == [[1 / 61, 1 / 63, 1 / 63, 1 / 64]]


def test_a_single_query_works_against_many_candidates():
    ensemble = fitted(noise=NOISE, perfect=PERFECT)
    whole, one = ensemble.score(TEST, TEST), ensemble.score(TEST[3:4], TEST)
    np.testing.assert_allclose(one, whole[3:4], rtol=1e-6)
    assert one.dtype == np.float32
    assert ensemble.score(TEST[:1], TEST[:1]).tolist() == [[0.0]]


def test_a_weight_changes_only_for_a_better_mrr_and_then_to_the_smallest_best_value():
    # Two queries. a is right in both, by a little in the second; b is wrong in the second, by 1.
    a = np.array([[1.0, 0.0], [0.5, 1.0]])
    b = np.array([[1.0, 0.0], [1.0, 0.0]])
    weights, reached = choose_weights([np.stack([a, b])])
    # With weights (a, b) the second match wins by a / 2 - b: not with (1, 1), first with a = 2.25, which is not tried;
    # then b falls, and 0 is the smallest of the weights that reach 1.
    assert (weights.tolist(), reached) == ([1.0, 0.0], 1.0)
    assert choose_weights([np.stack([a, a])])[0].tolist() == [1.0, 1.0]


def test_a_broken_member_ranks_last_or_gets_zero_weight_but_never_wins():
    ensemble = fitted(perfect=PERFECT, broken=np.full_like(PERFECT, np.nan))
    assert set(ranks_on_test(ensemble)) <= {NUM_PAIRS}


def test_members_are_fitted_on_training_and_validation_pairs_with_the_seed_of_the_ensemble():
    told = [Seeded(scores=PERFECT), Told(scores=PERFECT)]
    ensemble = Ensemble(members={"seeded": told[0], "plain": told[1]}, seed=3)
    ensemble.fit(numbered([20, 21]), VALIDATION)
    assert ensemble.fitted["seeded"].seed == 3
    assert told[0].seed == 0
    for member in ensemble.fitted.values():
        assert member.fitted_on == [(["20", "21"], [str(number) for number in range(NUM_PAIRS)])]


def test_with_seed_changes_only_systems_that_have_a_seed():
    assert with_seed(Seeded(scores=PERFECT), 5).seed == 5
    assert with_seed(Told(scores=PERFECT), 5).seed is None
    assert with_seed(Ensemble(members={"a": Told(scores=PERFECT)}), 5).seed == 5


def test_an_ensemble_is_a_system_of_settings_that_come_back_from_json():
    from tll_jax.systems.baselines import Hog, Pixels

    ensemble = Ensemble(members={"hog": Hog(), "pixels": Pixels(size=8)}, by="rank")
    assert isinstance(ensemble, System)
    assert serialize.from_json(serialize.to_json(ensemble)) == ensemble


def test_impossible_settings_and_scores_before_fit_are_refused():
    with pytest.raises(ValueError, match="members is empty"):
        Ensemble(members={}).check()
    with pytest.raises(ValueError, match="by is 'vote'; it must be one of score, rank"):
        Ensemble(members={"a": Told(scores=PERFECT)}, by="vote").check()
    with pytest.raises(ValueError, match="call fit first"):
        Ensemble(members={"a": Told(scores=PERFECT)}).score(TEST, TEST)
    with pytest.raises(ValueError, match="needs validation pairs"):
        Ensemble(members={"a": Told(scores=PERFECT)}).fit(TRAIN, numbered([]))


def test_given_weights_do_not_depend_on_the_validation_pairs():
    members = {"noise": Told(scores=NOISE), "perfect": Told(scores=PERFECT)}
    ensemble = Ensemble(members=members, weights={"noise": 3.0, "perfect": 1.0})
    ensemble.check()
    ensemble.fit(TRAIN, VALIDATION)
    assert ensemble.chosen == {"noise": 0.75, "perfect": 0.25}
    part = np.ix_(TEST, TEST)
    expected = 0.75 * z_scores(NOISE[part].astype(np.float32)) + 0.25 * z_scores(PERFECT[part].astype(np.float32))
    np.testing.assert_allclose(ensemble.score(TEST, TEST), expected, atol=1e-5)
    for weights in ({"noise": 1.0}, {"noise": -1.0, "perfect": 2.0}, {"noise": 0.0, "perfect": 0.0}):
        with pytest.raises(ValueError, match=r"weights is .* each of noise, perfect"):
            Ensemble(members=members, weights=weights).check()


def test_systems_that_learn_from_pairs_have_the_kind_fitted():
    metric = RelevantComponents(features=Pixels())
    systems = [
        Pixels(),
        Mirrored(features=Pixels()),
        Mirrored(features=metric),
        Ensemble(members={"a": metric}),
        BagOfWords(),
    ]
    assert [kind_of(one) for one in systems] == ["baseline", "baseline", "fitted", "fitted", "fitted"]


@pytest.mark.parametrize(
    "system", [Pixels(), Sift(), ColorHistogram(), Mirrored(features=ColorHistogram()), CSLS(features=Pixels())]
)
def test_only_systems_that_fit_nothing_can_be_fitted_without_pairs(system):
    nothing = numbered([])
    if system.fits == "nothing":
        system.fit(nothing, nothing)
    else:
        with pytest.raises(ValueError, match="pairs"):
            system.fit(nothing, nothing)
