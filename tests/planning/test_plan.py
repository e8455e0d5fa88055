"""`tll plan` on a network that can be counted by hand, and what it reads from compiled programs."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tll_jax import cli
from tll_jax.models.heads import Projector
from tll_jax.models.network import Network
from tll_jax.objectives.barlow_twins import BarlowTwins
from tll_jax.planning import plan
from tll_jax.planning.chips import CHIPS
from tll_jax.planning.collectives import Calls, minimum_bytes, watch_calls
from tll_jax.planning.hlo import read_collectives, read_memory_traffic
from tll_jax.planning.roofline import estimate
from tll_jax.planning.targets import Target, open_targets

CONFIG = Path(__file__).parents[1] / "configs" / "dense.py"
REQUEST = plan.PlanRequest(num_classes=10)
INPUTS, WIDTH, CLASSES = 8 * 8 * 3, 64, 10
PARAMETERS = INPUTS * WIDTH + 2 * WIDTH + WIDTH * CLASSES + CLASSES


@pytest.fixture(scope="module")
def study():
    return plan.load_study(str(CONFIG))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("plan") / "plan.json"


@pytest.fixture(scope="module")
def record(study, out):
    """Batch 512 of two views on eight devices: 128 rows on each."""
    return plan.plan(study, ["cpu:8"], request=REQUEST, out=out)[0]


def test_parameters_and_state_are_those_counted_by_hand(record):
    assert record["parameters"] == {
        "backbone": INPUTS * WIDTH + 2 * WIDTH,
        "head": WIDTH * CLASSES + CLASSES,
        "all": PARAMETERS,
    }
    # Parameters and their momentum, mean and variance, two counters and the two schedules' steps; all fp32 or int32.
    assert record["state_bytes"] == 4 * (2 * PARAMETERS + 2 * WIDTH + 4)


def test_flops_are_those_of_one_device(record):
    rows = 2 * 512 // 8
    # Forward and the kernel's gradient; the classifier also passes a gradient on to its input.
    products = 2 * rows * (2 * INPUTS * WIDTH + 3 * WIDTH * CLASSES)
    assert 1 < record["flops"] / products < 1.2


def test_memory_contains_the_state_and_the_devices_part_of_the_batch(record):
    memory = record["memory_bytes"]
    batch = 512 // 8 * (2 * INPUTS + 4)
    assert memory["arguments"] == pytest.approx(record["state_bytes"] + batch, rel=0.01)
    assert memory["all"] == sum(memory[part] for part in ("arguments", "results", "temporaries", "program"))
    # Nothing is published for CPUs.
    assert record["fits"] is None
    assert "estimate" not in record


def test_collectives_are_near_the_lower_bound_without_gathers(record):
    assert list(record["collectives"]) == ["all-reduce"]
    assert record["minimum_collective_bytes"]["gradients"] == 4 * (PARAMETERS - 2 * WIDTH)
    assert record["minimum_collective_bytes"]["batch statistics"] == 4 * 4 * WIDTH
    assert 1 <= record["collective_bytes_over_minimum"] <= 1.1


def test_collectives_are_read_from_a_program():
    program = """

ENTRY %main {
  %a = (f32[64]{0:T(128)S(1)}, /*index=1*/bf16[2,8]{1,0}) all-reduce(%p, %q), to_apply=%sum, metadata={op_name="x"}
  %b = ((f32[4]{0}), f32[16]{0}) all-gather-start(%r), dimensions={0}
  %c = f32[16]{0} all-gather-done(%b)
  %d = bf16[4]{0} reduce-scatter(%s), dimensions={0}, to_apply=%sum
  ROOT %e = pred[3]{0} collective-permute(%t), source_target_pairs={{0,1}}
}
"""
    assert read_collectives(program, num_devices=4) == {
        "all-reduce": {"count": 1, "bytes": 4 * 64 + 2 * 16},
        "all-gather": {"count": 1, "bytes": 4 * 16},
        "reduce-scatter": {"count": 1, "bytes": 2 * 4 * 4},
        "collective-permute": {"count": 1, "bytes": 3},
    }


def test_memory_traffic_is_read_from_a_program():
    program = """
