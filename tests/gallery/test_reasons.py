"""Why pairs look alike, with a model whose numbers can be worked out from the pixels."""

import cv2
import numpy as np
import pytest

from tests.gallery.fake_model import MeanColors
from tests.gallery.find_results import pair, picture
from tll_jax.data.geometry import CenterCrop, Pad, Resize
from tll_jax.gallery.reasons import box, changed, measure, with_reasons
from tll_jax.gallery.result import Picture

RNG = np.random.default_rng(0)


def blobs(seed, cells=4):
    """A colored picture without symmetries."""
    coarse = np.random.default_rng(seed).integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return cv2.resize(coarse, (64, 64), interpolation=cv2.INTER_NEAREST)


IMAGES = {f"{seed}": blobs(seed) for seed in range(200)}
IMAGES["mirrored"] = np.ascontiguousarray(IMAGES["0"][:, ::-1])
IMAGES["gray"] = changed(IMAGES["0"], "without-color")
IMAGES["tinted"] = np.clip(2 * IMAGES["gray"].astype(int) - IMAGES["0"], 0, 255).astype(np.uint8)
IMAGES["noisy"] = np.clip(IMAGES["0"] + RNG.normal(0, 6, IMAGES["0"].shape), 0, 255).astype(np.uint8)
IMAGES["fine"] = blobs(0, cells=16)
IMAGES["part"] = changed(IMAGES["fine"], "outer-quarter-gone")
RANDOM = [(picture(str(2 * at), str(2 * at)), picture(str(2 * at + 1), str(2 * at + 1))) for at in range(1, 100)]


def read(asked):
    return IMAGES[asked.content]


def explained(left, right, *, model=None, random=RANDOM, **facts):
    one = pair(picture(left, left), picture(right, right), **facts)
    (found,) = with_reasons([one], random, model=model or MeanColors(), read=read)
    return found.reasons


def texts(reasons):
    return {reason.measure: reason.text for reason in reasons.sentences}


@pytest.mark.parametrize("grid", [4, 7])
def test_the_place_table_sums_to_the_cosine(grid):
    model = MeanColors(grid=grid)
    a, b = model.embed([IMAGES["0"], IMAGES["noisy"]])
    reasons = explained("0", "noisy", model=model)
    assert (reasons.rows, reasons.columns, len(reasons.places)) == (4, 4, 256)
    assert sum(reasons.places) == pytest.approx(a @ b, abs=1e-3)
    assert sum(reasons.stages.values()) == pytest.approx(1, abs=1e-3)


