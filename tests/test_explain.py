"""`tll explain` on a trained model: its pages agree with the model, and its errors name the allowed values."""

import inspect
import json
import re
from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.configs import tiny
from tests.report.synthetic_study import build
from tll_jax import cli, ranking
from tll_jax.data.emoji import names_of
from tll_jax.devices import local_mesh
from tll_jax.files import file_name, write_arrays, write_json
from tll_jax.models.convnext import ConvNeXt
from tll_jax.models.heads import Identity, SpatialProjection
from tll_jax.models.vit import VisionTransformer
from tll_jax.saliency.methods import make_methods
from tll_jax.saliency.networks import NetworkEmbedding
from tll_jax.saliency.side_by_side import ExplainedPair
from tll_jax.serialize import Fingerprint
from tll_jax.study.explain import (
    PIXELS_METHOD,
    Explainer,
    ExplainRequest,
    applicability,
    spatial_stage,
    write_pages,
)
from tll_jax.study.explain_files import _position, explain_query
from tll_jax.study.folder import RunFolder, StudyFolder
from tll_jax.study.load import load_run
from tll_jax.study.networks import explainable
from tll_jax.study.settings import Explain, Model
from tll_jax.training.state import init_variables
from tll_jax.typing import PairImages


@pytest.fixture(scope="module")
def model_folder(finished):
    return finished / "models" / "barlow" / "seed-0"


@pytest.fixture(scope="module")
def embeddings(model_folder):
    with np.load(model_folder / "embeddings.npz") as saved:
        return saved["ids"].tolist(), saved["left"], saved["right"]


def test_a_query_is_explained_beside_its_nearest_candidates_and_its_match(
    model_folder, embeddings, tmp_path, capsys, caplog
):
    ids, left, right = embeddings
    with np.load(model_folder / "ranks.npz") as ranks:
        query = int(ranks["left_to_right"].argmax())
    methods = ("--target=margin", "--method=gradient", "--method=decomposition")
    cli.main(["explain", str(model_folder), f"--query={ids[query]}", "--neighbors=1", *methods, f"--out={tmp_path}"])
    # With a foil of its own each candidate is explained by itself.
    assert len([line for line in caplog.messages if line.startswith("explain 1 pair by 1 method, ")]) == 2
    assert len([line for line in caplog.messages if re.fullmatch(r"1 of 1: gradient done in \d+\.\d s", line)]) == 2
    similarities = right @ left[query]
    nearest = int(similarities.argmax())
    index, *pages = capsys.readouterr().out.split()
    assert len(pages) == 2
    links = re.findall(r'class="candidate" href="(.*?)"', (tmp_path / "index.html").read_text())
    assert (index, [str(tmp_path / link) for link in links]) == (str(tmp_path / "index.html"), pages)
    for page, at in zip(pages, (nearest, query), strict=True):
        folder = tmp_path / f"{1 + int((similarities > similarities[at]).sum()):03d}-{ids[at]}"
        assert page == str(folder / "index.html")
        found = ExplainedPair.load(folder / "explained.npz")
        assert found.cosine == pytest.approx(similarities[at], abs=1e-4)
        random = [float(right[j] @ left[i]) for i in range(len(left)) for j in range(len(right)) if i != j]
        # Cosines of the page and of the embeddings differ by rounding.
        below, above = (np.mean([one < similarities[at] + shift for one in random]) for shift in (-2e-4, 2e-4))
        assert below <= found.more_alike_than <= above
        assert float(found.decomposition.total()) == pytest.approx(similarities[at], abs=1e-4)
        assert list(found.maps) == ["gradient"]
        assert all(one.shape == (tiny.SIZE, tiny.SIZE) and one.any() for one in found.maps["gradient"])
        assert cv2.imread(str(folder / "panel.png")) is not None


