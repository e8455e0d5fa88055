"""Every committed config builds and is valid; the full-scale recipe can be traced and has the published size."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax import serialize
from tll_jax.config_files import load_study, set_fields
from tll_jax.devices import make_mesh, replicated
from tll_jax.models.network import Network
from tll_jax.settings import _children, validate
from tll_jax.study.networks import siamese
from tll_jax.training.state import make_state
from tll_jax.training.step import NetworkLoss, make_step
from tll_jax.typing import PairBatch, ViewBatch

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(path for path in FOLDER.glob("*.py") if path.stem != "tll")


@pytest.fixture(autouse=True)
def modules_beside(monkeypatch):
    """Makes modules beside the configs importable."""
    monkeypatch.syspath_prepend(FOLDER)


def load_module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(path):
    return load_module(path).get_config()


def count(params):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_valid_and_equal_after_a_json_round_trip(path):
    study = load(path)
    validate(study)
    again = serialize.from_json(serialize.to_json(study))
    assert serialize.fingerprint(again) == serialize.fingerprint(study)


def settings_objects(settings):
    """Every dataclass and dict of a tree."""
    if isinstance(settings, dict) or dataclasses.is_dataclass(settings):
        yield settings
    yield from (found for _, child in _children(settings) for found in settings_objects(child))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_builds_fresh_settings_for_every_place(path):
    # Called twice: the module must not share settings between calls either.
    module = load_module(path)
    found = [*settings_objects(module.get_config()), *settings_objects(module.get_config())]
    assert len({id(one) for one in found}) == len(found)


def test_a_field_of_one_model_leaves_the_other_models_alone():
    study = load_study(str(CONFIGS[0].parent / "emoji.py"))
    num_steps = study.models["random"].finetune.loop.num_steps
    set_fields(study, [("models.barlow.backbone.width", "32"), ("models.barlow.finetune.loop.num_steps", "8")])
    assert {name: model.backbone.width for name, model in study.models.items()} == {
        "barlow": 32,
        "classification": 16,
        "random": 16,
    }
    assert [model.finetune.loop.num_steps for model in study.models.values()] == [8, num_steps, num_steps]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_opens_with_its_command(path):
    assert f"--config=configs/{path.name} --workdir=" in path.read_text().split('"""')[1]


@pytest.fixture(scope="module")
def full_scale():
    return load(next(path for path in CONFIGS if path.stem == "imagenet_tll"))


def trace(network, objective, augments, optimizer, batch, *, size):
    """The shapes of the state after a step, of its metrics, and of the parameters, without computing anything."""

    def initial(key):
        variables = network.init(key, jnp.zeros((1, size, size, 3)), train=False)
        return make_state({"params": variables["params"], "batch_stats": variables["batch_stats"]}, optimizer)

    step = make_step(NetworkLoss(network, objective), augments, optimizer, state_shardings=replicated(make_mesh()))
    state = jax.eval_shape(initial, jax.random.key(0))
    return state, *jax.eval_shape(step, jax.random.key(0), state, batch)


def test_the_pretraining_step_of_the_full_recipe_traces_and_has_the_published_size(full_scale):
    model = full_scale.models["barlow"]
    settings = model.pretrain
    dtype = jnp.dtype(settings.loop.dtype)
    head = settings.objective.head(num_classes=1000)
    network = Network(backbone=model.backbone.build(dtype=dtype), head=head.build(dtype=dtype))
    optimizer = settings.optimizer.build(num_steps=settings.loop.num_steps, batch_size=settings.loop.batch_size)
    images = jax.ShapeDtypeStruct((2048, 224, 224, 3), jnp.uint8)
    batch = ViewBatch(images, images, jax.ShapeDtypeStruct((2048,), jnp.int32))
    augments = (settings.augment_a, settings.augment_b)
    before, after, metrics = trace(network, settings.objective, augments, optimizer, batch, size=224)
    assert count(before.params["backbone"]) == 23_508_032
    # 2048 x 8192 and twice 8192 x 8192 without biases, and scale and bias of two BatchNorms.
    assert count(before.params["head"]) == 2048 * 8192 + 2 * 8192**2 + 2 * 2 * 8192
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(after.params))
    assert metrics["loss"].shape == ()
    assert metrics["loss"].dtype == jnp.float32


def test_the_fine_tuning_step_of_the_full_recipe_traces(full_scale):
    model = full_scale.models["random"]
    settings = model.finetune
    optimizer = settings.optimizer.build(num_steps=settings.loop.num_steps, batch_size=settings.loop.batch_size)
    images = jax.ShapeDtypeStruct((256, 224, 224, 3), jnp.uint8)
    batch = PairBatch(images, images, jax.ShapeDtypeStruct((256,), jnp.int32))
    augments = (settings.augment, settings.augment)
    _, _, metrics = trace(siamese(model), settings.objective, augments, optimizer, batch, size=224)
    assert {"loss", "active_fraction", "positive_distance", "negative_distance", "participation_ratio"} <= set(metrics)
