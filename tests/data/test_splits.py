"""Splits are disjoint, complete, seeded, and never cut a group of duplicates."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tll_jax import serialize
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.faces import dropped
from tll_jax.data.splits import Manifest, Split
from tll_jax.errors import UserError
from tll_jax.settings import validate

TLL_TEST_PAIRS = Path(__file__).parents[2] / "configs" / "splits" / "tll_no_face.json"


class FakePairs:
    """Ids, groups and faces without pictures; `faces` are those of the left side, or of both."""

    def __init__(self, groups, faces):
        self.ids = [f"p{index:03}" for index in range(len(groups))]
        self.groups = np.asarray(groups)
        self.hashes = [(f"left {identity}", f"right {identity}") for identity in self.ids]
        self.face_overrides = {}
        faces = np.asarray(faces, dtype=int)
        self.faces = faces if faces.ndim == 2 else np.stack([faces, np.zeros_like(faces)], axis=1)

    def __len__(self):
        return len(self.ids)

    def num_faces(self):
        return self.faces

    def indices(self, ids):
        return np.array([self.ids.index(identity) for identity in ids])

    def digest(self):
        return "fake"


SPLITS = [
    *({"seed": seed, "faces": rule} for seed in range(3) for rule in ("none", "not-single", "both", "include")),
    *({"seed": 1, "test_folds": 3, "test_fold": test_fold} for test_fold in range(3)),
    {"num_test": 5},
    *({"num_test": 5, "validation_faces": rule, "validation_fraction": 0.2} for rule in ("include", "both")),
]


@st.composite
def any_pairs(draw):
    """Pairs with random groups of duplicates and random faces."""
    groups = draw(st.lists(st.integers(0, 60), min_size=30, max_size=80))
    side = st.sampled_from([0, 0, 0, 1, 2])
    faces = draw(st.lists(st.tuples(side, side), min_size=len(groups), max_size=len(groups)))
    return FakePairs(groups, faces)


def members_by_group(pairs):
    found = {}
    for identity, group in zip(pairs.ids, pairs.groups.tolist(), strict=True):
        found.setdefault(group, set()).add(identity)
    return list(found.values())


def shuffled(pairs, order):
    """The same pairs, listed in another order."""
    other = FakePairs(pairs.groups[order], pairs.faces[order])
    other.ids = [pairs.ids[index] for index in order]
    other.hashes = [pairs.hashes[index] for index in order]
    return other


@settings(max_examples=100)
@given(pairs=any_pairs(), split=st.sampled_from(SPLITS), fold=st.integers(0, 3), data=st.data())
def test_parts_are_disjoint_complete_uncut_without_dropped_pairs_and_of_any_order(pairs, split, fold, data):
    split = Split(**split)
    try:
        manifest = split.make(pairs, fold=fold)
    except ValueError:
        return  # Too few pairs are left, or all lie in groups too large to take.
    parts = [set(manifest.train), set(manifest.validation), set(manifest.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(pairs)
    for members in members_by_group(pairs):
        assert sum(bool(members & part) for part in parts) == 1
    for rule, part in ((split.faces, parts[2]), (split.validation_faces or split.faces, parts[1])):
        assert not part & {pairs.ids[index] for index in np.flatnonzero(dropped(pairs.faces, rule))}
    order = data.draw(st.permutations(range(len(pairs))))
    assert split.make(shuffled(pairs, order), fold=fold) == manifest


@settings(max_examples=60)
@given(pairs=any_pairs(), test_folds=st.integers(2, 6), seed=st.integers(0, 3))
def test_over_all_folds_every_pair_that_may_be_tested_is_tested_once(pairs, test_folds, seed):
    try:
        folds = [
            Split(test_folds=test_folds, test_fold=test_fold, seed=seed, path="").make(pairs)
            for test_fold in range(test_folds)
        ]
    except ValueError:
        return  # Fewer groups than folds, or nothing left to choose on.
    tested = [identity for manifest in folds for identity in manifest.test]
    faceless = {pairs.ids[index] for index in np.flatnonzero((pairs.faces == 0).all(axis=1))}
    may_be_tested = [members for members in members_by_group(pairs) if members <= faceless]
    assert sorted(tested) == sorted(set().union(*may_be_tested))
    sizes = [len(manifest.test) for manifest in folds]
    assert max(sizes) - min(sizes) <= max(map(len, may_be_tested))


def lone(count, *, faces=0):
    return FakePairs(range(count), [index < faces for index in range(count)])


def test_the_test_pairs_depend_on_the_seed_and_not_on_the_fold():
    pairs = lone(200)
    folds = [Split().make(pairs, fold=fold) for fold in range(3)]
    assert folds[0].test == folds[1].test == folds[2].test
    assert not set(folds[0].validation) & set(folds[1].validation)
    assert Split(seed=1).make(pairs).test != folds[0].test


def test_validation_pairs_from_their_own_pool_differ_by_seed_even_if_few_eligible_pairs_are_left():
    # As with Totally Looks Like: 398 of 1,599 pairs show no face, and 325 of them are tested.
    pairs = lone(1599, faces=1201)
    few = [Split(num_test=325, validation_fraction=0.15).make(pairs, fold=fold) for fold in range(5)]
    assert {len(one.validation) for one in few} == {60}
    assert min(len(set(few[0].validation) & set(one.validation)) for one in few[1:]) >= 47
    split = Split(num_test=325, validation_fraction=0.1, validation_faces="include")
    own = [split.make(pairs, fold=fold) for fold in range(5)]
    assert {len(one.validation) for one in own} == {127}
    assert len({identity for one in own for identity in one.validation}) == 5 * 127
    assert [one.test for one in own] == [one.test for one in few]
    assert {len(one.train) for one in own} == {1599 - 325 - 127}
    # Mostly faces, as the pool is.
    assert 0.85 < np.mean([int(identity[1:]) < 1201 for one in own for identity in one.validation]) < 1
    assert own[0].rule == (
        "pairs with a face on either side are not tested, and train or are chosen on; validation pairs are drawn from "
        "all that are not tested"
    )


def test_validation_faces_changes_the_fingerprint_of_a_split_only_if_it_is_set():
    assert serialize.fingerprint(Split()) == serialize.fingerprint(Split(validation_faces=None))
    assert serialize.fingerprint(Split()) == "908671a2f663"
    assert serialize.fingerprint(Split(validation_faces="include")) != serialize.fingerprint(Split())


@pytest.mark.parametrize(("count", "tested"), [(1622, 325), (1081, 217), (1620, 324), (35, 7)])
def test_a_fifth_of_the_pairs_without_a_face_is_tested_rounded_up(count, tested):
    manifest = Split().make(lone(count + 50, faces=50))
    assert len(manifest.test) == tested
    assert len(manifest.train) + len(manifest.validation) == count + 50 - tested


def test_the_test_pairs_of_the_published_tables_are_unchanged():
    emoji = Split(num_test=216).make(EmojiPairs().open())
    for test_ids, count, digest in (
        (emoji.test, 216, "a43bd6139a83af337d3fa4dc5285f7ac1c9a844a1a1cfad3fdcc58154e5addf9"),
        (Manifest.load(TLL_TEST_PAIRS).test, 325, "40b32dfdfcc900da80c019cc218aec3d5d2cf980179502165a058b3656833551"),
    ):
        assert (len(test_ids), hashlib.sha256("\n".join(test_ids).encode()).hexdigest()) == (count, digest)


def test_a_repeated_hold_out_tests_equally_many_pairs_drawn_anew():
    repeats = [Split(num_test=30, seed=seed).make(lone(200, faces=80)).test for seed in range(3)]
    assert [len(test) for test in repeats] == [30, 30, 30]
    assert len({tuple(test) for test in repeats}) == 3


@pytest.mark.parametrize(
    ("rule", "out"),
    [("none", [1, 2, 3, 4, 5]), ("not-single", [1, 3, 4]), ("both", [3, 4, 5]), ("include", [])],
)
def test_each_face_rule_excludes_the_pairs_of_its_definition(rule, out):
    num_faces = np.array([[0, 0], [0, 1], [2, 0], [1, 1], [1, 2], [3, 2]])
    assert np.flatnonzero(dropped(num_faces, rule)).tolist() == out


def test_the_manifest_records_the_rule_and_the_corrections():
    pairs = lone(60)
    pairs.face_overrides = {"p007": [1, None]}
    manifest = Split(faces="not-single", test_folds=5, test_fold=2, train_on_faces=False).make(pairs)
    assert manifest.rule == (
        "pairs with exactly one face on either side are neither tested nor chosen on, and are left out; "
        "fold 2 of 5 is tested"
    )
    assert manifest.face_overrides == {"p007": [1, None]}
    assert manifest.hashes["p003"] == ["left p003", "right p003"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"faces": "exclude"}, "split.faces is 'exclude'; it must be one of none, not-single, both, include"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ({"test_folds": 1}, "test_folds is 1; it must be at least 2"),
        ({"test_folds": 5, "test_fold": 5}, "test_fold is 5; it must be from 0 to 4"),
        ({"test_fold": 1}, "test_folds is not set"),
        ({"test_folds": 5, "num_test": 10}, "leave num_test and path empty"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        validate(Split(**fields), path="config.split")


def test_more_folds_than_pairs_are_refused():
    with pytest.raises(ValueError, match=r"of 30 pairs 2 may be tested, too few for split\.test_folds=3"):
        Split(test_folds=3, test_fold=2).make(lone(30, faces=28))


def test_face_pairs_can_be_left_out_of_training():
    manifest = Split(train_on_faces=False).make(lone(100, faces=40))
    assert all(int(identity[1:]) >= 40 for identity in manifest.train)


def test_a_saved_manifest_fixes_the_test_pairs(tmp_path):
    pairs = lone(100)
    manifest = Split(seed=3).make(pairs)
    manifest.save(tmp_path / "split.json")
    assert Manifest.load(tmp_path / "split.json") == manifest
    again = Split(seed=9, path=str(tmp_path / "split.json")).make(pairs)
    assert again == manifest


def test_a_manifest_names_the_pairs_whose_pictures_have_changed_since(tmp_path, caplog):
    path = tmp_path / "split.json"
    Split().make(lone(100)).save(path)
    pairs = lone(100)
    pairs.hashes[5] = ("left p005", "another")
    pairs.hashes[70] = ("another", "right p070")
    Split(path=str(path)).make(pairs)
    assert "drawn from other pictures of 2 pairs: p005, p070" in caplog.text


def test_a_manifest_without_hashes_and_corrections_still_loads(tmp_path, caplog):
    path = tmp_path / "split.json"
    saved = Split().make(lone(100))
    saved.save(path)
    old = {name: value for name, value in json.loads(path.read_text()).items() if name != "hashes"}
    del old["face_overrides"]
    path.write_text(json.dumps(old))
    assert Split(path=str(path)).make(lone(100)) == saved
    assert not caplog.text


@pytest.mark.parametrize(("count", "digest", "named"), [(100, "other", "other content"), (99, "fake", "'p099'")])
def test_training_pairs_lost_or_changed_since_the_split_are_warned_of(tmp_path, caplog, count, digest, named):
    saved = Split(seed=2).make(lone(100))
    assert "p099" in saved.train
    saved.save(tmp_path / "split.json")
    pairs = lone(count)
    pairs.digest = lambda: digest
    assert Split(path=str(tmp_path / "split.json")).make(pairs).test == saved.test
    assert named in caplog.text


def test_pairs_that_share_a_picture_with_a_saved_test_pair_are_left_out(tmp_path, caplog):
    saved = Split().make(lone(100))
    saved.save(tmp_path / "split.json")
    tested, trained = int(saved.test[0][1:]), int(saved.train[0][1:])
    groups = list(range(100))
    groups[trained] = tested
    manifest = Split(path=str(tmp_path / "split.json")).make(FakePairs(groups, [False] * 100))
    assert manifest.test == saved.test
    assert saved.train[0] not in {*manifest.train, *manifest.validation}
    assert len(manifest.train) + len(manifest.validation) == 100 - 20 - 1
    said = f"1 pairs are left out for sharing a picture with a test pair: {saved.train[0]}"
    assert said in caplog.text
    # A study makes one split for each seed.
    Split(path=str(tmp_path / "split.json")).make(FakePairs(groups, [False] * 100), fold=1)
    assert caplog.text.count(said) == 1


def test_a_manifest_of_other_data_is_refused(tmp_path):
    Split().make(lone(100)).save(tmp_path / "split.json")
    with pytest.raises(ValueError, match="belongs to other data"):
        Split(path=str(tmp_path / "split.json")).make(lone(50))
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a split manifest"):
        Manifest.load(tmp_path / "notes.json")


def test_more_test_pairs_than_there_are_is_refused_with_the_field():
    with pytest.raises(ValueError, match=r"lower split\.num_test"):
        Split(num_test=90).make(lone(100, faces=20))


@pytest.mark.parametrize(
    ("groups", "fields", "named"),
    [
        (
            [7] * 24,
            {"num_test": 4},
            "all 24 pairs that may be tested share pictures, each with another of them: they are 1",
        ),
        ([7] * 24, {"test_folds": 2}, "they are 1 group"),
        # None of three groups of eight fits into four test pairs.
        ([i // 8 for i in range(24)], {"num_test": 4}, "in 3 groups that share pictures, up to 8 pairs each"),
        # Two groups of twelve: one is tested, and the other is more than is wanted to choose on.
        ([i // 12 for i in range(24)], {"num_test": 12}, "3 to choose on cannot be taken .* in 1 groups .* up to 12"),
        (
            [i // 8 for i in range(24)],
            {"test_folds": 4, "test_fold": 3},
            "in 3 groups .*, too few for split.test_folds=4",
        ),
    ],
)
def test_the_error_reports_shared_pictures_where_a_split_would_have_to_cut_a_group(groups, fields, named):
    with pytest.raises(UserError, match=named):
        Split(faces="include", validation_fraction=0.125, **fields).make(FakePairs(groups, [0] * 24))


def test_a_face_rule_that_leaves_no_pair_to_test_is_named():
    with pytest.raises(UserError, match=r"none of 30 pairs may be tested with split\.faces='none'"):
        Split().make(lone(30, faces=30))


def test_a_split_without_training_pairs_is_refused_with_the_sizes_of_its_parts():
    # 10 pairs without a face are tested or chosen on, and those with one do not train.
    fields = {"num_test": 5, "validation_fraction": 0.5, "train_on_faces": False}
    with pytest.raises(UserError, match=r"tests 5, chooses on 5 and leaves none to train on.*train_on_faces=True"):
        Split(**fields).make(lone(30, faces=20))
