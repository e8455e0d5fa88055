"""Inputs of a stage's hash, and the conditions under which a stage is done."""

import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.configs import one_stage, tiny
from tll_jax.data.archive import Archive
from tll_jax.data.emoji import ARCHIVE
from tll_jax.data.folder import ImageFolder
from tll_jax.data.pipeline import Readers
from tll_jax.devices import make_mesh
from tll_jax.files import write_arrays
from tll_jax.models.alexnet_vgg import AlexNet
from tll_jax.models.heads import Projection
from tll_jax.models.weights import AlexNetLpips, WeightFile, to_torch
from tll_jax.serialize import Fingerprint
from tll_jax.study.evaluate import evaluate_system
from tll_jax.study.folder import Trained, is_done, mark_done, mark_trained, read_mark
from tll_jax.study.keys import Evaluation, pretrain_key
from tll_jax.study.networks import initial_variables, ready_made, recipe_of, shared_program, siamese
from tll_jax.study.train import Context, Finetuning, Pretraining, finetune
from tll_jax.training import checkpoint
from tll_jax.training.state import init_variables
from tll_jax.typing import PairBatch, PairImages


def known_as(digits):
    """A key that is equal under the former rule."""
    return Fingerprint(digits, former=digits)


@pytest.fixture
def photos(tmp_path):
    archive = Archive(ARCHIVE)
    (tmp_path / "photos").mkdir()
    for index, name in enumerate(name for name in archive.images[:4]):
        (tmp_path / "photos" / f"{index}.webp").write_bytes(archive.read(name))
    return tmp_path / "photos"


def key(path, **settings):
    model = tiny.get_config().models["barlow"]
    model.pretrain.images = ImageFolder(path=str(path), **settings)
    return pretrain_key(model, model.pretrain.images.open(held_out=frozenset()))


def test_the_key_of_pretraining_depends_on_the_images_content_and_not_on_their_path(photos, tmp_path):
    first = key(photos)
    shutil.copytree(photos, tmp_path / "elsewhere")
    assert key(tmp_path / "elsewhere", max_broken_fraction=0.5) == first
    (tmp_path / "elsewhere" / "3.webp").unlink()
    assert key(tmp_path / "elsewhere") != first


def test_the_key_of_pretraining_depends_on_its_settings(photos):
    model = tiny.get_config().models["barlow"]
    images = ImageFolder(path=str(photos)).open(held_out=frozenset())
    first = pretrain_key(model, images)
    model.pretrain.loop.num_steps += 1
    assert pretrain_key(model, images) != first
    model.pretrain.loop.num_steps -= 1
    assert pretrain_key(model, images) == first
    model.pretrain = None
    assert pretrain_key(model, images) is None


def test_a_model_starts_from_its_pretrained_weights(tmp_path):
    model = tiny.get_config().models["random"]
    before = initial_variables(model, None, size=tiny.SIZE, seed=0)
    state = to_torch({name: before[name]["backbone"] for name in before}, model.backbone.torch_name)
    state = {name: value + 1 for name, value in state.items()}
    save_file(state, tmp_path / "a.safetensors")
    model.weights = WeightFile(path=str(tmp_path / "a.safetensors"))
    after = initial_variables(model, ready_made(model), size=tiny.SIZE, seed=0)
    for collection, values in before.items():
        jax.tree.map(
            lambda old, new: np.testing.assert_array_equal(new, np.asarray(old) + 1),
            values["backbone"],
            after[collection]["backbone"],
        )
    jax.tree.map(np.testing.assert_array_equal, after["params"]["head"], before["params"]["head"])


def test_a_model_starts_from_a_backbone_without_batch_statistics():
    model = tiny.get_config().models["random"]
    model.backbone, model.weights, model.head = AlexNet(), AlexNetLpips(), Projection(widths=(8, 4), batch_norm=True)
    started = ready_made(model)
    variables = initial_variables(model, started, size=tiny.SIZE, seed=0)
    assert variables["batch_stats"].keys() == {"head"}
    jax.tree.map(
        np.testing.assert_array_equal, variables["params"]["backbone"], started.variables["params"]["backbone"]
    )


