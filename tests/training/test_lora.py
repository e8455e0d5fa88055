"""Low-rank adapters: closed forms on single layers, and a real fine-tuning that is stopped, loaded and exported."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

import tll_jax
from tests.configs import adapted, one_stage
from tll_jax import serialize
from tll_jax.devices import fsdp_shardings, make_mesh
from tll_jax.errors import UserError
from tll_jax.models.efficientnet_lite import EfficientNetLite0
from tll_jax.models.ops.convolution import Convolution
from tll_jax.models.weights import to_torch
from tll_jax.settings import validate
from tll_jax.study import train
from tll_jax.study.checks import check_lora
from tll_jax.study.networks import make_program, recipe_of, siamese
from tll_jax.study.run import run
from tll_jax.training.lora import Lora, merge, split, targeted_layers
from tll_jax.training.state import init_variables
from tll_jax.training.step import NetworkLoss
from tll_jax.typing import PairBatch

RANDOM = np.random.default_rng(0)
KEY = jax.random.key(0)
ATTENTION = [("stage1", "attention", name) for name in ("query", "key", "value", "out")]
MLP = [("stage1", "mlp", name) for name in ("up", "down")]


def normal(*shape):
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def variables():
    """Of the whole network, trained by nobody."""
    return init_variables(siamese(adapted.get_config().models["lora"]), size=one_stage.SIZE, seed=3)


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("lora", [Lora(rank=0), Lora(rank=4)], ids=["rank 0", "before the first step"])
def test_untrained_adapters_change_no_bit(variables, lora):
    trained, base = split(lora, variables, KEY)
    whole = merge(lora, trained, base)
    assert jax.tree.structure(whole) == jax.tree.structure(variables)
    assert_equal(whole, variables)
    network = siamese(adapted.get_config().models["lora"])
    images = jnp.asarray(RANDOM.uniform(size=(2, one_stage.SIZE, one_stage.SIZE, 3)), jnp.float32)
    outputs = [network.apply(one, images, train=False)[1] for one in (whole, variables)]
    assert np.array_equal(*outputs)


def test_a_merged_layer_is_the_sum_of_the_layer_and_its_adapter():
    lora = Lora(rank=3, alpha=6.0, targets=("stage1",))
    inputs = normal(2, 4, 5, 7)
    for layer in (nn.Dense(6), Convolution(6, 1, dtype=jnp.float32)):
        params = layer.init(KEY, inputs)["params"]
        trained, base = split(lora, {"params": {"backbone": {"stage1": params}}}, KEY)
        adapter = trained["params"]["backbone"]["stage1"]
        assert {name: part.shape for name, part in adapter.items()} == {"lora_a": (7, 3), "lora_b": (3, 6)}
        assert np.abs(adapter["lora_a"]).max() <= 7**-0.5
        assert not adapter["lora_b"].any()
        adapter["lora_b"] = normal(3, 6)
        whole = merge(lora, trained, base)["params"]["backbone"]["stage1"]
        # alpha / rank is 2.
        expected = layer.apply({"params": params}, inputs) + 2 * (inputs @ adapter["lora_a"]) @ adapter["lora_b"]
        np.testing.assert_allclose(layer.apply({"params": whole}, inputs), expected, rtol=1e-4, atol=1e-5)


class Layers(nn.Module):
    """Layers of all kinds that can have adapters."""

    @nn.compact
    def __call__(self, images):
        maps = Convolution(5, 1, strides=2, dtype=jnp.float32, name="stage1")(images)
        maps = nn.relu(nn.Conv(6, (1, 1), (2, 1), name="stage2")(maps))
        return nn.Dense(4, name="stage3")(maps)


class Adaptable(nn.Module):
    """`Layers` as a network that has nothing else."""

    @nn.compact
    def __call__(self, images, *, train):
        return nn.remat(Layers)(name="backbone")(images)


def squared_mean(network, batch):
    return jnp.mean(network(batch, train=True) ** 2), {}


def test_training_beside_the_kernels_has_the_loss_and_the_gradients_of_training_through_merged_kernels():
    lora = Lora(rank=2, alpha=3.0, targets=("stage1", "stage2", "stage3"))
    network, images = Adaptable(), normal(3, 8, 8, 4)
    variables = {"params": network.init(KEY, images, train=True)["params"], "batch_stats": {}}
    trained, base = split(lora, variables, KEY)
    trained = jax.tree.map(lambda leaf: normal(*leaf.shape), trained)

    def through_merged(trained):
        return squared_mean(lambda batch, train: network.apply(merge(lora, trained, base), batch, train=train), images)

    (found, _), gradients = jax.value_and_grad(NetworkLoss(network, squared_mean, lora), has_aux=True)(
        trained, images, KEY, base
    )
    (expected, _), expected_gradients = jax.value_and_grad(through_merged, has_aux=True)(trained)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(flatten_dict(gradients["params"])) == 6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradients, expected_gradients)


def products(jaxpr):
    """Sizes above 1, ascending, of the results of all products and convolutions, those of inner functions included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield tuple(sorted(size for size in equation.outvars[0].aval.shape if size > 1))
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda one: hasattr(one, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from products(inner)


def test_training_computes_no_gradient_of_a_kernel_that_has_an_adapter():
    network, images = Adaptable(), normal(3, 8, 8, 4)
    variables = {"params": network.init(KEY, images, train=True)["params"], "batch_stats": {}}

    def of_step(lora, trained, *base):
        gradient = jax.grad(NetworkLoss(network, squared_mean, lora), has_aux=True)
        return set(products(jax.make_jaxpr(gradient)(trained, images, KEY, *base).jaxpr))

    # The gradients of `Convolution` are written by hand: the compiler drops the one that nothing uses.
    kernels = {(5, 6), (4, 6)}
    assert kernels <= of_step(None, variables)
    lora = Lora(rank=2, targets=("stage1", "stage2", "stage3"))
    assert not kernels & of_step(lora, *split(lora, variables, KEY))


def test_targets_are_names_of_modules_or_parts_of_paths(variables):
    params = variables["params"]["backbone"]
    assert set(targeted_layers(Lora(), params)) == {*ATTENTION, *MLP}
    assert set(targeted_layers(Lora(targets=("attention",)), params)) == set(ATTENTION)
    assert targeted_layers(Lora(targets=("mlp/up",)), params) == [MLP[0]]
    assert targeted_layers(Lora(rank=0), params) == []
    # The stem's convolution is no 1x1.
    assert set(targeted_layers(Lora(targets=("stage1",)), params, frozen_stages=1)) == {*ATTENTION, *MLP}


def test_the_1x1_convolutions_of_a_real_network_can_have_adapters_and_its_others_cannot():
    module = EfficientNetLite0().build(dtype=jnp.float32)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(lambda images: module.init(KEY, images, train=False), images)["params"]
    found = targeted_layers(Lora(targets=("expand", "project", "stage8")), params)
    # 16 blocks, of which the first has no expansion, and the last convolution.
    assert len(found) == 16 + 15 + 1
    assert ("stage8", "convolution") in found


@pytest.mark.parametrize(
    ("targets", "frozen_stages", "named"),
    [
        (("attention", "qkv"), 0, "targets names 'qkv'.*modules with such layers are attention, down, key, mlp, out"),
        (("stem",), 0, "'stem', which matches no dense layer and no 1x1 convolution"),
        (("attention",), 2, "behind its 2 frozen stages; there are none"),
        (("tent",), 0, "'tent'"),
    ],
)
def test_unmatched_targets_are_refused_early_with_the_possible_ones(targets, frozen_stages, named):
    study = adapted.get_config()
    finetune = study.models["lora"].finetune
    finetune.lora.targets, finetune.frozen_stages = targets, frozen_stages
    with pytest.raises(UserError, match=rf"config\.models\.lora\.finetune\.lora: .*{named}"):
        check_lora(study)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda model: setattr(model.finetune.lora, "rank", -1), "rank is -1; it must be 0"),
        (lambda model: setattr(model.finetune.lora, "alpha", 0.0), "alpha is 0.0; it must be above 0"),
        (lambda model: setattr(model.finetune.lora, "targets", ()), "targets is .*at least one name"),
        (lambda model: setattr(model, "weights", None), "None for a backbone that starts from random weights"),
    ],
)
def test_impossible_settings_are_refused(change, named):
    model = adapted.get_config().models["lora"]
    change(model)
    with pytest.raises(UserError, match=named):
        validate(model)


