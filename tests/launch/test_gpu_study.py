"""The study on a GPU grows by one pretraining at a time, within its time, and what comes back is small."""

import importlib.util
import re
import tarfile

import pytest

from tests.configs import probed
from tests.launch.stand_ins import LAUNCH, StandIns
from tll_jax.study.train import seeded_pretrainings


@pytest.fixture
def stand_ins(tmp_path):
    stand_ins = StandIns(tmp_path)
    yield stand_ins
    stand_ins.end()


@pytest.fixture
def gpu_study():
    spec = importlib.util.spec_from_file_location("gpu_study", LAUNCH / "gpu_study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def starts(study):
    """The pretraining seed from which each fine-tuning seed starts."""
    pretrainings = seeded_pretrainings("barlow", study.models["barlow"], study)
    return {seed: pretrainings[i % len(pretrainings)][0].pretrain.seed for i, seed in enumerate(study.seeds)}


def test_a_growing_study_starts_each_finetuning_from_the_same_pretraining_and_ends_whole(gpu_study):
    study = probed.get_config()
    study.seeds, study.num_pretrainings = (5, 6, 7, 8, 9), 3
    *parts, last = gpu_study.growing(study)
    assert last is study
    assert [starts(part) for part in parts] == [{5: 0}, {5: 0, 6: 1}, {5: 0, 6: 1, 7: 2, 8: 0, 9: 1}]
    assert [part.probe for part in parts] == [None, None, None]
    assert starts(last) == starts(parts[-1])


def test_models_of_a_group_run_side_by_side_and_groups_one_after_the_other(stand_ins, tmp_path):
    stand_ins.add(
        "python3",
        "workdir = pathlib.Path(next(one for one in arguments if one.startswith('--workdir=')).partition('=')[2])\n"
        "(workdir / 'stages' / 'one' / 'checkpoints').mkdir(parents=True)\n"
        "for name in ('results.json', 'ranks.npz', 'weights.npz', 'stages/one/metrics.jsonl',\n"
        "             'stages/one/checkpoints/of.json'):\n"
        "    (workdir / name).write_text(name)\n"
        "print('finished', workdir.name)\n"
        "sys.exit(75 if workdir.name == 'barlow' else 0)",
    )
    runs, out = tmp_path / "runs", tmp_path / "out"
    given = [
        "--epochs",
        7,
        "--seconds",
        60,
        "--workdir",
        runs,
        out,
        "barlow,simclr",
        "random",
        "--",
        "--config.seeds=(0,)",
    ]
    outcome = stand_ins.run("gpu_study.sh", *given)
    assert outcome.returncode == 0
    assert "one of barlow,simclr ended with status 75" in outcome.stderr
    calls = [call["arguments"] for call in stand_ins.calls("python3")]
    named = [next(one for one in call if one.startswith("--config=")).rpartition(":")[2] for call in calls]
    assert sorted(named[:2]) == ["7,barlow", "7,simclr"]
    assert named[2:] == ["7,random"]
    assert all(call[-1] == "--config.seeds=(0,)" for call in calls)
    with tarfile.open(out / "tll_scale.tar.gz") as packed:
        names = packed.getnames()
    each = ("ranks.npz", "results.json", "stages/one/metrics.jsonl")
    models = ("barlow", "random", "simclr")
    assert sorted(names) == sorted(
        [f"./{model}.log" for model in models] + [f"./{model}/{name}" for model in models for name in each]
    )


def test_a_dry_run_of_the_gpu_study_shares_memory_and_cores(stand_ins, tmp_path):
    stand_ins.add("python3")
    stand_ins.add("nproc", "print(16)")
    outcome = stand_ins.run("gpu_study.sh", "--dry-run", tmp_path / "out", "barlow,classification", "random")
    lines = outcome.stdout.splitlines()
    assert [re.match(r"\S+", line)[0].partition("=")[2] for line in lines] == [".42", ".42", ".85"]
    assert [re.search(r"num_workers=(\d+)", line)[1] for line in lines] == ["7", "7", "15"]
    assert not stand_ins.calls("python3")
    assert not (tmp_path / "out").exists()


def test_a_model_that_takes_too_long_is_told_to_stop_and_the_rest_is_kept(stand_ins, tmp_path):
    stand_ins.add(
        "python3",
        "def save(number, frame):\n    print('saved', flush=True)\n    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save)\nprint('ready', flush=True)\ntime.sleep(600)",
    )
    # The time counts from the program's first word, however long it takes to start.
    stand_ins.add(
        "timeout",
        "*options, seconds = arguments[:3]\nassert options == ['--signal=TERM', '--kill-after=20']\n"
        f"process, log = subprocess.Popen(arguments[3:]), pathlib.Path({str(tmp_path / 'runs' / 'barlow.log')!r})\n"
        "while log.read_text() != 'ready\\n': time.sleep(0.05)\n"
        "time.sleep(int(seconds))\nprocess.terminate()\nprocess.wait()\nsys.exit(124)",
    )
    outcome = stand_ins.run(
        "gpu_study.sh", "--seconds", 3, "--workdir", tmp_path / "runs", tmp_path, "barlow", "random"
    )
    assert outcome.returncode == 0
    assert (tmp_path / "runs" / "barlow.log").read_text() == "ready\nsaved\n"
    assert len(stand_ins.calls("python3")) == 1
    assert 0 < int(stand_ins.calls("timeout")[0]["arguments"][2]) <= 3