def test_the_key_of_pretrained_weights_depends_on_the_files_content(tmp_path):
    model = tiny.get_config().models["random"]
    keys = []
    for name, content in (("a.pth", b"one"), ("b.pth", b"one"), ("c.pth", b"two")):
        (tmp_path / name).write_bytes(content)
        model.weights = WeightFile(path=str(tmp_path / name))
        keys.append(pretrain_key(model, None))
    assert keys[0] == keys[1] != keys[2]


def test_a_model_does_not_both_pretrain_and_take_weights():
    model = tiny.get_config().models["barlow"]
    model.weights = WeightFile(path="a.pth")
    with pytest.raises(ValueError, match=r"weights is .*a\.pth.*None in a model that pretrains"):
        model.check()


@pytest.mark.parametrize("content", [b"", b'{"key": "one", "sec', b"\xff\xfe", b"[]", b"null"])
def test_a_mark_that_was_cut_short_counts_as_not_done(tmp_path, content):
    mark_done(tmp_path, known_as("one"), "evaluate", seconds=1.5)
    assert is_done(tmp_path, known_as("one"), "evaluate")
    assert not is_done(tmp_path, known_as("another"), "evaluate")
    assert read_mark(tmp_path, "evaluate")["seconds"] == 1.5
    (tmp_path / "evaluate.done.json").write_bytes(content)
    assert not is_done(tmp_path, known_as("one"), "evaluate")
    assert read_mark(tmp_path, "evaluate") == {}
    assert not is_done(tmp_path, known_as("one"), "explain")


class Constant:
    """A system with constant scores that counts its fits."""

    fitted = 0

    def fit(self, train, validation):
        self.fitted += 1

    def score(self, queries, candidates):
        return np.zeros((len(queries), len(candidates)), np.float32)


@pytest.fixture
def evaluate(tmp_path):
    """`evaluate(setting)`: ranks two pairs with one system; `evaluate.system` is the system."""
    test = PairImages(["a", "caf\udce9"], [0, 0], [0, 0], np.arange(2))

    def run(setting):
        evaluation = Evaluation(label="constant", folder=tmp_path, ids=test.ids, inputs={"setting": setting})
        evaluate_system(evaluation, run.system, test, test, test)
        return evaluation.read().tolist()

    run.system = Constant()
    return run


@pytest.mark.parametrize("name", ["ranks.npz", "top.npz"])
def test_ranks_that_were_cut_short_are_made_anew(evaluate, tmp_path, name):
    assert evaluate("key") == evaluate("key") == [[2, 2], [2, 2]]
    assert evaluate.system.fitted == 1
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-30])
    assert evaluate("key") == [[2, 2], [2, 2]]
    path.unlink()
    assert evaluate("key") == [[2, 2], [2, 2]]
    assert evaluate.system.fitted == 3


def test_a_kill_while_ranks_are_replaced_leaves_no_mark(evaluate, tmp_path, monkeypatch):
    evaluate("one")
    written = []

    def fail_at_the_second(path, **arrays):
        if written:
            raise OSError("killed")
        written.append(path)
        write_arrays(path, **arrays)

    monkeypatch.setattr("tll_jax.study.folder.write_arrays", fail_at_the_second)
    with pytest.raises(OSError, match="killed"):
        evaluate("another")
    assert written
    # There is no mark of either setting.
    assert read_mark(tmp_path, "evaluate") == {}
    monkeypatch.undo()
    assert evaluate("one") == [[2, 2], [2, 2]]
    assert evaluate.system.fitted == 3


@pytest.fixture
def trained(tmp_path):
    """A finished training stage."""
    variables = {"params": {"kernel": np.arange(6.0)}, "batch_stats": {}}
    checkpoint.save_variables(tmp_path / "variables", variables, step=1)
    mark_trained(tmp_path, known_as("a1"), "pretrain")
    assert is_done(tmp_path, known_as("a1"), "pretrain")
    return tmp_path


