"""Eight virtual CPU devices, array types checked, and skips that count as failures where the data is at hand."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

install_import_hook(
    ["tll_jax.losses", "tll_jax.ranking", "tll_jax.statistics", "tll_jax.saliency", "tll_jax.augment"],
    "beartype.beartype",
)

import jax  # noqa: E402
import pytest  # noqa: E402

from tll_jax import ranking  # noqa: E402

HERE = Path(__file__).parent
COMPILED = tempfile.TemporaryDirectory()

# What several tests compile alike, they compile once.
jax.config.update("jax_compilation_cache_dir", COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """One device, and one folder of compiled programs for all runs of this session."""
    cache = str(tmp_path_factory.mktemp("cache"))
    return os.environ | {"TLL_CACHE": cache, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="session")
def tll(environment):
    """The console script as a real process."""

    def run(*arguments):
        command = [sys.executable, "-c", "from tll_jax.cli import main; main()", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def run_counted(environment):
    """Runs the tiny study into a folder as a real process; how many programs it asked for and how many it compiled."""

    def run(workdir):
        outcome = subprocess.run(
            [
                sys.executable,
                str(HERE / "count_compilations.py"),
                f"--config={HERE / 'configs' / 'tiny.py'}",
                f"--workdir={workdir}",
            ],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert outcome.returncode == 0, outcome.stderr
        return json.loads(outcome.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def first_run(run_counted, tmp_path_factory):
    """The folder of a study that ran to its end, undisturbed, and the compilations of that, the session's first run."""
    workdir = tmp_path_factory.mktemp("finished") / "study"
    return workdir, run_counted(workdir)


@pytest.fixture(scope="session")
def finished(first_run):
    """A study that ran to its end, undisturbed."""
    return first_run[0]


@pytest.fixture(scope="session")
def one_stage_alone(environment, tmp_path_factory):
    """The study of one stage by one process with two devices: what two processes with one device each must leave."""
    workdir = tmp_path_factory.mktemp("one-stage") / "study"
    config = HERE / "configs" / "one_stage.py"
    outcome = subprocess.run(
        [sys.executable, "-m", "tll_jax.main", f"--config={config}", f"--workdir={workdir}"],
        env=environment | {"JAX_NUM_CPU_DEVICES": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    return workdir


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks small enough that a few rows make several of them, some cut short."""
    for name, size in (("QUERY_BLOCK", 4), ("CANDIDATE_BLOCK", 16), ("GROUP", 4), ("GROUPS_AT_ONCE", 2)):
        monkeypatch.setattr(ranking, name, size)
    ranking._on_devices.clear_cache()
    yield
    ranking._on_devices.clear_cache()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """With TLL_FAIL_ON_SKIP set, a skipped test fails and says so: a skip must not pass for green."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("TLL_FAIL_ON_SKIP") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where skips are failures: {report.longrepr}"
