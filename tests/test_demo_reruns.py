"""Which reruns of the demo are counted together."""

import pytest

from benchmarks.demo_reruns import SAME_BUT_FOR_ROUNDING, check_code, made_again, markdown
from tll_jax.errors import InvalidValue


def run(code, processor, mrr, cores=1):
    difference = {"a": "barlow", "b": "hog", "difference": mrr - 0.5, "low": -0.1, "high": 0.3, "p_holm": 0.4}
    return {
        "created": "2026-11-27",
        "processor": processor,
        "jax": "0.10.2",
        "cores_a_training": cores,
        "code": [code],
        "mrr": {"barlow": mrr, "hog": 0.5},
        "differences": [difference],
    }


def test_runs_of_other_code_count_where_a_run_made_again_is_equal_and_the_later_one_counts():
    runs = [run("new", "AMD", 0.6), run("old", "AMD", 0.6), run("old", "Intel", 0.7), run("new", "AMD", 0.65, cores=2)]
    check_code(runs)
    shown = markdown(runs)
    assert shown.count("| AMD | 0.10.2 | 1 |") == 1
    assert "| Intel | 0.10.2 | 1 |" in shown
    assert "| barlow | .600 | .600 to .700 |" in shown
    assert "0 of 3" in shown


def test_runs_of_code_that_sums_in_another_order_count_beside_those_of_the_present_code():
    before = SAME_BUT_FOR_ROUNDING[0][0]
    runs = [run("new", "AMD", 0.6), run(before, "AMD", 0.615), run(before, "Intel", 0.7)]
    check_code(runs)
    assert made_again(runs) == []
    shown = markdown(runs)
    assert f"| AMD | 0.10.2 | 1 | {before} |" in shown
    assert "| barlow | .600 | .600 to .700 |" in shown
    assert "0 of 3" in shown


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([run("old", "Intel", 0.7)], "made by training code old, the first by new: run it again"),
        ([run("old", "AMD", 0.6001), run("old", "Intel", 0.7)], "has other MRRs than that of 2026-11-27"),
        ([run("old", "AMD", 0.6), run("older", "Intel", 0.7)], "made by training code older"),
        ([run(SAME_BUT_FOR_ROUNDING[0][0], "AMD", 0.617)], "has other MRRs than that of 2026-11-27"),
    ],
)
def test_runs_of_code_without_an_equal_result_are_refused(others, words):
    with pytest.raises(InvalidValue, match=words):
        check_code([run("new", "AMD", 0.6), *others])
