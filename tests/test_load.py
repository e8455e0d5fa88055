"""`tll_jax.load` on a finished run of an earlier version, and the modules that `import tll_jax` imports."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import tll_jax
from tll_jax.errors import UserError
from tll_jax.files import read_arrays
from tll_jax.study.folder import read_picture
from tll_jax.study.load import holds_weights

BACKBONES = Path(__file__).parent / "data" / "backbones"
RUN = Path(__file__).parent / "data" / "studies" / "0.1.0"
MODEL = RUN / "arms" / "barlow" / "seed-0"


@pytest.fixture(scope="module")
def model():
    return tll_jax.load(MODEL)


@pytest.fixture(scope="module")
def test_images():
    ids = read_arrays(MODEL / "embeddings.npz")["ids"].tolist()
    return {side: [RUN / "images" / side / f"{identity}.png" for identity in ids] for side in ("left", "right")}


def test_embeddings_are_those_of_the_study(model, test_images):
    saved = read_arrays(MODEL / "embeddings.npz")
    for side, paths in test_images.items():
        images = np.stack([read_picture(path) for path in paths])
        np.testing.assert_allclose(model.embed(paths), saved[side], atol=1e-5)
        assert np.array_equal(model.embed(images), model.embed(paths))


def test_neighbors_are_those_of_a_loop_over_distances(model, test_images):
    queries, gallery = model.embed(test_images["left"]), model.embed(test_images["right"])
    neighbors, scores = model.rank(test_images["left"], test_images["right"], k=3)
    for query, found, given in zip(queries, neighbors, scores, strict=True):
        distances = [float(np.sum((query - candidate) ** 2)) for candidate in gallery]
        assert found.tolist() == sorted(range(len(gallery)), key=distances.__getitem__)[:3]
        np.testing.assert_allclose(given, [-distances[at] for at in found], atol=1e-6)
    again, _ = model.rank(queries, gallery, k=3)
    assert np.array_equal(neighbors, again)
    assert model.rank(queries, gallery, k=99)[0].shape == (len(queries), len(gallery))


def test_an_explanation_has_a_map_a_method_and_side_and_writes_its_page(model, test_images, tmp_path):
    explanation = model.explain(test_images["left"][0], test_images["right"][0], methods=("gradient",))
    left, right = model.embed([test_images["left"][0]]), model.embed([test_images["right"][0]])
    cosine = np.sum(left * right) / np.linalg.norm(left) / np.linalg.norm(right)
    assert explanation.cosine == pytest.approx(cosine, abs=1e-5)
    assert {name: [side.shape for side in maps] for name, maps in explanation.maps.items()} == {
        "gradient": [(16, 16)] * 2
    }
    assert "Why" in explanation.write(tmp_path / "why").read_text()


@pytest.mark.parametrize(
    ("images", "named"),
    [
        ([], "images is empty"),
        (np.zeros((2, 8, 8, 3), np.float32), r"an image is float32 \[8, 8, 3\]; it must be uint8"),
        ([np.zeros((8, 8), np.uint8)], r"an image is uint8 \[8, 8\]"),
        (["no/such/file.png"], r"no/such/file\.png is not there"),
    ],
)
def test_invalid_images_are_refused_in_words(model, images, named):
    with pytest.raises(UserError, match=named):
        model.embed(images)


def test_what_is_no_run_is_refused_in_words(tmp_path):
    with pytest.raises(UserError, match=r"holds no weights .* and is not a run folder"):
        tll_jax.load(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        UserError, match=r"notes.txt is no model or weight file \(.safetensors, .* and is not a run folder"
    ):
        tll_jax.load(tmp_path / "notes.txt")


def foreign(path):
    save_file({"layer1.weight": np.ones(3, np.float32)}, path)


def halved(path):
    whole = (BACKBONES / "vit" / "model.safetensors").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (foreign, "of no family that is known; their first tensors are layer1.weight; known are ViT"),
        (halved, "cannot be read as safetensors, it may be truncated"),
        (emptied, "cannot be read as safetensors, it may be truncated"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "of_its_own_name.safetensors"])
def test_a_folder_of_weights_that_cannot_be_read_is_refused_as_such(tmp_path, write, message, name):
    write(tmp_path / name)
    with pytest.raises(UserError, match=message):
        tll_jax.load(tmp_path)


def test_weights_of_any_file_name_are_those_of_their_folder(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    shutil.copy(BACKBONES / "vit" / "model.safetensors", folder / "vit_tiny.safetensors")
    assert holds_weights(folder)
    shutil.copy(BACKBONES / "dinov2" / "model.safetensors", folder / "dinov2_tiny.safetensors")
    with pytest.raises(UserError, match="holds 2 files of weights, dinov2_tiny"):
        tll_jax.load(folder)


def test_a_run_that_holds_an_export_is_still_a_run(tmp_path):
    shutil.copytree(RUN, tmp_path / "study")
    run = tmp_path / "study" / MODEL.relative_to(RUN)
    assert not holds_weights(run)
    shutil.copy(BACKBONES / "vit" / "model.safetensors", run)
    assert not holds_weights(run)


def test_importing_the_package_imports_no_third_party_library():
    code = (
        "import sys, tll_jax; dir(tll_jax); "
        "print(sorted({'jax', 'numpy', 'cv2', 'tensorflow_datasets', 'flax', 'grain'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_losses_and_saliency_are_imported_without_what_data_and_reports_need():
    # As in an environment with JAX, Flax and jaxtyping alone.
    absent = [
        "cv2",
        "tensorflow_datasets",
        "grain",
        "matplotlib",
        "orbax",
        "skimage",
        "imagehash",
        "PIL",
        "scipy.stats",
    ]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); from tll_jax import losses, ranking, saliency"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_all_public_names_exist():
    for name in tll_jax.__all__:
        assert getattr(tll_jax, name) is not None
