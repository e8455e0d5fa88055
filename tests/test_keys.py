"""Keys of ranks cover all their inputs, and reading checks them."""

import dataclasses
import json

import numpy as np
import pytest

from tests.configs import tiny
from tll_jax import serialize
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.geometry import Resize
from tll_jax.data.pipeline import Readers
from tll_jax.models.alexnet_vgg import AlexNet, Vgg16
from tll_jax.models.weights import AlexNetLpips, Vgg16Lpips, WeightFile, weights_in
from tll_jax.study.evaluate import Evaluations
from tll_jax.study.folder import mark_done
from tll_jax.study.keys import check_explained, explain_key, read_probe
from tll_jax.study.settings import Explain
from tll_jax.study.train import Context, Trainings
from tll_jax.systems.ensemble import Ensemble
from tll_jax.systems.frozen_features import FrozenFeatures
from tll_jax.systems.lpips import Lpips


@pytest.fixture(scope="module")
def pairs():
    return EmojiPairs().open()


@pytest.fixture
def settings(tmp_path):
    """A study of one model and two systems, one of them with a weight file."""
    (tmp_path / "a.pth").write_bytes(b"one")
    study = tiny.get_config()
    del study.models["barlow"]
    features = FrozenFeatures(backbone=AlexNet(), weights=WeightFile(path=str(tmp_path / "a.pth")), stages=(0,))
    study.systems["both"] = Ensemble(members={"features": features, "hog": study.systems["hog"]})
    study.faces_included = ("histogram", "random-frozen")
    study.planned = ()
    return study


@pytest.fixture
def planned(settings, pairs, tmp_path):
    """`planned()`: the evaluations of the current settings, and the keys of their fine-tunings."""
    context = Context(workdir=tmp_path / "study", pairs=pairs, mesh=None, readers=Readers())

    def plan():
        manifests = [settings.split.make(pairs, fold=fold) for fold in range(len(settings.seeds))]
        trainings = [Trainings.of(name, settings, pairs, manifests, None) for name in settings.models]
        return Evaluations.of(settings, context, manifests, trainings), trainings[0].finetunings

    return plan


def keys(planned):
    evaluations, finetunings = planned()
    rows = {name: seeds[0].key for name, seeds in evaluations.rows.items()}
    among_all = {f"{name} among all": one.key for name, one in evaluations.among_all.items()}
    return rows | among_all | {"finetune": finetunings[0].key}


MODEL = {"finetune", "random"}
FROZEN = {"random-frozen", "random-frozen among all"}
SYSTEMS = {"pixels", "histogram", "hog", "both"}


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (lambda study: setattr(study.evaluate, "geometry", Resize(size=24)), MODEL | FROZEN),
        (lambda study: setattr(study.models["random"].finetune.loop, "dtype", "bfloat16"), MODEL | FROZEN),
        (lambda study: setattr(study.models["random"].finetune.loop, "num_steps", 61), MODEL),
        (lambda study: setattr(study, "seeds", (1,)), MODEL | FROZEN | {"both"}),
        (lambda study: setattr(study.systems["pixels"], "size", 15), {"pixels"}),
        (lambda study: setattr(study.systems["both"].members["features"], "grid", 2), {"both"}),
        (lambda study: setattr(study.split, "validation_fraction", 0.04), MODEL | SYSTEMS),
        (lambda study: setattr(study.split, "seed", 1), MODEL | SYSTEMS | {"random-frozen"}),
        (lambda study: setattr(study, "num_threads", 7), set()),
        (lambda study: setattr(study, "num_workers", 7), set()),
        (lambda study: setattr(study.explain, "num_best", 9), set()),
    ],
    ids=lambda value: None,
)
def test_a_setting_changes_the_keys_of_all_that_follow_from_it_and_no_others(settings, planned, change, changed):
    before = keys(planned)
    change(settings)
    assert {name for name, key in keys(planned).items() if key != before[name]} == changed


def test_the_evaluations_batch_size_is_not_in_the_key_of_training(settings, planned):
    before = keys(planned)
    settings.evaluate.batch_size = 32
    assert keys(planned)["finetune"] == before["finetune"]


def test_a_weight_file_counts_by_its_content_wherever_the_settings_name_it(planned, tmp_path):
    before = keys(planned)
    (tmp_path / "a.pth").write_bytes(b"two")
    assert {name for name, key in keys(planned).items() if key != before[name]} == {"both"}
    (tmp_path / "a.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file of weights .*a\.pth"):
        keys(planned)


def test_lpips_names_the_weights_of_its_trunk():
    assert list(weights_in({"a": Lpips(), "b": (Lpips(trunk=Vgg16()),)})) == [AlexNetLpips(), Vgg16Lpips()]


def test_how_duplicates_are_found_changes_what_learns_from_groups(planned, pairs, monkeypatch):
    before = keys(planned)
    merged = pairs.groups.copy()
    first, second = np.flatnonzero(np.isin(pairs.ids, planned()[1][0].manifest.train))[:2]
    merged[second] = merged[first]
    monkeypatch.setattr(pairs, "groups", merged)
    changed = {name for name, key in keys(planned).items() if key != before[name]}
    assert changed >= SYSTEMS | MODEL
    assert not changed & FROZEN


