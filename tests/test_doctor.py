"""`tll doctor` on complete and on incomplete installations."""

import importlib.metadata
import os
import re
import subprocess
import sys

import jax
import pytest

import tll_jax
from tll_jax import doctor


def run(**variables):
    """The lines of `tll doctor` by topic, run with these environment variables; None unsets one."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"} | variables
    outcome = subprocess.run(
        [sys.executable, "-c", "from tll_jax.cli import main; main(['doctor'])"],
        env={name: str(value) for name, value in environment.items() if value is not None},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    return dict(line.split(maxsplit=1) for line in outcome.stdout.splitlines())


def test_a_whole_installation_is_described_in_a_screen(tmp_path):
    (tmp_path / "xla").mkdir()
    (tmp_path / "xla" / "program").write_bytes(bytes(3 * 2**20))
    found = run(TLL_CACHE=tmp_path)
    assert list(found) == [
        "tll_jax", "versions", "extras", "machine", "gpu", "devices", "speed", "cache", "decoder", "emoji", "data"
    ]  # fmt: skip
    assert "BROKEN" not in str(found)
    assert found["tll_jax"].startswith(tll_jax.__version__)
    assert f"jax {jax.__version__}, " in found["versions"]
    assert found["devices"] == "0: cpu cpu; 1: cpu cpu"
    assert found["cache"] == f"{tmp_path}: 3.0 MiB in 1 files"
    assert re.search(r"JPEG by .*jpeg.*; reads jpg, png, webp$", found["decoder"])
    assert found["emoji"] == "1,610 pairs of the package"
    rates = [int(rate) for rate in re.findall(r"(\d+) GFLOP/s", found["speed"])]
    assert len(rates) == 2
    assert min(rates) > 0


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("| NVIDIA-SMI 565.57.01   Driver Version: 550.54.15   CUDA Version: 12.4 |", "550.54.15"),
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\nGCC version:  12.3.0\n",
            "535.183.01",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n", "580.65.06"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", None),
        ("", None),
    ],
)
def test_the_version_of_the_driver_is_read_from_both_places(text, version):
    assert doctor.driver_version(text) == version


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        ("580.65.06", "install [cuda13]"),
        ("1000.1", "install [cuda13]"),
        ("579.99", "install [cuda12]; [cuda13] needs driver 580 or newer"),
        ("525.60.13", "install [cuda12]; [cuda13] needs driver 580 or newer"),
        (
            "525.60.9",
            "TOO OLD FOR JAX: [cuda13] needs driver 580 or newer; [cuda12] needs driver 525.60.13 or newer",
        ),
    ],
)
def test_the_newest_cuda_that_fits_the_driver_is_advised(version, advice):
    assert doctor.cuda_advice(version) == advice


def test_missing_or_broken_parts_are_reported_beside_the_rest(tmp_path):
    (tmp_path / "imagenette-128.zip").write_bytes(b"no zip")
    found = run(TLL_CACHE=tmp_path / "imagenette-128.zip" / "cache", TLL_DATA=tmp_path, JAX_PLATFORMS="nonsense")
    assert "CANNOT BE WRITTEN" in found["cache"]
    assert found["devices"].startswith("BROKEN: RuntimeError: Unable to initialize backend 'nonsense'")
    zip_file = tmp_path / "imagenette-128.zip"
    assert f"totally-looks-like.zip is not there; BROKEN: {zip_file} is not a complete zip file" in found["data"]
    assert "BROKEN" not in found["machine"]
    assert found["emoji"] == "1,610 pairs of the package"


def test_unset_and_missing_data_folders_have_different_messages(tmp_path, monkeypatch):
    monkeypatch.delenv("TLL_DATA", raising=False)
    assert doctor._data().startswith("$TLL_DATA is not set")
    monkeypatch.setenv("TLL_DATA", str(tmp_path / "nowhere"))
    assert doctor._data().endswith("nowhere, which is NOT A FOLDER")


@pytest.fixture
def installed(monkeypatch):
    """Two installed packages: tll_jax and jax, and neither of jax's plugins nor torch."""
    requirements = {
        "tll_jax": ["numpy>=2", "jax[cuda12]>=0.10; extra == 'cuda'", "torch==2.13.0; extra == 'bench'",
                    "tll_jax[faces]; extra == 'dev'", "jax; extra == 'dev'", "jax; extra == 'faces'"],
        "jax": ["ml_dtypes>=0.5", 'jaxlib<=0.10,>=0.10; extra == "cuda12"', 'jax-plugin[all]>1; extra == "cuda12"'],
    }  # fmt: skip

    def version(name):
        if name not in requirements:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    class Metadata:
        def get_all(self, _name):
            return ["cuda", "bench", "faces", "dev"]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", requirements.__getitem__)
    monkeypatch.setattr(importlib.metadata, "metadata", lambda _name: Metadata())


def test_an_extra_is_installed_when_all_that_it_asks_for_is(installed):
    assert doctor._extras() == (
        "cuda missing (jaxlib, jax-plugin), bench missing (torch), faces installed, dev installed"
    )