def test_two_files_of_any_size_are_explained(model_folder, tmp_path):
    sides = []
    for side in ("left", "right"):
        image = cv2.imread(str(next((model_folder.parents[2] / "images" / side).glob("*.png"))))
        sides.append(tmp_path / f"{side}.jpg")
        cv2.imwrite(str(sides[-1]), cv2.resize(image, (50, 70)))
    files = [f"--left={sides[0]}", f"--right={sides[1]}", f"--foil={sides[0]}", "--target=log-softmax"]
    cli.main(["explain", str(model_folder), *files, "--method=grad-cam", "--layer=stage2", f"--out={tmp_path / 'new'}"])
    found = ExplainedPair.load(tmp_path / "new" / "explained.npz")
    assert (found.layer, found.target, found.names) == ("stage2", "log-softmax", ("left.jpg", "right.jpg"))
    assert found.decomposition is None
    assert found.left.shape == (tiny.SIZE, tiny.SIZE, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--query=nothing"], "neither an image file nor one of the test pairs"),
        (["--left=a.png"], "--left FILE and --right FILE, or --query"),
        (["--left=a.png", "--right=b.png"], "the image a.png is not there"),
        (["--left=broken.png", "--right=broken.png"], "broken.png: not an image that can be read"),
        (["--query={id}", "--target=likeness"], "no target 'likeness'; there are cosine, dot, mse"),
        (["--query={id}", "--method=magic"], "no method magic; for this model there are gradient, "),
        (["--query={id}", "--layer=stage9"], "no layer 'stage9' with a map; there are stem, stage1"),
        (["--left={image}", "--right={image}", "--target=margin"], "give --foil FILE, or ask with --query"),
    ],
)
def test_what_cannot_be_explained_is_refused(model_folder, embeddings, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    known = {"id": embeddings[0][0], "image": next((model_folder.parents[2] / "images" / "left").glob("*.png"))}
    asked = [argument.format(**known) for argument in arguments]
    with pytest.raises(SystemExit, match=message):
        cli.main(["explain", str(model_folder), *asked, "--out=new"])
    assert not (tmp_path / "new").exists()


def test_a_network_without_maps_is_refused(model_folder):
    model, _, trained = load_run(model_folder)
    with pytest.raises(ValueError, match="no stage of this network has a map of more than one position at 1 pixels"):
        spatial_stage(model, trained.variables, size=1)


def test_the_default_layer_is_the_last_one_that_the_embedding_depends_on():
    backbone = VisionTransformer(width=8, depth=2, num_heads=2, mlp_width=8, patch_size=8, image_size=32)
    model = Model(backbone=backbone, head=Identity())
    network = explainable(model)
    variables = init_variables(network, size=32, seed=0)
    embed, image = NetworkEmbedding(network=network, variables=variables), jnp.linspace(0, 1, 3072).reshape(32, 32, 3)

    @jax.jit
    def slopes():
        splits = [embed.split(image, stage) for stage in range(backbone.num_stages)]
        return [jnp.abs(jax.grad(lambda maps, rest=rest: rest(maps)[0])(maps)).max() for maps, rest in splits]

    depends = [slope > 0 for slope in slopes()]
    assert depends == [True, True, False, False]
    assert spatial_stage(model, variables, size=32) == 1
    backbone.pooling = "mean"
    assert spatial_stage(model, variables, size=32) == 3


@pytest.mark.parametrize(
    ("backbone", "head", "pooling"),
    [
        (ConvNeXt(widths=(4, 4, 4, 4), depths=(1, 1, 1, 1)), Identity(), None),
        (VisionTransformer(width=8, depth=1, num_heads=1), Identity(), "class"),
        (VisionTransformer(width=8, depth=1, num_heads=1), SpatialProjection(stages=(2,)), "mean"),
    ],
)
def test_attention_is_shown_of_transformers_alone_and_of_the_tokens_that_the_head_reads(backbone, head, pooling):
    known = applicability(Model(backbone=backbone, head=head))
    assert known["pooling"] == pooling
    assert ("attention-rollout" in make_methods(size=32, stage=1, **known)) == (pooling is not None)


def test_the_methods_are_listed_for_a_model(model_folder, capsys):
    cli.main(["explain", str(model_folder), "--list"])
    lines = capsys.readouterr().out.splitlines()
    assert {"gradient", "grad-cam++", "rise", "decomposition", "expected-gradients"} <= {
        line.split()[0] for line in lines
    }
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines)


def test_the_pages_of_a_study_are_those_of_best_and_worst_in_turn(finished, model_folder, tmp_path):
    folder = tmp_path / "seed-0"
    explanations = json.loads((model_folder / "explanations" / "index.json").read_text())
    write_json(folder / "explanations" / "index.json", explanations)
    model, evaluate, trained = load_run(model_folder)
    study = StudyFolder(finished)
    pair_images = PairImages(
        study.ids,
        *([study.image(id, side) for id in study.ids] for side in ("left", "right")),
        np.arange(len(study.ids)),
    )
    request = ExplainRequest(methods=("decomposition",))
    settings, key = Explain(num_best=2, num_worst=1, num_pages=2), Fingerprint("key", former="key")
    for _ in range(2):
        open_explainer = partial(Explainer.of, model, evaluate, trained, pair_images)
        write_pages(open_explainer, pair_images, settings, RunFolder(folder), key=key, request=request)
    pages = sorted(path.parent.name for path in (folder / "explanations").glob("*/index.html"))
    best, worst = (next(one["id"] for one in explanations if one["kind"] == kind) for kind in ("best", "worst"))
    assert pages == sorted([best, worst])


def test_the_recommended_maps_of_a_study_are_those_of_its_explained_pairs(finished, model_folder):
    model, evaluate, trained = load_run(model_folder)
    run, study = RunFolder(model_folder), StudyFolder(finished)
    maps = run.recommended()
    assert list(maps) == [one["id"] for one in run.explained()]
    for found in maps.values():
        assert all(side.shape == (tiny.SIZE, tiny.SIZE) and side.any() for side in found["integrated-gradients"])
    id, found = maps.popitem()
    explainer = Explainer(model=model, evaluate=evaluate, variables=trained.variables)
    request = ExplainRequest(methods=("decomposition",))
    (pair,) = explainer(*([study.image(id, side)] for side in ("left", "right")), [("left", "right")], request)
    for side, exact in zip(found["decomposition"], pair.decomposition.heatmaps(), strict=True):
        np.testing.assert_allclose(side, exact, atol=1e-5)