@pytest.fixture
def evaluated(planned):
    """Evaluations of which only the row `pixels` was ranked."""
    evaluation = planned()[0].systems["pixels"][0]
    numbers = np.arange(1, 41)
    evaluation.run.write_ranks(evaluation.ids, ranks=[numbers, numbers[::-1]], top=[numbers, numbers])
    evaluation.mark()
    return evaluation


def test_a_partly_evaluated_study_has_a_report_of_that_part(evaluated, planned, settings):
    evaluations, _ = planned()
    evaluations.check_up_to_date(settings, ["report"])
    assert {name: ranks.tolist() for name, ranks in evaluations.ranks().items()} == {
        "pixels": [[list(range(1, 41)), list(range(40, 0, -1))]]
    }
    assert evaluations.ranks_among_all() == {}


def test_ranks_of_other_settings_are_refused_with_what_differs_and_the_mend(evaluated, planned, settings):
    settings.systems["pixels"].size = 15
    evaluations, _ = planned()
    named = r"ranks of pixels in .*systems/pixels .*made with other config\.systems\.pixels\. Add evaluate to --stages"
    with pytest.raises(ValueError, match=named):
        evaluations.check_up_to_date(settings, ["pretrain", "report"])
    evaluations.check_up_to_date(settings, ["evaluate", "explain", "report"])
    settings.systems["pixels"].size = 16
    settings.split.validation_fraction = 0.04
    with pytest.raises(ValueError, match="made with other training pairs and validation pairs"):
        planned()[0].ranks()


@pytest.mark.parametrize(
    ("mark", "reason"),
    [({"key": "0123"}, "another version of tll_jax made them"), (None, "their evaluation was cut short")],
    ids=["made by 0.1.0", "cut short"],
)
def test_ranks_of_an_older_version_or_of_a_run_that_was_killed_are_refused(evaluated, mark, reason):
    path = evaluated.folder / "evaluate.done.json"
    path.unlink()
    if mark is not None:
        path.write_text(json.dumps(mark))
    with pytest.raises(ValueError, match=f"{reason}. Add evaluate to --stages"):
        evaluated.read()


@pytest.mark.parametrize("change", [lambda ids: ids[::-1], lambda ids: ["other", *ids[1:]], lambda ids: ids[:-1]])
def test_ranks_of_other_pairs_or_in_another_order_are_refused(evaluated, change):
    ids = change(list(evaluated.ids))
    numbers = np.arange(len(ids))
    evaluated.run.write_ranks(ids, ranks=[numbers, numbers], top=[numbers, numbers])
    with pytest.raises(ValueError, match="does not hold the ranks of the 40 pairs that pixels is evaluated on"):
        evaluated.read()


def test_explanations_and_accuracies_of_other_settings_are_refused(planned, settings):
    evaluation = planned()[0].models["random"][0]
    check_explained(evaluation, settings.explain)
    (evaluation.folder / "explanations").mkdir(parents=True)
    (evaluation.folder / "explanations" / "index.json").write_text("[]")
    mark_done(evaluation.folder, explain_key(evaluation, settings.explain), "explain")
    check_explained(evaluation, settings.explain)
    with pytest.raises(ValueError, match=r"explanations of random seed 0 .* Add explain to --stages"):
        check_explained(evaluation, Explain(num_best=9))
    page = evaluation.folder / "explanations" / "1f98a" / "index.html"
    page.parent.mkdir()
    page.touch()
    with pytest.raises(ValueError, match="Add explain to --stages"):
        check_explained(evaluation, settings.explain)

    key, other = serialize.fingerprint("one"), serialize.fingerprint("other")
    assert read_probe(evaluation.folder, key, "random") is None
    mark_done(evaluation.folder, key, "probe", accuracy={"linear": 0.5})
    assert read_probe(evaluation.folder, key, "random") == {"linear": 0.5}
    with pytest.raises(ValueError, match=r"the accuracies of random .* Add evaluate to --stages"):
        read_probe(evaluation.folder, other, "random")


def test_explaining_needs_ranks_of_the_same_settings(planned, settings):
    evaluations, _ = planned()
    with pytest.raises(ValueError, match="explaining random seed 0 needs its ranks: add evaluate to --stages"):
        evaluations.check_up_to_date(settings, ["explain"])
    one = evaluations.models["random"][0]
    numbers = np.arange(1, 41)
    one.run.write_ranks(one.ids, ranks=[numbers, numbers], top=[numbers, numbers])
    one.mark()
    evaluations.check_up_to_date(settings, ["explain"])
    settings.evaluate = dataclasses.replace(settings.evaluate, batch_size=32)
    with pytest.raises(ValueError, match=r"made with other config\.evaluate"):
        planned()[0].check_up_to_date(settings, ["explain"])
