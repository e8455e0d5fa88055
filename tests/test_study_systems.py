"""Studies of several seeds, pretrainings and systems, and what is learned from by each."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.configs import tiny
from tests.study_runs import run_study
from tll_jax import serialize
from tll_jax.data.emoji import EmojiPairs
from tll_jax.data.pipeline import Readers
from tll_jax.devices import make_mesh
from tll_jax.files import write_json
from tll_jax.settings import validate
from tll_jax.study.checks import check_fits_nothing
from tll_jax.study.evaluate import Evaluations, seeded_systems
from tll_jax.study.folder import StudyFolder
from tll_jax.study.load import load_system
from tll_jax.study.other_pairs import evaluate_on, submit
from tll_jax.study.results import collect
from tll_jax.study.run import Run
from tll_jax.study.train import Context
from tll_jax.systems.bag_of_words import BagOfWords
from tll_jax.systems.baselines import ColorHistogram, Pixels
from tll_jax.systems.ensemble import Ensemble
from tll_jax.training.records import read
from tll_jax.typing import System

PROBED = Path(__file__).parent / "configs" / "probed.py"


@pytest.fixture(scope="module")
def probed(environment, tmp_path_factory):
    """A finished study of two pretrainings, three fine-tuning seeds and a probe, and its results."""
    workdir = tmp_path_factory.mktemp("probed") / "study"
    run_study(environment, PROBED, workdir, "--stages=pretrain,finetune,evaluate,report")
    return workdir, json.loads((workdir / "results.json").read_text())


def test_fine_tuning_seeds_take_turns_on_the_pretrainings(probed):
    workdir, results = probed
    assert len(list(workdir.glob("stages/pretrain-*"))) == 2
    records = {seed: read(workdir / f"models/barlow/seed-{seed}/pretrain.jsonl") for seed in range(3)}
    losses = {seed: [record["loss"] for record in found if "loss" in record] for seed, found in records.items()}
    assert losses[0] == losses[2] != losses[1]
    rows = {row["system"]: row["num_seeds"] for row in results["rows"]}
    assert (rows["barlow-frozen"], rows["barlow"], rows["random-frozen"], rows["random"]) == (2, 3, 1, 3)
    assert [len(StudyFolder(workdir).ranks(name)) for name in ("barlow-frozen", "random-frozen")] == [2, 1]


def test_backbones_are_probed_while_they_pretrain_and_after(probed):
    workdir, results = probed
    assert {name: len(found) for name, found in results["probes"].items()} == {"barlow-frozen": 2, "random-frozen": 1}
    records = read(workdir / "models/barlow/seed-0/pretrain.jsonl")
    watched = [record["probe/neighbors"] for record in records if "probe/neighbors" in record]
    assert len(watched) == 2
    # After the last step the backbone is the one that is probed later; few of its neighbors are so near that rounding
    # decides. Chance is one of 98 classes.
    assert watched[-1] == pytest.approx(results["probes"]["barlow-frozen"][0]["neighbors"], abs=0.05)
    for found in results["probes"].values():
        for accuracy in found:
            assert 0.1 < accuracy["neighbors"] < 1
            assert 2 / 98 < accuracy["linear"] < 1
    assert "## Probes" in (workdir / "results.md").read_text()


FITS = []


@dataclasses.dataclass(kw_only=True)
class Guess(System):
    """A system with random scores of its seed that records the pairs it was fitted on."""

    seed: int = 0

    def fit(self, train, validation):
        FITS.append((self.seed, list(validation.ids)))

    def score(self, queries, candidates):
        return np.random.default_rng(self.seed).normal(size=(len(queries), len(candidates))).astype(np.float32)


def evaluate_systems(settings, context, manifests, evaluations):
    """Evaluates the systems of a study without models."""
    opened = {"sources": {}, "weights": {}, "probe": None, "trainings": [], "stages": ["evaluate"]}
    run = Run(study=settings, context=context, manifests=manifests, evaluations=evaluations, **opened)
    run.evaluate_systems()


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A study of systems without models, with three seeds: settings, context, folds and results."""
    settings = tiny.get_config()
    settings.models, settings.planned, settings.seeds = {}, (), (0, 5, 2)
    settings.systems = {"guess": Guess(), "pixels": Pixels(size=4), "histogram": ColorHistogram(bins=(4, 2, 2))}
    settings.systems["both"] = Ensemble(members={name: settings.systems[name] for name in ("pixels", "histogram")})
    settings.faces_included = ("histogram",)
    validate(settings)
    context = Context(
        workdir=tmp_path_factory.mktemp("evaluated"),
        pairs=settings.pairs.open(),
        mesh=make_mesh(),
        readers=Readers(num_threads=0),
    )
    manifests = [settings.split.make(context.pairs, fold=fold) for fold in range(3)]
    check_fits_nothing(settings)
    evaluations = Evaluations.of(settings, context, manifests, [])
    evaluate_systems(settings, context, manifests, evaluations)
    results = collect(settings, context, manifests[0], evaluations, evaluations.ranks(), {})
    write_json(context.workdir / "results.json", results)
    return settings, context, manifests, results


