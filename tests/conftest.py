"""Eight virtual CPU devices, array types checked, and skips that count as failures where the data is at hand."""

import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

install_import_hook(
    ["tll_jax.losses", "tll_jax.ranking", "tll_jax.statistics", "tll_jax.saliency", "tll_jax.augment"],
    "beartype.beartype",
)

import pytest  # noqa: E402


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """With TLL_FAIL_ON_SKIP set, a skipped test fails and says so: a skip must not pass for green."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("TLL_FAIL_ON_SKIP") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where skips are failures: {report.longrepr}"
