"""Checkpoints that were damaged, could not be written, or come from another number of devices."""

import logging

import jax
import numpy as np
import pytest

from tests.training.test_loop import Setup, logged
from tll_jax.training.checkpoint import Checkpoints


def damage(folder, how):
    """Cuts every file of a checkpoint short, or takes its metadata away."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        if how == "cut short":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif "METADATA" in path.name:
            path.unlink()


@pytest.mark.parametrize("how", ["cut short", "without metadata"])
def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before_and_not_the_run(tmp_path, caplog, how):
    whole = Setup(folder=tmp_path / "whole").run()
    Setup(folder=tmp_path / "parts", num_steps=9).run()
    last = tmp_path / "parts" / "checkpoints" / "last"
    assert sorted(int(path.name) for path in last.iterdir()) == [6, 9]
    damage(last / "9", how)
    with caplog.at_level(logging.INFO):
        parts = Setup(folder=tmp_path / "parts").run()
    assert "last/9 cannot be read and is removed" in caplog.text
    assert "going on at step 6 of 12" in caplog.text
    assert jax.tree.all(jax.tree.map(np.array_equal, parts, whole))
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8), (8, 2)])
def test_a_run_goes_on_with_another_number_of_devices(tmp_path, before, after):
    whole = Setup(folder=tmp_path / "whole", num_devices=after).run()
    Setup(folder=tmp_path / "parts", num_steps=6, num_devices=before).run()
    parts = Setup(folder=tmp_path / "parts", num_devices=after).run()
    assert int(parts.step) == 12
    for left, right in zip(jax.tree.leaves(parts.variables), jax.tree.leaves(whole.variables), strict=True):
        np.testing.assert_allclose(left, right, rtol=2e-3, atol=2e-5)
    assert [record["step"] for record in logged(tmp_path / "parts")] == list(range(1, 13))


def test_a_state_split_over_the_devices_is_restored_whole_on_one(tmp_path):
    split = Setup(folder=tmp_path, split_from=64).run()
    assert not split.params["Dense_0"]["kernel"].is_fully_replicated
    one = Setup(folder=tmp_path, num_devices=1).run()
    assert jax.tree.all(jax.tree.map(np.array_equal, one.variables, split.variables))


@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError])
def test_a_lost_process_is_not_taken_for_a_full_disk_or_a_damaged_checkpoint(tmp_path, monkeypatch, kind):
    setup = Setup(folder=tmp_path, num_steps=9)
    state = setup.run()
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    def lost(*_, **__):
        raise kind("UNKNOWN: Gloo AllGather failed: Connection closed by peer")

    monkeypatch.setattr(checkpoints._managers["last"], "restore", lost)
    with pytest.raises(kind, match="Gloo"):
        checkpoints.restore("last", state)
    assert checkpoints.latest_step("last") == 9
    monkeypatch.setattr(checkpoints._managers["last"], "wait_until_finished", lost)
    with pytest.raises(kind, match="Gloo"):
        checkpoints.finish()