@pytest.mark.parametrize("content", [b"", b'{"key": "a1", "sec', b"\xff\xfe", b"[]", b"null", b'{"key": "b2"}', None])
def test_a_stage_whose_mark_is_damaged_or_of_other_settings_is_not_done(trained, content):
    (trained / "pretrain.done.json").unlink()
    if content is not None:
        (trained / "pretrain.done.json").write_bytes(content)
    assert not is_done(trained, known_as("a1"), "pretrain")


def test_a_training_stage_whose_variables_are_gone_or_cut_is_not_done(trained):
    files = [path for path in (trained / "variables").rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 3
    for path in files:
        content = path.read_bytes()
        for change in (
            lambda path: path.unlink(),
            lambda path: path.write_bytes(b""),
            lambda path: path.write_bytes(b"{"),
        ):
            change(path)
            assert not is_done(trained, known_as("a1"), "pretrain")
            path.write_bytes(content)
            assert is_done(trained, known_as("a1"), "pretrain")
    shutil.rmtree(trained / "variables")
    assert not is_done(trained, known_as("a1"), "pretrain")
    (trained / "variables").touch()
    assert not is_done(trained, known_as("a1"), "pretrain")


def test_a_stage_without_variables_is_done_by_its_mark_alone(tmp_path):
    mark_done(tmp_path, known_as("a1"), "evaluate")
    assert is_done(tmp_path, known_as("a1"), "evaluate")
    assert not is_done(tmp_path, known_as("a1"), "explain")


def test_seeds_and_models_that_differ_in_pretraining_share_one_traced_and_compiled_program(tmp_path):
    study = one_stage.get_config()
    model, pairs = study.models["barlow"], study.pairs.open()
    model.finetune.loop.num_steps = 2
    mesh = make_mesh(jax.devices()[:1])
    context = Context(workdir=tmp_path, pairs=pairs, mesh=mesh, readers=Readers(num_threads=0))
    manifest = study.split.make(pairs)
    other = jax.device_get(initial_variables(model, None, size=one_stage.SIZE, seed=7))
    pretrained = Trained(folder=tmp_path, read=lambda: other)
    events = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: events.append(event))

    def compiled(seed, start):
        events.clear()
        key = known_as(f"{seed}-{start is None}")
        random = Pretraining(label="one", model=model, key=None, frozen_folder="systems/one-frozen")
        one = Finetuning(label=f"one seed {seed}", model=model, seed=seed, key=key, start=random, manifest=manifest)
        finetune(one, start, study.evaluate, context)
        return [event for event in events if event.startswith("/jax/core/compile/")]

    assert {event.rsplit("/", 1)[-1] for event in compiled(0, pretrained)} >= {
        "jaxpr_trace_duration",
        "backend_compile_duration",
    }
    assert compiled(1, pretrained) == []
    # Another model of equal settings needs none either; one with another learning rate needs another program.
    model = one_stage.get_config().models["barlow"]
    model.finetune.loop.num_steps = 2
    model.finetune.loop.log_every = 1
    other = jax.tree.map(lambda leaf: leaf * 2, other)
    assert compiled(1, None) == []
    model.finetune.optimizer.learning_rate /= 2
    assert compiled(2, pretrained)


def test_seeds_of_one_program_draw_other_numbers_and_the_same_seed_the_same():
    settings = one_stage.get_config().models["barlow"]
    network = siamese(settings)
    mesh = make_mesh(jax.devices()[:1])
    program = shared_program(network, recipe_of(settings.finetune), size=one_stage.SIZE, mesh=mesh)
    variables = init_variables(network, size=one_stage.SIZE, seed=0)
    images = np.random.default_rng(0).integers(
        0, 256, (2, one_stage.BATCH, one_stage.SIZE, one_stage.SIZE, 3), np.uint8
    )
    batch = PairBatch(*images, np.arange(one_stage.BATCH, dtype=np.int32))
    losses = [
        float(program.step(jax.random.key(seed), program.start(variables), batch)[1]["loss"]) for seed in (3, 4, 3)
    ]
    assert losses[0] == losses[2] != losses[1]
