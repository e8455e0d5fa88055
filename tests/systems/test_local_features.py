"""Local features: the ratio test and geometric verification against slow loops, and real features."""

from dataclasses import dataclass, field

import cv2
import numpy as np
import pytest

from tll_jax import serialize
from tll_jax.ranking import ranks
from tll_jax.systems.local_features import Keypoints, LocalFeatures, Sift, Surf, count_agreeing, make_nearest_two
from tll_jax.typing import PairImages, System


@dataclass(kw_only=True)
class FixedFeatures(LocalFeatures):
    """Keypoints by the gray value of a constant image."""

    given: dict = field(default_factory=dict)
    num_detected: int = 0

    def detect(self, gray):
        self.num_detected += 1
        return self.given[int(gray[0, 0])]


def constant(gray):
    return np.full((4, 4, 3), gray, np.uint8)


def points(*degrees, positions=None):
    """Descriptors of two numbers at these angles from the first axis, all at one place unless told otherwise."""
    angles = np.radians(degrees)
    where = np.zeros((len(degrees), 2)) if positions is None else positions
    return Keypoints(
        np.asarray(where, np.float32), np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    )


def as_pairs(left, right):
    return PairImages([str(index) for index in range(len(left))], left, right, np.arange(len(left)))


def textures(num_images, seed=0, size=128):
    """Pictures with details at several scales."""
    random = np.random.default_rng(seed)
    pictures = []
    for _ in range(num_images):
        layers = [
            cv2.resize(random.uniform(0, 1, (cells, cells)), (size, size), interpolation=cv2.INTER_CUBIC)
            for cells in (8, 16, 32)
        ]
        gray = np.clip(255 * sum(layers) / len(layers), 0, 255).astype(np.uint8)
        pictures.append(np.stack([gray] * 3, axis=2))
    return pictures


def turned(image):
    """Rotated by 30 degrees about the center, and three quarters of the size."""
    size = image.shape[0]
    transform = cv2.getRotationMatrix2D((size / 2, size / 2), 30, 0.75)
    return cv2.warpAffine(image, transform, (size, size), borderMode=cv2.BORDER_REFLECT)


def test_a_match_is_nearer_than_the_ratio_times_the_second_nearest():
    # The distance of unit vectors at an angle is 2 sin(angle / 2): 10 and 20 degrees have a ratio of 0.502.
    system = FixedFeatures(given={0: points(0), 1: points(10, -20), 2: points(10, -10), 3: points(10), 4: points()})
    images = [constant(gray) for gray in range(5)]
    for ratio, expected in ((0.51, [0, 1, 0, 0, 0]), (0.5, [0, 0, 0, 0, 0])):
        system.ratios = (ratio,)
        # Alone, in the first and the fourth, a keypoint has no second nearest.
        assert system.score(images[:1], images).tolist() == [expected]
    assert system.score(images[4:], images).tolist() == [[0] * 5]


def test_numbers_of_matches_agree_with_a_brute_force_matcher():
    images = textures(4) + [turned(image) for image in textures(4)]
    system = Sift(ratios=(0.85,), max_keypoints=60)
    scores = system.score(images, images)
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    unit = []
    for image in images:
        descriptors = system.keypoints(image).descriptors.astype(np.float32)
        unit.append(descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True))
    expected = [
        [sum(a.distance < 0.85 * b.distance for a, b in matcher.knnMatch(query, candidate, k=2)) for candidate in unit]
        for query in unit
    ]
    assert np.max(expected) > 10
    # Keypoints at the very ratio may fall to either side.
    np.testing.assert_allclose(scores, expected, atol=1)
    assert np.mean(scores == expected) > 0.9