def test_every_entry_is_what_its_two_places_add():
    # This model's places have numbers of their own, so unequal places add nothing to each other.
    a, b = MeanColors().embed([IMAGES["0"], IMAGES["noisy"]])
    reasons = explained("0", "noisy")
    table = np.reshape(reasons.places, (16, 16))
    by_place = (a * b).reshape(16, 3).sum(axis=1)
    np.testing.assert_allclose(np.diag(table), by_place, atol=1e-5)
    np.testing.assert_allclose(table - np.diag(np.diag(table)), 0, atol=1e-6)
    assert reasons.same_places == pytest.approx(1, abs=1e-3)
    best = int(np.argmax(by_place))
    assert reasons.strongest[0].left == reasons.strongest[0].right == (best // 4, best % 4)
    assert len(reasons.strongest) == 3
    assert texts(reasons)["same-places"] == "100 % of the likeness is from the same places."


@pytest.mark.parametrize(
    ("left", "right", "change", "words"),
    [
        ("0", "mirrored", "mirrored", "With one of them mirrored they are more alike"),
        ("0", "noisy", "mirrored", "The sides matter"),
        ("0", "tinted", "without-color", "Without color they are more alike"),
        ("0", "noisy", "blurred", "Fine detail does not matter"),
        ("fine", "part", "outer-quarter-gone", "Without its outer quarter the left picture is more like the other"),
    ],
)
def test_a_planted_change_is_told_with_its_number(left, right, change, words):
    reasons = explained(left, right)
    value = next(one.change for one in reasons.what_ifs if one.measure == change)
    before = MeanColors().embed([IMAGES[left], IMAGES[right]])
    sides = [True, change in ("without-color", "blurred")]
    after = MeanColors().embed(
        [
            changed(IMAGES[name], change) if does else IMAGES[name]
            for name, does in zip((left, right), sides, strict=True)
        ]
    )
    assert value == pytest.approx(after[0] @ after[1] - before[0] @ before[1], abs=1e-6)
    assert texts(reasons)[change].startswith(words)


def test_the_larger_picture_loses_its_outer_quarter():
    large = Picture(folder=0, path="fine", content="fine", width=640, height=480, size=1)
    small = Picture(folder=0, path="part", content="part", width=554, height=416, size=1)
    (found,) = with_reasons([pair(small, large)], RANDOM, model=MeanColors(), read=read)
    assert texts(found.reasons)["outer-quarter-gone"].startswith("Without its outer quarter the right picture")


def test_places_cover_what_the_network_sees():
    whole = box(Resize(size=224), 640, 480)
    assert (whole.top, whole.left, whole.height, whole.width) == (0, 0, 1, 1)
    # A square of 640 pixels round 480 rows: 80 rows above, 80 below.
    padded = box(Pad(size=224), 640, 480)
    assert (padded.top, padded.left) == pytest.approx((-80 / 480, 0))
    assert (padded.height, padded.width) == pytest.approx((640 / 480, 1))
    # The central 240 x 240 of 640 x 480.
    center = box(CenterCrop(size=224, share=0.5), 640, 480)
    assert (center.top, center.left) == pytest.approx((120 / 480, 200 / 640))
    assert (center.height, center.width) == pytest.approx((240 / 480, 240 / 640))


def test_a_random_pair_gets_no_sentence():
    for left, right in RANDOM[:10]:
        assert texts(explained(left.content, right.content)) == {}


def test_a_sentence_lies_beyond_every_random_pair():
    for reasons in (explained("0", "noisy"), explained("0", "mirrored"), explained("0", "tinted")):
        assert reasons.sentences
        numbers = list(measure(RANDOM, model=MeanColors(), read=read))
        for one in reasons.sentences:
            if one.measure == "same-places":
                assert one.value > one.random == max(other.same_places for other in numbers)
            if one.measure == "hash-bits":
                assert one.value < one.random == min(other.hash_bits for other in numbers)


def test_without_enough_random_pairs_nothing_is_said_but_the_numbers_are_there():
    reasons = explained("0", "noisy", random=RANDOM[:5])
    assert reasons.sentences == ()
    assert len(reasons.what_ifs) == 4
    assert len(reasons.places) == 256


def test_a_pair_takes_at_most_eight_passes_and_a_picture_in_many_pairs_no_more():
    model = MeanColors()
    list(measure(RANDOM[:7], model=model, read=read))
    assert model.passes == 7 * 8
    model = MeanColors()
    list(measure([RANDOM[0]] * 9, model=model, read=read))
    assert model.passes == 8


def test_pictures_of_many_pairs_pass_once_also_where_pairs_are_measured_apart():
    # A star of 40 pairs, more than are in memory at once, and each pair the other way round at the end.
    star = [(picture("0", "0"), picture(str(at), str(at))) for at in range(1, 41)]
    turned = [(right, left) for left, right in star]
    model, asked = MeanColors(), []

    def counting(one):
        asked.append(one.content)
        return read(one)

    numbers = list(measure([*star, *turned], model=model, read=counting))
    # Itself, without color and blurred; mirrored; and without its outer quarter, which the left one of a pair loses.
    assert model.passes == 41 * (3 + 1 + 1)
    assert asked.count("0") == 1
    for both, one in zip([*star, *turned], numbers, strict=True):
        (alone,) = measure([both], model=MeanColors(), read=read)
        assert (one.cosine, one.changes, one.stages) == (alone.cosine, alone.changes, alone.stages)


def test_a_picture_that_vanishes_between_its_pairs_leaves_the_later_ones_without_numbers():
    pairs = [(picture(str(at), str(at)), picture("0", "0")) for at in range(1, 40)]
    pairs.append((picture("0", "0"), picture("50", "50")))
    asked = []

    def vanishing(one):
        asked.append(one.content)
        if asked.count("0") > 1:
            raise FileNotFoundError("gone")
        return read(one)

    # Mirrored it is needed in the last pair alone.
    numbers = list(measure(pairs, model=MeanColors(), read=vanishing))
    assert [one is None for one in numbers] == [False] * 39 + [True]


def test_a_head_that_is_not_linear_leaves_the_places_out():
    reasons = explained("0", "mirrored", model=MeanColors(linear=False))
    assert (reasons.places, reasons.strongest, reasons.stages) == ((), (), {})
    assert "mirrored" in texts(reasons)


def test_a_picture_that_is_gone_leaves_its_pair_without_reasons():
    def vanishing(asked):
        if asked.content == "noisy":
            raise FileNotFoundError("gone")
        return IMAGES[asked.content]

    pairs = [pair(picture("0", "0"), picture(name, name)) for name in ("noisy", "mirrored")]
    lost, kept = with_reasons(pairs, RANDOM, model=MeanColors(), read=vanishing)
    assert lost.reasons is None
    assert kept.reasons is not None


def test_facts_that_random_pairs_share_are_no_reason():
    # All test pictures are 640 x 480 in one folder; only these two were taken at all.
    times = {"taken": "2024-05-01T12:00:00"}
    one = pair(picture("0", "0", **times), picture("noisy", "noisy", **times), left_rank=1, right_rank=1)
    (found,) = with_reasons([one], RANDOM, model=MeanColors(), read=read)
    said = texts(found.reasons)
    assert said["same-second"] == "Taken in the same second (2024-05-01 12:00:00)."
    assert said["mutual-rank"] == "Each is the other's nearest."
    assert not {"same-size", "same-folder"} & said.keys()
    elsewhere = [(picture(f"x{at}/{a.path}", a.content), b) for at, (a, b) in enumerate(RANDOM)]
    (found,) = with_reasons([one], elsewhere, model=MeanColors(), read=read)
    assert texts(found.reasons)["same-folder"] == "Both are in the same folder."


def test_a_stage_is_named_where_it_adds_more_than_its_share():
    # Gray pictures have nothing but brightness, the first of this model's two stages.
    assert texts(explained("gray", "gray"))["texture"] == "Textures add 100 % of the likeness."
    assert "objects" not in texts(explained("gray", "gray"))
    assert not {"texture", "objects"} & texts(explained("2", "3")).keys()
