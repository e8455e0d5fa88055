"""Test setup: eight virtual CPU devices, checked array types, shared studies, and skips as failures on request."""

import importlib.metadata
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# LLVM's optimizations of programs that run for milliseconds would take half of the suite's time.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The newer of two emitters of fused loops would take half of the rest; jaxlib 0.12 has only one, and refuses the flag.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
# A program under test would start itself again; see tll_jax.program.start_with_huge_pages.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
# Tests, workers and child processes share a compilation cache.
if "PYTEST_XDIST_WORKER" not in os.environ:
    CACHE = tempfile.TemporaryDirectory()
    os.environ |= {
        "TLL_CACHE": CACHE.name,
        "JAX_COMPILATION_CACHE_DIR": f"{CACHE.name}/xla",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

from filelock import FileLock
from jaxtyping import install_import_hook

install_import_hook(
    ["tll_jax.losses", "tll_jax.ranking", "tll_jax.statistics", "tll_jax.saliency", "tll_jax.augment"],
    "beartype.beartype",
)

# Shells start background jobs with SIGINT ignored, which child processes inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from tll_jax.data.emoji import EmojiPairs  # noqa: E402
from tll_jax.ranking import blocked  # noqa: E402

# The same examples in every run, on machines of any speed.
settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("suite")

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def environment():
    """Environment variables of child processes with one device."""
    return os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="session")
def tll(environment):
    """The console script as a real process."""

    def run(*arguments):
        command = [sys.executable, "-c", "from tll_jax.cli import main; main()", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def study_of(environment, tmp_path_factory):
    """`study_of(config, **variables)`: the folder of a study that was run as a real process, once for all workers."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def run(config, **variables):
        workdir, done = root / f"study-{config.stem}", root / f"study-{config.stem}.done"
        with FileLock(workdir.with_suffix(".lock")):
            if not done.exists():
                outcome = subprocess.run(
                    [sys.executable, "-m", "tll_jax.main", f"--config={config}", f"--workdir={workdir}"],
                    env=environment | variables,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert outcome.returncode == 0, outcome.stderr
                done.touch()
        return workdir

    return run


@pytest.fixture(scope="session")
def finished(study_of):
    """The folder of the finished tiny study."""
    return study_of(HERE / "configs" / "tiny.py")


@pytest.fixture(scope="session")
def one_stage_alone(study_of):
    """The study of one stage, run by one process with two devices; two processes with one device each must equal it."""
    return study_of(HERE / "configs" / "one_stage.py", JAX_NUM_CPU_DEVICES="2")


@pytest.fixture
def opened_once(monkeypatch):
    """Opens the emoji pairs once for all that a test runs."""
    pairs = EmojiPairs().open()
    monkeypatch.setattr(EmojiPairs, "open", lambda settings: pairs)


@pytest.fixture
def small_blocks(monkeypatch):
    """Sets a block size at which a few rows make several blocks, the last one partial."""
    sizes = {"QUERY_BLOCK": 4, "CANDIDATE_BLOCK": 16, "PAIR_BLOCK": 5, "GROUP": 4}
    sizes |= {"FEW_QUERIES": 3, "FEW_ROWS": 4, "EXTRACTING": 3}
    for name, size in sizes.items():
        monkeypatch.setattr(blocked, name, size)
    blocked._on_devices.clear_cache()
    yield
    blocked._on_devices.clear_cache()


LONGEST = (
    "test_processes.py",
    "test_side_by_side.py",
    "test_launch.py",
    "test_study.py",
    "test_study_systems.py",
    "test_checkpoint.py",
    "test_vit.py",
    "test_device_counts.py",
    "test_loop.py",
    "test_study_stops.py",
    "test_efficientnet_lite.py",
    "test_convolution.py",
    "test_ranking.py",
    "test_program.py",
    "test_linear.py",
    "test_lora.py",
    "test_sharded.py",
    "test_explain.py",
)
"""Files that take longest, the longest first: a worker that begins one last would keep the other waiting."""


def pytest_collection_modifyitems(items):
    """Moves the longest files to the front; `make test` gives files to workers in this order."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Turns skipped tests into failures if TLL_FAIL_ON_SKIP is set."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("TLL_FAIL_ON_SKIP") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where skips are failures: {report.longrepr}"