def test_the_two_nearest_are_found_in_candidates_of_any_number_of_keypoints():
    random = np.random.default_rng(0)
    candidates = [random.normal(size=(number, 6)).astype(np.float32) for number in (5, 0, 2, 1, 9)]
    query = random.normal(size=(4, 6)).astype(np.float32)
    nearest, first, second = make_nearest_two(candidates)(query)
    for row in range(4):
        for column, descriptors in enumerate(candidates):
            if len(descriptors) < 2:
                assert (first[row, column], second[row, column]) == (-np.inf, 1)
                continue
            cosines = [query[row] @ other / np.linalg.norm(query[row]) / np.linalg.norm(other) for other in descriptors]
            order = np.argsort(cosines)[::-1]
            assert nearest[row, column] == order[0]
            assert first[row, column] == pytest.approx(cosines[order[0]], abs=1e-5)
            assert second[row, column] == pytest.approx(cosines[order[1]], abs=1e-5)


def moved(positions):
    """Rotated by 40 degrees, doubled in size and shifted."""
    angle = np.radians(40)
    rotation = 2 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (positions @ rotation.T + np.array([30, -12])).astype(np.float32)


def test_matches_that_one_transform_explains_agree_and_outliers_do_not():
    random = np.random.default_rng(0)
    sources = random.uniform(0, 200, (20, 2)).astype(np.float32)
    targets = moved(sources)
    targets[12:] += random.choice([-1, 1], (8, 2)) * random.uniform(60, 150, (8, 2))
    assert count_agreeing(sources, targets.astype(np.float32), tolerance=2.0) == 12
    assert count_agreeing(sources[:12], targets[:12].astype(np.float32), tolerance=2.0) == 12


def test_matches_with_a_single_target_position_do_not_agree():
    sources = np.random.default_rng(0).uniform(0, 200, (20, 2)).astype(np.float32)
    assert count_agreeing(sources, np.full((20, 2), 50, np.float32), tolerance=8.0) <= 2


def test_verification_reranks_the_best_by_agreeing_matches_and_keeps_the_order_of_the_rest():
    random = np.random.default_rng(0)
    positions = random.uniform(0, 200, (6, 2))
    angles = np.arange(6) * 40.0
    query = points(*angles, positions=positions)
    # All six match in a jumble; four of them in the right places, with two details that are missing; three of them.
    jumbled = points(*angles, positions=random.uniform(0, 200, (6, 2)))
    in_place = points(*angles[:4], 280, positions=[*moved(positions[:4]), (0, 0)])
    fewer = points(*angles[:3], 280, positions=[*moved(positions[:3]), (0, 0)])
    system = FixedFeatures(
        ratios=(0.1,), given={0: query, 1: jumbled, 2: in_place, 3: fewer}, tolerance=2.0, max_keypoints=9
    )
    images = [constant(gray) for gray in range(4)]
    assert system.score(images[:1], images[1:]).tolist() == [[6, 4, 3]]
    system.verify_top = 2
    jumbled_score, in_place_score, fewer_score = system.score(images[:1], images[1:])[0]
    assert in_place_score == pytest.approx(4 + 4 / 10)
    assert fewer_score == pytest.approx(3 / 10)
    assert 0.6 <= jumbled_score < 3.7
    system.verify_top = 3
    assert system.score(images[:1], images[1:])[0, 2] == pytest.approx(3 + 3 / 10)


def test_candidates_tied_with_the_last_of_the_best_are_verified_too():
    positions = np.random.default_rng(0).uniform(0, 200, (3, 2))
    query = points(0, 60, 120, positions=positions)
    same = points(0, 60, 120, positions=moved(positions))
    system = FixedFeatures(ratios=(0.5,), given={0: query, 1: same}, verify_top=1)
    assert system.score([constant(0)], [constant(1)] * 3) == pytest.approx(np.full((1, 3), 3 + 3 / 301))


