"""Model files written from a study's runs embed and rank as the study did; damaged or foreign files are refused in one
line."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tll_jax
from tll_jax import cli, ranking
from tll_jax.data.geometry import Resize
from tll_jax.data.imaging import read_image, write_image
from tll_jax.data.pair_folders import MatchingFolders
from tll_jax.data.splits import Split
from tll_jax.errors import UserError
from tll_jax.files import read_arrays
from tll_jax.model_files import read_model_file
from tll_jax.models.resnet import ResNet
from tll_jax.models.weights import WeightFile, to_torch
from tll_jax.saliency.side_by_side import ExplainedPair
from tll_jax.study.folder import RunFolder
from tll_jax.study.settings import Evaluate, Study
from tll_jax.systems.baselines import Pixels
from tll_jax.systems.frozen_features import FrozenFeatures
from tll_jax.systems.metric_learning import PrincipalComponents, RelevantComponents

BACKBONE = ResNet(depth=10, width=4)
SIZE, NUM_PAIRS, NUM_TEST = 32, 40, 10


def rca(path):
    frozen = FrozenFeatures(
        backbone=BACKBONE,
        weights=WeightFile(path=str(path)),
        stages=(1, 3),
        grid=4,
        standardize=True,
        geometry=Resize(size=SIZE),
        batch_size=16,
    )
    components = PrincipalComponents(features=frozen, widths=(16,), comparisons=("cosine",))
    metric = RelevantComponents(features=components, shrinkages=(0.43,), comparisons=("cosine",))
    return PrincipalComponents(features=metric, widths=(12,), whitenings=(-0.5,), comparisons=("cosine",))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a study that has fitted a linear system on a frozen backbone with random weights; its pairs are two
    noisy copies of a picture each."""
    folder = tmp_path_factory.mktemp("fitted")
    images = jnp.zeros((1, SIZE, SIZE, 3))
    initial = jax.jit(lambda key: BACKBONE.build(dtype=jnp.float32).init(key, images, train=False))(jax.random.key(0))
    save_file(to_torch(initial, BACKBONE.torch_name), folder / "weights.safetensors")
    rng = np.random.default_rng(0)
    for number, base in enumerate(rng.integers(0, 256, (NUM_PAIRS, 8, 8, 3)).repeat(5, axis=1).repeat(6, axis=2)):
        for side in ("left", "right"):
            noisy = np.clip(base + rng.normal(0, 90, base.shape), 0, 255).astype(np.uint8)
            write_image(folder / "pairs" / side / f"{number:02}.png", noisy)
    system = rca(folder / "weights.safetensors")
    study = Study(
        name="fitted",
        pairs=MatchingFolders(path=str(folder / "pairs"), duplicates=None),
        split=Split(num_test=NUM_TEST, validation_fraction=0.2, faces="include"),
        models={},
        systems={"rca": system, "pixels": Pixels()},
        evaluate=Evaluate(geometry=Resize(size=SIZE)),
    )
    tll_jax.run(study, workdir=folder / "study")
    return folder


@pytest.fixture(scope="module")
def file(study):
    """The model file of that system."""
    path = study / "rca.safetensors"
    cli.main(["fit", str(study / "study" / "systems" / "rca"), f"--out={path}"])
    return path


@pytest.fixture(scope="module")
def model(file):
    return tll_jax.load(file)


@pytest.fixture(scope="module")
def test_pairs(study):
    """The paths of the test pairs' pictures."""
    ids = RunFolder(study / "study" / "systems" / "rca").ranks().ids
    return [[study / "pairs" / side / f"{id}.png" for id in ids] for side in ("left", "right")]


def test_a_model_file_ranks_as_the_system_of_its_study(study, model, test_pairs):
    left, right = map(model.embed, test_pairs)
    assert left.shape == (NUM_TEST, 12)
    np.testing.assert_allclose(np.sum(left**2, axis=1), 1, atol=1e-5)
    saved = RunFolder(study / "study" / "systems" / "rca").ranks()
    for scores, ranks in ((left @ right.T, saved.left_to_right), (right @ left.T, saved.right_to_left)):
        assert ranking.ranks(scores, np.arange(NUM_TEST)).tolist() == ranks.tolist()
    assert max(saved.left_to_right) > 1, "ranks that are all 1 would hide much"