def test_settings_without_adapters_have_their_fingerprint_from_before_adapters():
    model = one_stage.get_config().models["barlow"]
    settings = serialize.to_json(model.finetune)
    assert settings.pop("lora") is None
    assert serialize.fingerprint(serialize.from_json(settings, trusted=("tests",))) == serialize.fingerprint(
        model.finetune
    )
    # With adapters it is another.
    model.finetune.lora = Lora()
    assert serialize.fingerprint(model.finetune) != serialize.fingerprint(
        serialize.from_json(settings, trusted=("tests",))
    )


def test_only_adapters_and_head_are_trained_under_fsdp_and_remat(variables):
    model = adapted.get_config().models["lora"]
    mesh = make_mesh(jax.devices()[:2])
    batch = PairBatch(*RANDOM.integers(0, 256, (2, 16, 16, 16, 3), np.uint8), np.arange(16, dtype=np.int32))
    found = []
    for remat, split_at in ((False, 0), (True, 16)):
        model.finetune.loop.remat, model.finetune.loop.fsdp_min_size = remat, split_at
        program = make_program(siamese(model), recipe_of(model.finetune), size=one_stage.SIZE, mesh=mesh)
        trained, base = program.split(variables, KEY)
        state = jax.device_put(program.start(trained), fsdp_shardings(program.state_shapes, split_at, mesh))
        for _ in range(2):
            state, metrics = program.step(KEY, state, batch, jax.device_put(base, fsdp_shardings(base, split_at, mesh)))
        found.append(jax.device_get((program.merge(state.variables, base), metrics["gradient_norm"])))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), *found)
    whole, start = flatten_dict(found[0][0]), flatten_dict(variables)
    moved = {path for path in start if not np.array_equal(whole[path], start[path])}
    kernels = {("params", "backbone", *path, "kernel") for path in (*ATTENTION, *MLP)}
    assert moved == kernels | {("params", "head", "linear1", leaf) for leaf in ("kernel", "bias")}
    names = {path[-1] for path in flatten_dict(state.params["backbone"])}
    assert names == {"lora_a", "lora_b"}
    shapes = {leaf.shape for leaf in jax.tree.leaves(state.optimizer_state)}
    assert (adapted.CHANNELS, adapted.CHANNELS) not in shapes


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The settings, from a file of weights."""
    path = tmp_path_factory.mktemp("weights") / "a.safetensors"
    model = adapted.get_config().models["lora"]
    variables = init_variables(siamese(model), size=one_stage.SIZE, seed=5)
    state = to_torch({name: variables[name]["backbone"] for name in variables}, model.backbone.torch_name)
    save_file(state, path)
    return adapted.get_config(str(path))


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory):
    """A run of all stages."""
    folder = tmp_path_factory.mktemp("study") / "whole"
    run(study, workdir=folder, stages_to_run=("finetune", "evaluate"))
    return folder


def test_a_fine_tuned_model_is_loaded_and_exported_with_its_adapters_merged(study, finished, tmp_path):
    model = tll_jax.load(finished / "models" / "lora" / "seed-0", trusted=("tests",))
    start = load_file(study.models["lora"].weights.path)
    after = load_file(model.export(tmp_path / "out.safetensors"))
    assert after.keys() == start.keys()
    moved = {name for name in start if not np.array_equal(start[name], after[name])}
    assert moved == {f"{'.'.join(path)}.weight" for path in (*ATTENTION, *MLP)}
    for name in moved:
        # The change is of rank 2, as the adapters.
        values = np.linalg.svd(after[name] - start[name], compute_uv=False)
        assert values[1] > 1e-4
        assert values[2] < 1e-3 * values[1]


def test_checkpoints_hold_no_weights_of_the_backbone(finished):
    (folder,) = (finished / "stages").glob("finetune-*/checkpoints/last/12/default")
    tree = json.loads((folder / "_METADATA").read_text())["tree_metadata"].values()
    names = {tuple(part["key"] for part in entry["key_metadata"]) for entry in tree}
    of_backbone = {name for name in names if "backbone" in name}
    assert {name[-1] for name in of_backbone} == {"lora_a", "lora_b"}
    assert {name[0] for name in of_backbone} == {"params", "optimizer_state"}
    assert any("head" in name for name in names)


def test_a_stopped_fine_tuning_resumes_bit_for_bit(study, finished, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    validation, calls = train._validation, []

    def stopping(*given):
        validate = validation(*given)

        def ask(variables):
            calls.append(1)
            if len(calls) == 2:
                raise Stopped
            return validate(variables)

        return ask

    monkeypatch.setattr(train, "_validation", stopping)
    with pytest.raises(Stopped):
        run(study, workdir=tmp_path / "again", stages_to_run=("finetune",))
    run(study, workdir=tmp_path / "again", stages_to_run=("finetune",))
    # One at step 4, one that failed at 8, then 8 again and 12.
    assert len(calls) == 4
    kept = []
    for folder in (finished, tmp_path / "again"):
        (variables,) = (folder / "stages").glob("finetune-*/variables")
        model = study.models["lora"]
        kept.append(
            train.checkpoint.load_variables(variables, init_variables(siamese(model), size=one_stage.SIZE, seed=0))
        )
    assert_equal(*kept)