def test_the_report_shows_integrated_gradients_as_they_were_graded():
    graded = make_methods(size=8, stage=0)["integrated-gradients"].saliency
    assert PIXELS_METHOD.saliency is graded.func
    defaults = inspect.signature(graded.func).parameters
    assert graded.keywords == {name: defaults[name].default for name in graded.keywords}


@pytest.fixture
def uneven(tmp_path, monkeypatch):
    """A run with embeddings of arbitrary length and ids that are not file names, and a record of explained pairs: its
    folder, ids, ranks and the record."""
    study = StudyFolder(build(tmp_path / "study", num_pairs=10, num_excluded=2))
    run = study.path / "models" / "barlow" / "seed-0"
    left, right = np.random.default_rng(0).normal(size=(2, 10, 4)).astype(np.float32)
    right *= np.geomspace(0.2, 3, 10, dtype=np.float32)[:, None]
    write_arrays(run / "embeddings.npz", ids=np.array(study.ids), left=left, right=right)
    ranks = ranking.pair_ranks(left, right, mesh=local_mesh())[0]
    cosines = left @ (right / np.linalg.norm(right, axis=1, keepdims=True)).T
    assert ranks.tolist() != [int(np.sum(row >= row[query])) for query, row in enumerate(cosines)]
    write_json(run / "config.json", {"model": "barlow"})
    asked = []

    class Stub:
        def __call__(self, lefts, rights, names, how):
            asked.extend(names)
            return names

        def embed(self, images):
            return left[2:3]

    monkeypatch.setattr("tll_jax.study.explain_files.open_explainer", lambda folder: Stub())
    monkeypatch.setattr("tll_jax.study.explain_files.write_explanation", lambda names, folder, *, signed: folder)
    monkeypatch.setattr("tll_jax.study.explain_files.write_index", lambda query, pages, folder, *, signed: folder)
    return run, study.ids, ranks, asked


@pytest.mark.parametrize("target", ["cosine", "margin"])
def test_candidates_of_a_query_are_ranked_as_the_study_ranked_them(uneven, tmp_path, target):
    run, ids, ranks, asked = uneven
    how = ExplainRequest(target_name=target)
    for query, identity in enumerate(ids):
        asked.clear()
        _, *folders = explain_query(run, identity, tmp_path / "out", how, num_candidates=3)
        assert {folder.parent for folder in folders} == {tmp_path / "out"}
        assert [folder.name[:4] for folder in folders[:3]] == ["001-", "002-", "003-"]
        assert f"{ranks[query]:03d}-{file_name(identity)}" in [folder.name for folder in folders]
        assert (identity, f"{identity} (rank {ranks[query]})") in asked
        assert len(folders) == (3 if ranks[query] <= 3 else 4)


def test_a_pair_is_asked_for_by_its_name_and_an_ambiguous_start_is_answered_with_the_candidates():
    ids = ["1f98a", "1f348", "1f3b5", "1f3b6", "26fa"]
    names = names_of(ids)
    assert list(names.values()) == ["fox face", "melon", "musical note", "notes", "tent"]
    for query in ("1f98a", "fox face", "fox_face", "Fox", "fox"):
        assert _position(query, ids, names) == 0
    # A whole name counts before the starts of others.
    assert _position("note", ["a", "b"], {"a": "notebook", "b": "note"}) == 1
    with pytest.raises(ValueError, match=r"'m' is the start of several names: melon, musical note$"):
        _position("m", ids, names)
    for query in ("ox", ""):
        with pytest.raises(ValueError, match="nor one of the test pairs, such as 'fox face'"):
            _position(query, ids, names)
    # Ids of which some are no emoji name themselves.
    assert names_of(["1f98a", "mine"]) == {"1f98a": "1f98a", "mine": "mine"}


def test_an_image_file_as_query_is_ranked_by_its_embedding(uneven, tmp_path):
    run, ids, ranks, asked = uneven
    cv2.imwrite(str(tmp_path / "query.png"), np.zeros((8, 8, 3), np.uint8))
    _, *folders = explain_query(run, str(tmp_path / "query.png"), tmp_path / "out", ExplainRequest(), num_candidates=10)
    assert folders[ranks[2] - 1].name == f"{ranks[2]:03d}-{file_name(ids[2])}"
    assert asked[0][0] == "query"
    for query in ("x" * 5000, "a\0b"):
        with pytest.raises(ValueError, match="is neither an image file nor one of the test pairs"):
            explain_query(run, query, tmp_path / "out", ExplainRequest(), num_candidates=10)