def test_a_model_file_records_its_provenance(study, file):
    found = read_model_file(file)
    split = json.loads((study / "study" / "split.json").read_text())
    learned = [*split["train"], *split["validation"]]
    assert found.provenance["package_version"] == tll_jax.__version__
    assert (found.provenance["study"], found.provenance["system"]) == ("fitted", "rca")
    assert found.provenance["settings"]["class"] == "PrincipalComponents"
    assert found.provenance["counts"] == {"train_pairs": len(split["train"]), "validation_pairs": 8}
    assert "no picture" in found.provenance["license"]
    assert set(found.pictures) == {content for id in learned for content in split["hashes"][id]}
    tensors = load_file(file)
    assert tensors["params/head/kernel"].dtype == np.float16
    assert tensors["params/head/kernel"].shape == (16, 4 + 16, 12)
    # Weights from a user's own file are copied into the model file.
    assert any(name.startswith("params/backbone/") for name in tensors)


def test_the_cosine_is_the_sum_over_places_and_stages(model, test_pairs):
    (a, *_), (_, b, *_) = test_pairs
    left, right = model.embed([a, b])
    pairs = model.decompose(a, b)
    assert pairs.shape == (4, 4, 4, 4)
    assert pairs.sum() == pytest.approx(float(left @ right), abs=1e-5)
    parts = model.contributions([a, b, a])
    assert parts.shape == (3, 2, 4, 4, 12)
    np.testing.assert_allclose(parts.sum(axis=(1, 2, 3)), [left, right, left], atol=1e-5)
    swapped = model.decompose(b, a)
    np.testing.assert_allclose(swapped, pairs.transpose(2, 3, 0, 1), atol=1e-6)


def test_the_embedder_takes_prepared_batches_of_one_shape(model, test_pairs):
    embedder = model.embedder
    images = [read_image(path) for path in test_pairs[0][:3]]
    batch = np.zeros(embedder.batch_shape, np.uint8)
    batch[:3] = [embedder.geometry(np.random.default_rng(0), image) for image in images]
    assert embedder.batch_shape == (16, SIZE, SIZE, 3)
    assert model.image_size == embedder.image_size == SIZE
    np.testing.assert_allclose(np.asarray(embedder(batch))[:3], model.embed(images), atol=1e-5)
    with pytest.raises(ValueError, match=r"the batch is uint8 \[3, 32, 32, 3\]; it must be uint8 \[16, 32, 32, 3\]"):
        embedder(batch[:3])


def test_the_fingerprint_follows_from_the_numbers_alone_and_needs_no_jax(file, model, tmp_path):
    code = (
        "import sys; from pathlib import Path; from tll_jax.model_files import read_model_file as read; "
        f"print(read(Path({str(file)!r})).fingerprint, 'jax' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [model.fingerprint, "False"]

    def changed(edit, tensors):
        path, found = tmp_path / "changed.safetensors", json.loads(json.dumps(metadata))
        edit(found)
        save_file(tensors, path, {"tll_jax": json.dumps(found)})
        return read_model_file(path).fingerprint

    whole = load_file(file)
    metadata = json.loads(header(file.read_bytes())["__metadata__"]["tll_jax"])
    assert changed(lambda found: found["provenance"].update(license="another"), whole) == model.fingerprint
    assert changed(lambda found: found["network"]["geometry"].update(size=24), whole) != model.fingerprint
    other = whole | {"params/head/bias": whole["params/head/bias"] + 1}
    assert changed(lambda found: None, other) != model.fingerprint


def header(content):
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])


def test_evaluate_leaves_out_pairs_that_the_file_was_fitted_on(study, file, capsys, tmp_path):
    cli.main(["evaluate", str(file), f"--pairs={study / 'pairs'}", f"--out={tmp_path / 'result.json'}"])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["protocol"]["queries"] == NUM_TEST
    assert result["learned_from"]["equal"] == NUM_PAIRS - NUM_TEST
    assert "30 of 40 pairs are left out" in capsys.readouterr().out
    rows = {row["system"]: row for row in json.loads((study / "study" / "results.json").read_text())["rows"]}
    assert result["rows"][1]["mrr"]["value"] == pytest.approx(rows["rca"]["mrr"]["value"], abs=1e-3)


def test_files_are_explained_by_a_model_file_and_by_its_system_alike(study, file, test_pairs, tmp_path):
    pages = {}
    systems = study / "study" / "systems"
    for name, run in {"file": file, "rca": systems / "rca"}.items():
        pair = [f"--left={test_pairs[0][0]}", f"--right={test_pairs[1][0]}"]
        asked = ["--method=decomposition", *(["--method=gradient"] if run == file else [])]
        cli.main(["explain", str(run), *pair, *asked, f"--out={tmp_path / name}"])
        pages[name] = ExplainedPair.load(tmp_path / name / "explained.npz")
    assert pages["file"].maps["gradient"][0].any()
    for page in pages.values():
        assert page.cosine == pytest.approx(pages["rca"].cosine, abs=1e-3)
        assert float(page.decomposition.total()) == pytest.approx(page.cosine, abs=1e-5)
        assert page.decomposition.pairs.shape == (4, 4, 4, 4)