def test_fitting_chooses_the_ratio_that_ranks_the_validation_pairs_best():
    # Left 0 finds its detail in right 0 at a ratio of 10 to 20 degrees, and in right 1, which is wrong, at 14 to 20.
    # Left 1 finds its own in right 1 at once.
    given = {0: points(0), 1: points(10, -20), 2: points(180), 3: points(14, -20, 180)}
    pairs = as_pairs([constant(0), constant(2)], [constant(1), constant(3)])
    system = FixedFeatures(ratios=(0.9, 0.6, 0.4), given=given)
    system.fit(as_pairs([], []), pairs)
    # From right to left nothing has a second nearest, so that both come last of two. From left to right the first query
    # finds both at 0.9, the right one at 0.6, and none at 0.4.
    assert system.validation_mrr == {0.9: (0.75 + 0.5) / 2, 0.6: (1.0 + 0.5) / 2, 0.4: (0.75 + 0.5) / 2}
    assert system.chosen == 0.6
    assert system.score(pairs.left, pairs.right).tolist() == [[1, 0], [0, 1]]


def test_keypoints_are_found_once_for_each_picture():
    system = FixedFeatures(given={0: points(0, 90), 1: points(45, 90)})
    images = [constant(0), constant(1), constant(0)]
    system.score(images, images)
    system.score(images[::-1], images)
    assert system.num_detected == 2


@pytest.mark.parametrize("verify_top", [0, 3])
def test_sift_retrieves_a_rotated_and_shrunk_picture(verify_top):
    images = textures(5)
    system = Sift(verify_top=verify_top)
    scores = system.score([turned(image) for image in images], images)
    assert scores.dtype == np.float32
    assert ranks(scores, np.arange(5)).tolist() == [1] * 5


@pytest.mark.parametrize("make", [Sift, Surf])
def test_a_spot_is_found_where_it_is_in_the_shrunk_picture(make):
    image = np.zeros((300, 400, 3), np.uint8)
    cv2.circle(image, (280, 80), 8, (255, 255, 255), -1)
    positions = make(longest_side=200).keypoints(image).positions
    distances = np.linalg.norm(positions - np.array([140, 40]), axis=1)
    assert len(positions) > 0
    assert distances.min() < 3
    assert distances.max() < 30


@pytest.mark.parametrize("make", [Sift, Surf])
def test_constant_and_tiny_images_score_finite_numbers(make):
    noise = np.random.default_rng(0).integers(0, 256, size=(40, 50, 3), dtype=np.uint8)
    images = [
        np.zeros((64, 64, 3), np.uint8),
        np.full((1, 1, 3), 255, np.uint8),
        np.full((3, 300, 3), 128, np.uint8),
        noise,
    ]
    system = make(verify_top=2)
    system.fit(as_pairs([], []), as_pairs(images, images))
    scores = system.score(images, images)
    assert np.isfinite(scores).all()
    assert scores[0].tolist() == [0] * 4


@pytest.mark.parametrize("make", [Sift, Surf])
def test_no_more_than_the_strongest_keypoints_count(make):
    (image,) = textures(1)
    assert 0 < len(make(max_keypoints=20).keypoints(image).descriptors) <= 20


def test_fitting_without_validation_pairs_is_refused():
    with pytest.raises(ValueError, match="Sift needs validation pairs"):
        Sift().fit(as_pairs([], []), as_pairs([], []))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Sift(ratios=()), r"Sift\.ratios is \(\)"),
        (Surf(ratios=(0.8, 1.2)), r"Surf\.ratios is \(0\.8, 1\.2\)"),
        (Sift(verify_top=-1), r"verify_top is -1"),
        (Sift(tolerance=0.0), r"tolerance is 0"),
        (Sift(longest_side=4), r"longest_side is 4"),
        (Sift(max_keypoints=1), r"max_keypoints is 1"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong.check()


@pytest.mark.parametrize("make", [Sift, Surf])
def test_settings_come_back_from_json_without_what_was_learned(make):
    system = make(verify_top=25)
    assert isinstance(system, System)
    system.fit(as_pairs([], []), as_pairs(textures(2), textures(2)))
    assert serialize.from_json(serialize.to_json(system)) == make(verify_top=25)
