import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.gallery.test_embed_files import encoded, picture, save
from tll_jax.cli import main
from tll_jax.gallery import embed
from tll_jax.gallery.store import Store
from tll_jax.gallery.stored import embed_gallery

ROOT = Path(__file__).parents[2]
CHUNK = 8
DRIVER = f"""
import json, os, shutil, signal, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import jax, ray
jax.config.update("jax_platforms", "cpu")
from tll_jax.gallery import ray_engine, stored

ray_engine.CHUNK = {CHUNK}
model, pictures, out, what = sys.argv[1:]
ray.init("local", num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False)

def tell(progress):
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)

def scan_and_lose(*arguments):
    scanned = scan(*arguments)
    shutil.rmtree(pictures)
    return scanned

if what == "lose":
    scan, stored.scan = stored.scan, scan_and_lose
engine = ray_engine.RayEngine(2)
index = stored.embed_gallery(model, pictures, out, command="test", tell=tell, engine=engine)
print(json.dumps([index.embedded, index.kept, index.renamed, index.num_decoded, len(index.broken)]))
"""


def drive(environment, tmp_path, model, pictures, out, what):
    """A process with a Ray of its own, which ends with it."""
    return subprocess.run(
        [sys.executable, "-c", DRIVER, *map(str, (model, pictures, out, what))],
        env=environment | {"HOME": str(tmp_path), "PYTHONPATH": f"{ROOT}:{environment.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
    )


def tables(place):
    """The rows of the files and of the only model."""
    store = Store(str(place))
    (model,) = store.models()
    both = (store.files(), embed.FILES.names), (store.contents(model), embed.contents_schema(1).names)
    return [table.rows(names).select(names).sort_by("id").to_pylist() for table, names in both]


def embeddings_of(contents):
    """Takes the embeddings out of the rows."""
    return np.array([row.pop("embedding") for row in contents], np.float16)


def test_without_ray_the_command_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    command = ["embed", "default", str(tmp_path), "--out", str(tmp_path / "gallery")]
    with pytest.raises(SystemExit, match=r"pip install 'tll_jax\[ray\]'"):
        main([*command, "--engine=ray"])
    with pytest.raises(SystemExit, match="--processes goes with --engine=ray"):
        main([*command, "--processes=2"])
    assert not (tmp_path / "gallery").exists()


@pytest.mark.release
def test_two_actors_write_the_rows_of_one_process_also_after_a_kill(environment, finished, tmp_path, monkeypatch):
    pytest.importorskip("ray.data")
    model, pictures = finished / "models" / "barlow" / "seed-0", tmp_path / "pictures"
    for seed in range(20):
        save(pictures / f"{seed:02}.png", seed)
    shutil.copy(pictures / "00.png", pictures / "00-copy.png")
    (pictures / "05-broken.jpg").write_bytes(b"no picture")
    frames = [picture(seed) for seed in (30, 31, 32)]
    (pictures / "06.gif").write_bytes(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    monkeypatch.setattr(embed, "CHUNK", CHUNK)
    embed_gallery(str(model), str(pictures), str(tmp_path / "plain"), command="test")

    out = tmp_path / "gallery"
    killed = drive(environment, tmp_path, model, pictures, out, "kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    files, _ = tables(out)
    assert CHUNK - 1 <= len(files) <= CHUNK
    resumed = drive(environment, tmp_path, model, pictures, out, "")
    assert resumed.returncode == 0, resumed.stderr
    embedded, kept, renamed, _, num_broken = json.loads(resumed.stdout.splitlines()[-1])
    assert (embedded + kept + num_broken, renamed, num_broken) == (23, 0, 1)
    assert len(files) - 1 <= kept <= len(files)
    # Processes with other numbers of threads add in another order, which half precision may show in its last digit.
    (files, contents), (plain_files, plain_contents) = tables(out), tables(tmp_path / "plain")
    found, expected = (embeddings_of(rows) for rows in (contents, plain_contents))
    np.testing.assert_array_max_ulp(found, expected, maxulp=1)
    assert (files, contents) == (plain_files, plain_contents)

    lost = drive(environment, tmp_path, model, pictures, tmp_path / "lost", "lose")
    assert lost.returncode == 1
    assert "FileProblem" in lost.stderr
    assert "is the drive still there?" in lost.stderr