def test_a_query_is_explained_by_a_fitted_system(study, tmp_path, capsys):
    run = study / "study" / "systems" / "rca"
    saved = RunFolder(run).ranks()
    asked = ["--query", saved.ids[0], "--neighbors=1", "--method=decomposition", f"--out={tmp_path}"]
    cli.main(["explain", str(run), *asked])
    assert f"{saved.left_to_right[0]:03d}-{saved.ids[0]}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["explain", "fit"])
def test_a_system_that_is_no_network_says_why(study, command, tmp_path):
    run, picture = study / "study" / "systems" / "pixels", study / "pairs" / "left" / "00.png"
    words = {
        "fit": [f"--out={tmp_path / 'new.safetensors'}"],
        "explain": [f"--left={picture}", f"--right={picture}", f"--out={tmp_path / 'new'}"],
    }
    with pytest.raises(SystemExit, match=r"is no network .*: its descriptor is computed outside of JAX"):
        cli.main([command, str(run), *words[command]])
    assert not list(tmp_path.iterdir())


def test_a_trained_model_becomes_a_file_that_embeds_as_it_did(finished, tmp_path):
    run = finished / "models" / "barlow" / "seed-0"
    cli.main(["fit", str(run), f"--out={tmp_path / 'barlow.safetensors'}"])
    model, saved = tll_jax.load(tmp_path / "barlow.safetensors"), read_arrays(run / "embeddings.npz")
    paths = [finished / "images" / "left" / f"{id}.png" for id in saved["ids"].tolist()]
    np.testing.assert_allclose(model.embed(paths), saved["left"], atol=1e-5)
    split = json.loads((run / "split.json").read_text())
    learned = {content for part in ("train", "validation") for id in split[part] for content in split["hashes"][id]}
    assert learned <= set(model.file.pictures)
    assert "CC BY 4.0" in model.file.provenance["license"]
    assert len(tll_jax.load(run).fingerprint) > 0


DAMAGES = {
    "cut": lambda whole: (whole[: len(whole) // 2], "may be truncated"),
    "empty": lambda whole: (b"", "may be truncated"),
    "words": lambda whole: (b"no tensors at all", "may be truncated"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_refused_in_words(file, tmp_path, name):
    content, message = DAMAGES[name](file.read_bytes())
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        tll_jax.load(path)


def test_a_foreign_file_or_one_of_another_version_is_refused_in_words(study, file, tmp_path):
    path = tmp_path / "other.safetensors"
    with pytest.raises(UserError, match="there is no model file"):
        tll_jax.load(path)
    with pytest.raises(UserError, match="of no family that is known"):
        tll_jax.load(study / "weights.safetensors")
    tensors, metadata = load_file(file), json.loads(header(file.read_bytes())["__metadata__"]["tll_jax"])

    def refused(message, tensors=tensors, **changes):
        save_file(tensors, path, {"tll_jax": json.dumps(metadata | changes)})
        with pytest.raises(UserError, match=message):
            tll_jax.load(path)

    refused("of the format 'tll-model/9'; this version reads 'tll-model/1'", format="tll-model/9")
    refused("settings class", network=metadata["network"] | {"head": {"class": "tll_jax.no.Head"}})
    refused("is not a model file that this version can read", network={})
    refused("its tensors are not those of its network", {"params/head/bias": tensors["params/head/bias"]})


def test_fit_writes_only_files_of_its_own_kind(study, file):
    run = str(study / "study" / "systems" / "rca")
    with pytest.raises(SystemExit, match=r"must end in \.safetensors"):
        cli.main(["fit", run, "--out=model.bin"])
    with pytest.raises(SystemExit, match="is a model file already"):
        cli.main(["fit", str(file), "--out=model.safetensors"])
    weights = Path(__file__).parent / "data" / "backbones" / "deit"
    with pytest.raises(SystemExit, match="holds pretrained weights, which commands such as tll find --model take"):
        cli.main(["fit", str(weights), "--out=model.safetensors"])
    with pytest.raises(SystemExit, match="has no test pairs"):
        cli.main(["explain", str(file), "--query=00"])