def test_a_system_with_a_seed_is_evaluated_once_a_seed_each_choosing_on_its_own_fold(evaluated):
    _, context, manifests, results = evaluated
    rows = {row["system"]: row for row in results["rows"]}
    assert {name: (rows[name]["num_seeds"], rows[name]["kind"]) for name in ("guess", "both", "pixels")} == {
        "guess": (3, "fitted"),
        "both": (3, "fitted"),
        "pixels": (1, "baseline"),
    }
    assert [(seed, manifest.validation) for seed, manifest in zip((0, 5, 2), manifests, strict=True)] == FITS
    assert manifests[0].validation != manifests[1].validation
    test = context.pairs.images(context.pairs.indices(manifests[0].test))
    scores = Guess(seed=5).score(test.left, test.right)
    slow = [sum(score >= row[query] for score in row) for query, row in enumerate(scores)]
    folder = StudyFolder(context.workdir)
    assert [run.name for run in folder.runs("guess")] == ["seed-0", "seed-5", "seed-2"]
    assert folder.ranks("guess")[1].left_to_right.tolist() == slow
    assert folder.models == []
    assert len(folder.ranks("pixels")) == 1


def test_systems_that_are_evaluated_already_are_not_fitted_again(evaluated):
    settings, context, manifests, _ = evaluated
    before = len(FITS)
    evaluate_systems(settings, context, manifests, Evaluations.of(settings, context, manifests, []))
    assert len(FITS) == before


def test_a_system_that_fits_nothing_is_ranked_among_all_pairs_as_well(evaluated):
    _, context, _, results = evaluated
    chance, row = results["faces_included"]
    assert row["system"] == "histogram"
    assert chance["top1"]["value"] == pytest.approx(1 / 1610)
    with np.load(context.workdir / "systems" / "histogram" / "faces-included" / "ranks.npz") as ranks:
        assert len(ranks["ids"]) == 1610
        assert row["top1"]["value"] == pytest.approx(
            np.mean([ranks["left_to_right"] == 1, ranks["right_to_left"] == 1])
        )


def test_a_system_that_learns_is_not_ranked_among_all_pairs(evaluated):
    settings, *_ = evaluated
    asking = dataclasses.replace(settings, faces_included=("pixels",))
    with pytest.raises(
        ValueError, match="faces_included names pixels, which learns from pairs that it would be tested on"
    ):
        check_fits_nothing(asking)
    with pytest.raises(ValueError, match=r"faces_included is \['hogg'\]; it must be names of systems or frozen models"):
        dataclasses.replace(settings, faces_included=("hogg",)).check()


def test_bag_of_words_has_a_seed_and_a_run_folder_for_it():
    assert [folder for folder, _ in seeded_systems("words", BagOfWords(), (0, 3))] == [
        "systems/words/seed-0",
        "systems/words/seed-3",
    ]
    assert [seeded.seed for _, seeded in seeded_systems("words", BagOfWords(), (0, 3))] == [0, 3]


