"""Checkpoints that cannot be read or written, were damaged, or come from another number of devices."""

import errno
import logging
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.pairs_of_processes import run_pair
from tests.training import reading_together
from tests.training.test_loop import Setup, logged
from tests.training.walk import Walk, first_state
from tll_jax.errors import DamagedFile, FileProblem, InvalidValue, MissingFile
from tll_jax.training import checkpoint, loop
from tll_jax.training.checkpoint import Checkpoints


@pytest.fixture(autouse=True)
def without_waits(monkeypatch):
    """What fails is tried again at once."""
    monkeypatch.setattr(checkpoint, "_WAITS_SECONDS", (0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A whole walk: its folder, and its best state."""
    folder = tmp_path_factory.mktemp("walked")
    return folder, Walk(folder=folder).run()


@pytest.fixture
def walk(walked, tmp_path):
    """A copy of the whole walk."""
    shutil.copytree(walked[0], tmp_path / "walk")
    return Walk(folder=tmp_path / "walk")


def kept(folder):
    """The checkpoints under a folder, as `kind/step`."""
    return sorted(f"{kind}/{path.name}" for kind in ("best", "last") for path in (folder / kind).iterdir())


def files(folder):
    """What a folder holds."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def equal(left, right):
    return jax.tree.all(jax.tree.map(np.array_equal, left, right))


def damage(folder, how="cut short"):
    """Cuts every file of a checkpoint short, or takes its metadata away."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert found
    for path in found:
        if how == "cut short":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif "METADATA" in path.name:
            path.unlink()


@pytest.mark.parametrize("how", ["cut short", "without metadata"])
def test_a_run_with_a_damaged_newest_checkpoint_resumes_from_the_previous_one(tmp_path, caplog, how):
    whole = Setup(folder=tmp_path / "whole").run()
    Setup(folder=tmp_path / "parts", num_steps=9).run()
    checkpoints = tmp_path / "parts" / "checkpoints"
    assert kept(checkpoints) == ["last/6", "last/9"]
    damage(checkpoints / "last" / "9", how)
    damaged = files(checkpoints / "last" / "9")
    with caplog.at_level(logging.INFO):
        parts = Setup(folder=tmp_path / "parts").run()
    assert "last/9 is damaged" in caplog.text
    assert f"is set aside as {checkpoints / 'damaged' / 'last-9.1'}" in caplog.text
    assert files(checkpoints / "damaged" / "last-9.1") == damaged
    assert "going on at step 6 of 12" in caplog.text
    assert equal(parts, whole)
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
    split = Setup(folder=tmp_path, fsdp_min_size=64).run()
    assert not split.params["Dense_0"]["kernel"].is_fully_replicated
    one = Setup(folder=tmp_path, num_devices=1).run()
    assert equal(one.variables, split.variables)


@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError])
def test_a_lost_process_is_not_reported_as_a_full_disk_or_a_damaged_checkpoint(walk, monkeypatch, kind):
    checkpoints = Checkpoints(walk.folder / "checkpoints")

    def lost(*_, **__):
        raise kind("UNKNOWN: Gloo AllGather failed: Connection closed by peer")

    monkeypatch.setattr(checkpoint, "_worst", lost)
    with pytest.raises(kind, match="Gloo"):
        checkpoints.restore("last", first_state())
    assert kept(walk.folder / "checkpoints") == ["best/10", "last/10", "last/12"]
    monkeypatch.setattr(checkpoints._managers["last"], "wait_until_finished", lost)
    with pytest.raises(kind, match="Gloo"):
        checkpoints.finish()
    monkeypatch.setattr(ocp.Checkpointer, "save", lost)
    with pytest.raises(kind, match="Gloo"):
        checkpoint.save_variables(walk.folder / "variables", {}, step=12)


NUMBERS = [errno.EIO, errno.EMFILE, errno.EACCES, errno.ESTALE, errno.ETIMEDOUT]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("wrapped", [False, True], ids=["as it is", "in another type"])
@pytest.mark.parametrize("times", [3, 1000])
def test_a_failing_read_is_tried_again_and_never_taken_for_damage(walk, monkeypatch, number, wrapped, times):
    folder = walk.folder / "checkpoints"
    before = files(folder)
    checkpoints, read_once = Checkpoints(folder), checkpoint._read_once
    failures = iter(range(times))

    def failing(*arguments):
        if next(failures, None) is None:
            return read_once(*arguments)
        error = OSError(number, os.strerror(number), "d/0a1b")
        raise ValueError(f'NOT_FOUND: Error opening "zarr" driver: [{os.strerror(number)}]') if wrapped else error

    monkeypatch.setattr(checkpoint, "_read_once", failing)
    if times < 1000:
        assert int(checkpoints.restore("last", first_state()).step) == 12
    else:
        with pytest.raises(FileProblem, match=rf"last/12 cannot be read: .*{os.strerror(number)}.*nothing was removed"):
            checkpoints.restore("last", first_state())
    assert files(folder) == before


@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt", "d"])
def test_a_disk_that_cannot_read_a_file_ends_the_run_and_the_same_command_goes_on_afterwards(walk, walked, name):
    folder = walk.folder / "checkpoints"
    item = folder / "last" / "12" / "default"
    # All of a folder: which of its files hold what is read differs from save to save.
    broken = {path: path.read_bytes() for path in (item / name, *(item / name).rglob("*")) if path.is_file()}
    for path in broken:
        path.unlink()
        # Reading the start of one's own memory is an input/output error.
        path.symlink_to("/proc/self/mem")
    for _ in range(2):
        with pytest.raises(FileProblem, match=r"last/12 cannot be read: .*Input/output error.*Look after the disk"):
            walk.run()
        assert kept(folder) == ["best/10", "last/10", "last/12"]
    assert not (folder / "damaged").exists()
    for path, content in broken.items():
        path.unlink()
        path.write_bytes(content)
    assert equal(walk.run(), walked[1])


def test_a_read_that_fails_once_is_retried(walk, monkeypatch):
    checkpoints, read_once = Checkpoints(walk.folder / "checkpoints"), checkpoint._read_once
    failures = iter(["half a page"])

    def failing(*arguments):
        for reason in failures:
            raise ValueError(reason)
        return read_once(*arguments)

    monkeypatch.setattr(checkpoint, "_read_once", failing)
    assert int(checkpoints.restore("last", first_state()).step) == 12


@pytest.mark.parametrize("num_processes", [1, 2])
def test_only_processes_that_write_together_wait_for_the_save_of_the_other_kind(tmp_path, monkeypatch, num_processes):
    checkpoints, waited = Checkpoints(tmp_path / "checkpoints"), []
    for kind, manager in checkpoints._managers.items():
        wait = manager.wait_until_finished
        monkeypatch.setattr(manager, "wait_until_finished", lambda kind=kind, wait=wait: (waited.append(kind), wait()))
    monkeypatch.setattr(checkpoint.processes, "count", lambda: num_processes)
    checkpoints.save("best", first_state())
    waited.clear()
    checkpoints.save("last", first_state())
    assert ("best" in waited) == (num_processes == 2)
    checkpoints.finish()
    assert kept(tmp_path / "checkpoints") == ["best/0", "last/0"]
    checkpoints.close()


def test_the_only_checkpoint_is_never_set_aside(walk):
    folder = walk.folder / "checkpoints"
    walk.monitor = ""
    for name in ("best/10", "last/10"):
        shutil.rmtree(folder / name)
    damage(folder / "last" / "12")
    before = files(folder)
    for _ in range(2):
        with pytest.raises(
            InvalidValue, match=r"last/12 is damaged .*no other checkpoint. Delete .*checkpoints and run"
        ):
            walk.run()
        assert files(folder) == before


def test_a_run_resumes_from_the_best_checkpoint_if_both_last_ones_are_damaged(walk, walked, caplog):
    for step in ("10", "12"):
        damage(walk.folder / "checkpoints" / "last" / step)
    with caplog.at_level(logging.INFO):
        assert equal(walk.run(), walked[1])
    assert "going on at step 10 of 12" in caplog.text
    assert logged(walk.folder) == logged(walked[0])


@pytest.mark.parametrize("others", [0, 1, 2])
def test_processes_agree_on_the_worst_result_of_a_read(walk, monkeypatch, others):
    folder = walk.folder / "checkpoints"
    checkpoints = Checkpoints(folder)
    outcomes = iter([others, 0])
    monkeypatch.setattr(checkpoint, "_worst", lambda own: max(own, next(outcomes)))
    if others == 2:
        with pytest.raises(FileProblem, match="last/12: another process could not read it"):
            checkpoints.restore("last", first_state())
    else:
        assert int(checkpoints.restore("last", first_state()).step) == (12 if others == 0 else 10)
    assert checkpoints.steps("last") == ([10] if others == 1 else [10, 12])
    assert (folder / "damaged" / "last-12.1").exists() == (others == 1)


def test_a_failed_read_in_one_process_does_not_block_the_other(tmp_path):
    found = [np.load(path) for path in run_pair(reading_together, tmp_path, devices=1)]
    for process in found:
        # Read after one failure of one process; damaged for one, so none for both; unreadable for one, so the end.
        assert process["steps"].tolist() == [3, 2]
        assert process["values"].tolist() == [3.0, 2.0]
        assert process["kept"].tolist() == [2]
    assert "cannot be read" in str(found[1]["problem"])
    assert "another process could not read it" in str(found[0]["problem"])


def without_best(folder):
    shutil.rmtree(folder / "best" / "10")


def with_damaged_best(folder):
    damage(folder / "best" / "10")


@pytest.mark.parametrize("lose", [without_best, with_damaged_best])
@pytest.mark.parametrize(
    ("last", "start"), [((10, 12), "going on at step 10"), ((12,), "again from the beginning")], ids=["before", "after"]
)
def test_a_run_that_lost_its_best_checkpoint_still_ends_with_the_best_state(walk, walked, caplog, lose, last, start):
    folder = walk.folder / "checkpoints"
    lose(folder)
    for step in {10, 12} - set(last):
        shutil.rmtree(folder / "last" / str(step))
    with caplog.at_level(logging.INFO):
        assert equal(walk.run(), walked[1])
    assert "cannot go on at step 12: the best state before it, of step 10, is gone" in caplog.text
    assert start in caplog.text
    assert logged(walk.folder) == logged(walked[0])
    # And the next start finds everything in place.
    caplog.clear()
    assert equal(walk.run(), walked[1])
    assert "cannot go on" not in caplog.text


def test_a_best_checkpoint_that_is_lost_while_the_run_goes_on_is_not_replaced_by_the_last_one(
    walk, walked, monkeypatch
):
    restore = Checkpoints.restore

    def losing(self, kind, target, step=None):
        state = restore(self, kind, target, step)
        if kind == "best" and step == 10 and state is not None:
            shutil.rmtree(walk.folder / "checkpoints" / "best" / "10" / "default")
        return state

    monkeypatch.setattr(Checkpoints, "restore", losing)
    with pytest.raises(FileProblem, match=r"of step 10, is gone .*run the same command"):
        walk.run()
    monkeypatch.undo()
    assert equal(walk.run(), walked[1])


class Killed(BaseException):
    """Nothing catches it."""


@pytest.mark.parametrize("cut", [False, True], ids=["killed once", "killed again before it came by"])
def test_a_run_killed_between_the_saves_of_best_and_last_ends_as_one_that_was_not(tmp_path, walked, monkeypatch, cut):
    walk = Walk(folder=tmp_path / "walk")
    save = Checkpoints.save

    def killed(self, kind, state):
        if kind == "last" and int(state.step) == 10:
            self.finish()
            raise Killed
        save(self, kind, state)

    monkeypatch.setattr(Checkpoints, "save", killed)
    with pytest.raises(Killed):
        walk.run()
    monkeypatch.undo()
    # The best before, of step 4, has made way for that of step 10.
    assert kept(walk.folder / "checkpoints") == ["best/10", "last/8", "last/9"]
    if cut:
        lines = (walk.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        (walk.folder / "metrics.jsonl").write_text("".join(line for line in lines if '"step": 10' not in line))
    assert equal(walk.run(), walked[1])
    assert logged(walk.folder) == logged(walked[0])


@pytest.mark.parametrize(
    ("num_lost", "tail", "start"),
    [(1, b'{"step": 12, "sco', 10), (2, b"\xff\xfe\0\0", 10), (5, b"[]\n", 0), (18, b"", 0)],
)
def test_lost_records_are_reproduced(walk, walked, caplog, num_lost, tail, start):
    path = walk.folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 12 + 6
    path.write_bytes(b"".join(lines[: len(lines) - num_lost]) + tail)
    with caplog.at_level(logging.INFO):
        assert equal(walk.run(), walked[1])
    assert ("again from the beginning" if start == 0 else f"going on at step {start} of 12") in caplog.text
    assert logged(walk.folder) == logged(walked[0])


VARIABLES = {"params": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)}, "batch_stats": {"mean": np.ones(3)}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Trained variables."""
    path = tmp_path_factory.mktemp("stage") / "variables"
    checkpoint.save_variables(path, VARIABLES, step=12)
    return path


def changes(path):
    """Every file of a folder, gone, empty or cut."""
    for file in sorted(path.rglob("*")):
        if file.is_file() and (content := file.read_bytes()):
            for part in (None, b"", content[:-1], content[: len(content) // 2]):
                yield file.relative_to(path), part


def test_damaged_variables_and_another_architecture_are_different_errors(saved, tmp_path):
    said = []
    for name, part in changes(saved):
        path = tmp_path / "variables"
        shutil.copytree(saved, path)
        (path / name).unlink()
        if part is not None:
            (path / name).write_bytes(part)
        assert not checkpoint.are_whole(path, checkpoint.sizes(saved))
        try:
            # Orbax has files that it can do without.
            assert equal(checkpoint.load_variables(path, VARIABLES), VARIABLES), (name, part)
        except DamagedFile as error:
            said.append(str(error))
        shutil.rmtree(path)
    assert len(said) > 6
    assert all(f"{path} is damaged" in one and "delete this folder and run" in one for one in said)
    assert checkpoint.are_whole(saved, checkpoint.sizes(saved))
    with pytest.raises(MissingFile, match="no trained variables at"):
        checkpoint.load_variables(tmp_path / "variables", VARIABLES)
    with pytest.raises(InvalidValue, match=r"another architecture: params/kernel is \(2, 3\) there and \(5,\)"):
        checkpoint.load_variables(saved, VARIABLES | {"params": {"kernel": np.zeros(5, np.float32)}})


def test_a_full_disk_is_one_line_and_no_tracebacks_of_the_threads_that_wrote(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ocp.handlers.StandardCheckpointHandler, "finalize", full)
    with pytest.raises(
        FileProblem, match=r"/variables: No space left on device. Make room there.*goes on from step 12"
    ):
        checkpoint.save_variables(tmp_path / "variables", VARIABLES, step=12)
    assert not (tmp_path / "variables").exists()
    logging.getLogger("absl").handle(
        logging.LogRecord(
            "absl", logging.ERROR, "orbax/future.py", 1, "a thread raised", (), (OSError, OSError(), None)
        )
    )
    assert "a thread raised" not in caplog.text


def test_variables_and_checkpoints_that_cannot_be_written_name_the_folder_and_the_mend(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileProblem, match=r"trained variables could not be written to .*file/variables.*Make room.*12"):
        checkpoint.save_variables(tmp_path / "file" / "variables", VARIABLES, step=12)
    with pytest.raises(FileProblem, match=r"file/checkpoints cannot be written"):
        Checkpoints(tmp_path / "file" / "checkpoints")


def test_a_run_without_a_monitored_metric_needs_no_best_checkpoint(tmp_path):
    state = Walk(folder=tmp_path, monitor="").run()
    assert int(state.step) == 12
    assert loop.records.best(logged(tmp_path), "score") == (10, 0.5)
    assert int(Walk(folder=tmp_path, monitor="").run().step) == 12
    assert Path(tmp_path / "checkpoints" / "best").exists()
    assert kept(tmp_path / "checkpoints") == ["last/10", "last/12"]
