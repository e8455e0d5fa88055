"""The compilation cache and platform-dependent tracing of `devices`."""

import contextlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tll_jax import devices
from tll_jax.devices import by_platform, tracing_for

PROGRAMS = """
import os, sys, pathlib, logging
import jax, jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache
from tll_jax import devices

logging.basicConfig(level=logging.WARNING, format="%(message)s")
folder = pathlib.Path(sys.argv[1])

def run():
    jax.clear_caches()
    compilation_cache.reset_cache()
    return [float(jax.jit(compute)(jnp.float32(3))) for compute in (lambda x: x * 2, lambda x: x + jnp.sin(0 * x))]

os.environ["TLL_CACHE"] = "/dev/null/cache"
devices.keep_compiled_programs()
print(run())
os.environ["TLL_CACHE"] = str(folder)
devices.keep_compiled_programs()
devices.keep_compiled_programs()
print(run())
programs = sorted((folder / "xla").glob("*-cache"))
whole = [program.read_bytes() for program in programs]
for program, content, damage in zip(programs, whole, (lambda b: b[:len(b) // 2], lambda b: b"", lambda b: bytes(99))):
    program.write_bytes(damage(content))
print(run())
print(*programs, sep="\\n")
print([zlib_is_whole(program) for program in programs])
(folder / "xla").rename(folder / "gone")
(folder / "xla").touch()
print(run())
"""


def test_damaged_programs_are_compiled_again_and_an_unusable_folder_is_no_error(tmp_path):
    whole = "import zlib\nzlib_is_whole = lambda path: len(zlib.decompress(path.read_bytes())) > 100\n"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    outcome = subprocess.run(
        [sys.executable, "-c", whole + PROGRAMS, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    results, second, third, *programs, are_whole, last = outcome.stdout.splitlines()
    assert {results, second, third, last} == {"[6.0, 3.0]"}
    assert len(programs) > 2
    assert "False" not in are_whole
    told = outcome.stderr.splitlines()
    assert "/dev/null/cache cannot be used (Not a directory)" in told[0]
    damaged = sorted(line for line in told if line.startswith("the compiled program in "))
    assert damaged == [f"the compiled program in {path} is damaged: it is compiled again" for path in programs[:3]]
    assert sum("cannot be used" in line for line in told) == 2, told


@pytest.mark.parametrize(("target", "traced"), [("cpu", ["cpu"]), ("tpu", ["default"]), (None, ["cpu", "default"])])
def test_code_for_other_platforms_is_traced_only_where_the_platform_is_unknown(target, traced):
    seen = []

    def watched(name, factor):
        def scale(x):
            seen.append(name)
            return factor * x

        return scale

    @jax.jit
    def program(x):
        with tracing_for(target) if target else contextlib.nullcontext():
            return by_platform(x, cpu=watched("cpu", 2), default=watched("default", 3))

    # Code traced for no known platform must be correct on this one.
    assert program(1.0) == (3 if target == "tpu" else 2)
    assert sorted(set(seen)) == traced


def test_what_is_computed_on_the_host_goes_to_the_device_of_what_it_meets():
    with devices.on_host():
        computed = jax.jit(lambda: jnp.arange(3))()
    assert computed.devices() == {jax.devices("cpu")[0]}
    elsewhere = jax.device_put(jnp.ones(3), jax.devices()[1])
    assert jax.jit(jnp.add)(computed, elsewhere).devices() == {jax.devices()[1]}


def test_arrays_that_lie_elsewhere_are_copied_to_the_mesh_and_those_there_stay_as_they_are():
    mesh = devices.make_mesh(jax.devices()[:2])
    split = jax.device_put(jnp.arange(4.0), devices.batch_sharded(mesh))
    tree = {"host": np.ones(3), "another device": jax.device_put(jnp.ones(2), jax.devices()[2]), "split": split}
    found = devices.resident(tree, mesh)
    assert found["split"] is split
    for name in ("host", "another device"):
        assert found[name].sharding == devices.replicated(mesh)
        np.testing.assert_array_equal(found[name], tree[name])


def test_without_a_cpu_in_jax_platforms_programs_run_where_they_otherwise_would(monkeypatch):
    def missing(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", missing)
    with devices.on_host():
        assert jax.jit(lambda: jnp.arange(3))().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("cpuinfo", "described"),
    [
        ("model name\t: A 7\nflags\t\t: fpu avx avx2 avx512f\n\nmodel name\t: B\nflags\t\t: fpu\n", "A 7 (AVX-512)"),
        ("processor\t: 0\nmodel name\t: A 7\nflags\t\t: fpu avx avx2\n", "A 7 (AVX2)"),
        ("model name\t: A 7\nflags\t\t: fpu sse2\n", "A 7"),
        # As on 64-bit ARM.
        ("processor\t: 0\nFeatures\t: fp asimd\n", ""),
        ("", ""),
    ],
)
def test_a_processor_is_described_with_its_widest_vector_instructions(cpuinfo, described):
    assert devices._described(cpuinfo) == described
