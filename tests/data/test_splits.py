"""Splits are disjoint, complete, seeded, and never cut a group of duplicates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tll_jax.data.splits import Manifest, Split


class FakePairs:
    """Ids, groups and faces without pictures."""

    def __init__(self, groups, faces):
        self.ids = [f"p{index:03}" for index in range(len(groups))]
        self.groups = np.asarray(groups)
        self.faces = np.asarray(faces)

    def __len__(self):
        return len(self.ids)

    def has_face(self):
        return np.stack([self.faces, np.zeros_like(self.faces)], axis=1)

    def digest(self):
        return "fake"


@settings(deadline=None, max_examples=60)
@given(
    groups=st.lists(st.integers(0, 60), min_size=30, max_size=80),
    data=st.data(),
    seed=st.integers(0, 5),
    fold=st.integers(0, 3),
)
def test_parts_are_disjoint_complete_and_never_cut_a_group(groups, data, seed, fold):
    faces = data.draw(st.lists(st.booleans(), min_size=len(groups), max_size=len(groups)))
    pairs = FakePairs(groups, faces)
    try:
        manifest = Split(seed=seed).make(pairs, fold=fold)
    except ValueError:
        return  # Too few pairs are left, or all lie in groups too large to take.
    parts = [set(manifest.train), set(manifest.validation), set(manifest.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(pairs)
    for group in set(groups):
        members = {identity for identity, other in zip(pairs.ids, groups, strict=True) if other == group}
        assert sum(bool(members & part) for part in parts) == 1
    shows_face = {identity for identity, face in zip(pairs.ids, faces, strict=True) if face}
    assert not shows_face & (parts[1] | parts[2])


def lone(count, *, faces=0):
    return FakePairs(range(count), [index < faces for index in range(count)])


def test_the_test_pairs_depend_on_the_seed_and_not_on_the_fold():
    pairs = lone(200)
    folds = [Split().make(pairs, fold=fold) for fold in range(3)]
    assert folds[0].test == folds[1].test == folds[2].test
    assert not set(folds[0].validation) & set(folds[1].validation)
    assert Split(seed=1).make(pairs).test != folds[0].test


def test_a_fifth_of_the_pairs_without_a_face_is_tested():
    # 80/20 of 1,622 is 324.4; of 1,081, 216.2.
    manifest = Split().make(lone(1610, faces=529))
    assert len(manifest.test) == 216
    assert len(manifest.train) + len(manifest.validation) == 1610 - 216


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


def test_the_order_of_the_source_does_not_matter():
    pairs, reversed_pairs = lone(100), lone(100)
    reversed_pairs.ids.reverse()
    assert Split().make(reversed_pairs) == Split().make(pairs)


@pytest.mark.parametrize(("count", "digest", "named"), [(100, "other", "other content"), (99, "fake", "'p099'")])
def test_training_pairs_lost_or_changed_since_the_split_are_warned_of(tmp_path, caplog, count, digest, named):
    saved = Split(seed=2).make(lone(100))
    assert "p099" in saved.train
    saved.save(tmp_path / "split.json")
    pairs = lone(count)
    pairs.digest = lambda: digest
    assert Split(path=str(tmp_path / "split.json")).make(pairs).test == saved.test
    assert named in caplog.text


def test_a_manifest_that_would_test_more_pairs_than_it_names_is_refused(tmp_path):
    saved = Split().make(lone(100))
    saved.save(tmp_path / "split.json")
    tested, trained = int(saved.test[0][1:]), int(saved.train[0][1:])
    groups = list(range(100))
    groups[trained] = tested
    with pytest.raises(ValueError, match="share a picture with 1 pairs it does not test"):
        Split(path=str(tmp_path / "split.json")).make(FakePairs(groups, [False] * 100))


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
