"""Metric records survive kills and damage: what is no record, and all after it, and steps past the checkpoint are
dropped."""

import pytest

from tll_jax.errors import FileProblem
from tll_jax.training import records


def test_records_past_the_restored_step_and_half_written_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    log = records.Records(path, start_step=2)
    log.write(3, {"loss": 1.5})
    assert records.read(path) == [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 1.5},
    ]


def test_nan_and_infinity_become_null_in_records(tmp_path):
    log = records.Records(tmp_path / "metrics.jsonl", start_step=0)
    log.write(1, {"loss": float("nan"), "top1": 0.5})
    assert records.read(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": None, "top1": 0.5}]


@pytest.mark.parametrize(
    "bad",
    [
        b'{"step": 3, "lo',
        b"\xff\xfe\0\0\n",
        b"\0" * 40,
        b"\n",
        b"[]\n",
        b"null\n",
        b'{"loss": 1.0}\n',
        b'{"step": "3"}\n',
        pytest.param(b"[" * 100_000, id="deep"),
    ],
)
def test_records_end_at_the_first_invalid_line(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    good = b'{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n'
    path.write_bytes(good + bad + b'{"step": 4, "loss": 0.5}\n')
    assert [record["step"] for record in records.read(path)] == [1, 2]
    log = records.Records(path, start_step=2)
    assert path.read_bytes() == good
    log.write(3, {"loss": 1.5})
    assert [record["step"] for record in records.read(path)] == [1, 2, 3]


def test_a_text_that_only_looks_like_several_lines_is_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "note": "a\u2028b"}\n{"step": 2}\n', encoding="utf-8")
    assert [record["step"] for record in records.read(path)] == [1, 2]


def test_a_full_disk_names_the_file_and_the_mend_and_the_next_start_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = records.Records(path, start_step=0)
    log.write(1, {"loss": 3.0})
    kept = path.rename(tmp_path / "kept")
    path.symlink_to("/dev/full")
    with pytest.raises(FileProblem, match=r"metrics.jsonl cannot be written: No space left.*Make room there"):
        log.write(2, {"loss": 2.0})
    path.unlink()
    path.write_bytes(kept.read_bytes() + b'{"step": 2, "l')
    records.Records(path, start_step=1).write(2, {"loss": 2.0})
    assert records.read(path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]


def test_records_that_cannot_be_read_are_an_error_and_not_empty(tmp_path):
    path = tmp_path / "metrics.jsonl"
    # Reading the start of one's own memory is an input/output error.
    path.symlink_to("/proc/self/mem")
    with pytest.raises(FileProblem, match=r"metrics.jsonl cannot be read: Input/output error"):
        records.Records(path, start_step=3)
    assert path.is_symlink()


def test_the_best_is_the_first_of_the_largest_and_needs_a_number():
    found = [{"step": 1, "loss": 9.0}, {"step": 1, "top1": None}, {"step": 2, "top1": 0.5}, {"step": 3, "top1": 0.5}]
    assert records.best(found, "top1") == (2, 0.5)
    assert records.best(found[:2], "top1") is None
    assert records.best([*found, {"step": 4, "top1": 0.75}], "top1") == (4, 0.75)
