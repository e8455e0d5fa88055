"""Metric records survive kills: half lines and steps past the checkpoint are dropped."""

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


def test_numbers_that_json_has_no_word_for_become_null(tmp_path):
    log = records.Records(tmp_path / "metrics.jsonl", start_step=0)
    log.write(1, {"loss": float("nan"), "top1": 0.5})
    assert records.read(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": None, "top1": 0.5}]