def test_a_system_is_fitted_again_from_its_run_folder_and_scores_other_pairs(evaluated):
    settings, context, _, results = evaluated
    kept = {name: system for name, system in settings.systems.items() if name != "guess"}
    saved = serialize.to_json(dataclasses.replace(settings, systems=kept))
    write_json(context.workdir / "config.json", {"study": "tiny", "settings": saved})
    name, kind, system = load_system(context.workdir / "systems" / "both" / "seed-5")
    assert (name, kind) == ("both", "fitted")
    assert isinstance(system, System)
    test = context.pairs.images(context.pairs.indices(sorted(StudyFolder(context.workdir).ids)))
    scores = system.score(test.left, test.right)
    own = np.diagonal(scores)[:, None]
    assert (scores >= own).sum(axis=1).tolist() == StudyFolder(context.workdir).ranks("both")[1].left_to_right.tolist()
    # A histogram is not trained, so all pairs are new to it.
    scored = evaluate_on(context.workdir / "systems" / "histogram", EmojiPairs(), exclude_faces=False)
    assert scored["rows"][1]["mrr"] == results["faces_included"][1]["mrr"]
    assert scored["learned_from"] == {"pairs": 0, "equal": 0, "similar": 0, "left_out": True, "words": []}
    with pytest.raises(FileNotFoundError, match=r"is not of a system in config\.systems"):
        load_system(context.workdir / "systems" / "guess" / "seed-0")
    (context.workdir / "config.json").unlink()


def test_pairs_that_a_system_was_fitted_on_are_counted_and_left_out_unless_asked_for(
    evaluated, tmp_path, caplog, monkeypatch, opened_once
):
    settings, context, manifests, results = evaluated
    kept = dataclasses.replace(settings, systems={"pixels": settings.systems["pixels"]}, faces_included=())
    workdir, folder = tmp_path, tmp_path / "systems" / "pixels"
    shutil.copytree(context.workdir / "systems" / "pixels", folder)
    write_json(workdir / "config.json", {"study": "tiny", "settings": serialize.to_json(kept)})

    # Fitted once.
    loaded = load_system(folder)
    monkeypatch.setattr("tll_jax.study.other_pairs.load_system", lambda folder: loaded)

    def score(**asked):
        return evaluate_on(folder, EmojiPairs(), exclude_faces=True, **asked)

    untold = score()
    assert untold["protocol"]["queries"] == 1081
    assert untold["learned_from"]["pairs"] is None
    assert "cannot be told" in untold["learned_from"]["words"][0]
    # 1,081 pairs show no face; 40 of them are tested, and nothing else is held out.
    manifests[0].save(workdir / "split.json")
    honest = score()
    assert honest["protocol"]["queries"] == 40
    assert honest["rows"][1]["mrr"]["value"] == pytest.approx(
        next(row["mrr"]["value"] for row in results["rows"] if row["system"] == "pixels")
    )
    every = score(include_training=True)
    assert (every["protocol"]["queries"], every["learned_from"]["pairs"]) == (1081, 1041)
    assert every["rows"] == untold["rows"]
    assert "1,041 of 1,081 pairs show a picture that it has learned from" in every["learned_from"]["words"][0]
    only = dataclasses.replace(manifests[0], train=[*manifests[0].train, *manifests[0].test])
    only.save(workdir / "split.json")
    with pytest.raises(ValueError, match=r"trained, validated or pretrained on all of them.*or --include-training"):
        score()

    manifests[0].save(workdir / "split.json")
    (tmp_path / "test_candidates.csv").write_text(
        "left,c0,c1\n" + "".join(f"{id},new,known\n" for id in ("new", "known"))
    )
    for name, id in (("new", manifests[0].test[0]), ("known", manifests[0].train[0])):
        for side in ("left", "right"):
            picture = tmp_path / "test" / side / f"{name}.webp"
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(context.pairs.archive.read(f"{side}/{id}.webp"))
    submit(folder, tmp_path / "test_candidates.csv", tmp_path / "out.csv")
    assert "has learned from 2 of the 4 pictures that it is asked about" in caplog.text