HloModule step
%fused (x: f32[8]) -> f32[8] {
  ROOT %far = f32[1000000]{0} negate(%x)
}
ENTRY %main (p: f32[8], q: f32[4,4]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %q = f32[4,4]{1,0} parameter(1)
  %a = f32[8]{0:T(128)S(1)} fusion(%p, %p), kind=kLoop, calls=%fused
  %b = (f32[8]{0:T(128)S(1)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%p)
  %c = f32[8]{0:T(128)S(1)} copy-done(%b)
  %d = ((f32[4,4]{1,0}), f32[1,4]{1,0:T(128)S(1)}, s32[]{:S(2)}) slice-start(%q), slice={[0:1], [0:4]}
  %e = f32[1,4]{1,0:T(128)S(1)} slice-done(%d)
  ROOT %f = f32[8]{0} add(%a, %c), metadata={op_name="sum(%q)"}
}
"""
    # Bytes read: 2 x 32 of a, 32 of b, the 16 of its slice of d. Bytes written: 32 of f.
    assert read_memory_traffic(program) == 64 + 32 + 16 + 32


def test_the_minimum_of_barlow_twins_is_counted_by_hand():
    calls = Calls(normalizations=2 * [(("norm",), 3)], outputs=2 * [(8, 5)])
    params = {"kernel": jnp.zeros((2, 5)), "norm": {"scale": jnp.zeros(3), "bias": jnp.zeros(3)}}
    minimum = minimum_bytes(BarlowTwins(), params, calls, num_metrics=3)
    # 5 x 5 correlations, and four sums of 5 dimensions for each view.
    assert minimum == {"gradients": 4 * 10, "batch statistics": 4 * 24, "loss": 4 * (25 + 40), "metrics": 4 * 3}


def test_every_batch_normalization_is_recorded(study):
    backbone = study.models["random"].backbone.build(dtype=jnp.float32)
    network = Network(backbone=backbone, head=Projector(widths=(16, 5)).build(dtype=jnp.float32))
    images = jnp.zeros((2, 8, 8, 3))
    variables = jax.eval_shape(lambda key: network.init(key, images, train=False), jax.random.key(0))

    def call(variables):
        for train in (True, False, True):
            network.apply(variables, images, train=train, mutable=["batch_stats"])

    calls = watch_calls(lambda: jax.eval_shape(call, variables))
    assert calls.normalizations == 2 * [(("backbone", "stage1"), WIDTH), (("head", "norm1"), 16)]
    assert calls.outputs == 3 * [(2, 5)]


def test_an_estimate_is_worked_by_hand():
    target = Target(name="four", mesh=open_targets(["cpu:4"])[0].mesh, chip=CHIPS["v5e"])
    found = estimate(
        flops=197e9,
        memory_traffic=1638e6,
        collectives={"all-reduce": {"count": 1, "bytes": 200e6}, "all-gather": {"count": 1, "bytes": 400e6}},
        images=1000,
        target=target,
    )
    # 1 ms of computing, 2 ms of memory, and 300 MB each for the two collectives at 200 GB/s.
    assert found["compute_seconds"] == pytest.approx(1e-3)
    assert found["memory_seconds"] == pytest.approx(2e-3)
    assert found["collective_seconds"] == pytest.approx(3e-3)
    assert found["step_seconds"] == pytest.approx(5e-3)
    assert found["bound"] == "collective"
    assert found["images_per_second"] == pytest.approx(200_000)
    assert found["flop_utilization"] == pytest.approx(0.2)


@pytest.mark.parametrize("most", [63, 64, 100, 1000, 1023, 1024, 3000])
def test_the_search_finds_the_largest_batch(most):
    asked = []

    def holds(batch_size):
        asked.append(batch_size)
        return batch_size <= most

    assert plan.search(holds, start=512, step=64) == most // 64 * 64
    assert len(asked) == len(set(asked)) <= 9


def test_plans_in_the_file_are_not_compiled_again(study, record, out, monkeypatch):
    def refuse(*_):
        raise AssertionError("compiled")

    monkeypatch.setattr(plan, "examine", refuse)
    assert plan.plan(study, ["cpu:8"], request=REQUEST, out=out) == [record]
    for change in ({"again": True}, {"request": plan.PlanRequest(num_classes=11)}):
        with pytest.raises(AssertionError, match="compiled"):
            plan.plan(study, ["cpu:8"], **{"request": REQUEST, "out": out} | change)


def test_a_step_that_does_not_fit_is_a_result(study, out, monkeypatch):
    targets = [Target(name="small", mesh=open_targets(["cpu:8"])[0].mesh, chip=CHIPS["v5e"])]
    monkeypatch.setattr(plan, "open_targets", lambda _: targets)
    most = 900

    def examine(training, target):
        batch_size = training.settings.loop.batch_size
        fits = batch_size <= most
        return {"batch_size": batch_size, "fits": fits} | ({"memory_bytes": {"all": 10**7}} if fits else {})

    monkeypatch.setattr(plan, "examine", examine)
    monkeypatch.setattr(plan, "versions", lambda _: {})
    (record,) = plan.plan(study, ["small"], request=REQUEST, search_largest=True)
    assert record["largest_batch"]["batch_size"] == 896
    assert record["largest_batch"]["tried"][1] == {"batch_size": 1024, "memory_bytes": None, "fits": False}


@pytest.mark.parametrize(
    ("options", "targets", "message"),
    [
        ({"loop": {"batch_size": 100}}, ["cpu:8"], "batch_size is 100, which 8 devices cannot share evenly"),
        ({"loop": {"batch_size": 0}}, ["cpu:8"], "batch_size is 0"),
        ({"loop": {"num_steps": "x"}}, ["cpu:8"], "loop.num_steps is 'x'; it must be a whole number"),
        ({"loop": {"size": 1}}, ["cpu:8"], "the loop has no field size; it has num_steps, batch_size"),
        ({"model": "barlow"}, ["cpu:8"], "the models of dense are pretrained, random"),
        ({"model": "random", "stage": "pretrain"}, ["cpu:8"], "the training stages of random are finetune"),
        ({}, ["gpu:8"], "target is 'gpu:8'; it must be cpu:N, or one of tpu:v4, tpu:v5e"),
        ({}, ["cpu:none"], "it must be cpu:N"),
        ({}, ["tpu:v9:4x4"], "it must be cpu:N"),
        ({}, ["tpu:v5e"], "it must be cpu:N"),
        ({}, ["cpu:9"], "JAX_NUM_CPU_DEVICES=9"),
    ],
)
def test_impossible_requests_are_refused(study, options, targets, message):
    with pytest.raises(ValueError, match=message):
        plan.plan(study, targets, request=plan.PlanRequest(**options))


def test_a_tpu_without_its_compiler_is_refused(study, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"pip install 'tll_jax\[tpu\]'"):
        plan.plan(study, ["tpu:v5e:2x4"], request=REQUEST)


def test_the_command_prints_a_table_and_saves_the_records(tll, tmp_path):
    # The session's processes have one device; the command makes those that it was asked for.
    out = tmp_path / "plan.json"
    arguments = ["plan", "--config", CONFIG, "--model", "random", "--target", "cpu:2", "--out", out]
    outcome = tll(*arguments, "--batch-size", 8, "--loop", "dtype=bfloat16")
    assert outcome.returncode == 0, outcome.stderr
    (record,) = json.loads(out.read_text())["plans"]
    found = {name: record[name] for name in ("model", "stage", "batch_size", "dtype")}
    assert found == {"model": "random", "stage": "finetune", "batch_size": 8, "dtype": "bfloat16"}
    assert "| batch, images a device and step | 8, 8 |" in outcome.stdout
    assert "cpu:2: compiling" in outcome.stderr
    with pytest.raises(SystemExit) as refused:
        cli.main(["plan", "--config", "nowhere.py", "--target", "cpu:2"])
    assert refused.value.code == (
        "tll: config is 'nowhere.py', where there is no file; the package itself has emoji, emoji_full, template"
    )
