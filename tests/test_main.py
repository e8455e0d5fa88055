"""Parsing of the flags of a study's run and of the commands' arguments, mostly in this process."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl import app
from absl.testing import flagsaver

from tll_jax import __version__, cli, devices, main
from tll_jax.cli import arguments
from tll_jax.config_files import load_study, set_fields
from tll_jax.errors import InvalidValue, UserError
from tll_jax.settings import validate
from tll_jax.study.checks import check_image_sizes

HERE = Path(__file__).parent
CONFIG = f"--config={HERE / 'configs' / 'one_stage.py'}"
WORKDIR = "--workdir=runs/none"


@pytest.fixture
def parse():
    """`parse(*words)`: the study of a command line; restores the flags afterwards."""
    app.define_help_flags()
    with flagsaver.flagsaver():
        yield lambda *words: main.parse(["main", *words])


def test_the_flags_give_the_study_with_its_fields_set_in_every_way_to_write_them(parse):
    settings = parse(
        *("--config.evaluate.batch_size=32", CONFIG, WORKDIR, "--config.seeds", "4,5", "-config.num_threads=0"),
        *("--config.models.barlow.pretrain.loop.remat", "--noconfig.split.train_on_faces"),
        *("--config.split.num_test", "None"),
    )
    assert (settings.evaluate.batch_size, settings.seeds, settings.num_threads) == (32, (4, 5), 0)
    assert settings.models["barlow"].pretrain.loop.remat is True
    assert settings.split.train_on_faces is False
    assert settings.split.num_test is None


def test_a_negative_number_after_a_field_is_its_value():
    words = ["main", "--config.a", "-1", "--config.b", "--stages=x", "y"]
    assert main.split_fields(words) == (["main", "--stages=x", "y"], [("a", "-1"), ("b", None)])


def test_a_tilde_that_the_shell_has_left_is_expanded(parse, monkeypatch):
    monkeypatch.setenv("HOME", "/homes/me")
    monkeypatch.setenv("RUNS", "/elsewhere")
    parse(CONFIG, "--workdir=~/runs/$RUNS")
    assert main.WORKDIR.value == "/homes/me/runs/$RUNS"


def test_tll_alone_lists_its_commands(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 2
    assert "write a commented config for your own pairs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (
            [CONFIG, WORKDIR, "--stages=finetune", "evaluate", "config.seeds=1,2"],
            "'evaluate', 'config.seeds=1,2': no flag before that takes it. .*--config.seeds=1,2 is, and a list",
        ),
        ([CONFIG, "more", WORKDIR], "'more': no flag"),
        ([CONFIG, WORKDIR, "--config.seeds=1,", "2"], "'2': no flag"),
        ([CONFIG, WORKDIR, "--", "--stages=report"], "'--stages=report': no flag"),
        ([CONFIG, WORKDIR, "--stage=report"], r"Unknown command line flag 'stage'.*stages .*--help"),
        ([CONFIG, WORKDIR, "--stages="], "--stages names no stage"),
        ([CONFIG, WORKDIR, "--stages=report,"], "--stages names no stage, or an empty one"),
        ([CONFIG, WORKDIR, "--num_processes=0"], "--num_processes=0"),
        ([CONFIG, WORKDIR, "--process_id=-1"], "--process_id=-1"),
        ([CONFIG, WORKDIR, "--wait_seconds=soon"], "--wait_seconds=soon"),
        ([CONFIG], "--workdir is missing; write one, such as --workdir=runs/demo"),
        ([CONFIG, "--workdir= "], "--workdir is empty"),
        ([WORKDIR], "--config is missing; write one, such as --config=configs/emoji.py"),
        (["--config=", WORKDIR], "--config is empty"),
        (["--config=nowhere.py", WORKDIR], "config is 'nowhere.py', where there is no file"),
        ([CONFIG, WORKDIR, "--config.models.barlo.pretrain.seed=1"], "config.models has no 'barlo', perhaps barlow"),
        ([CONFIG, WORKDIR, "--noconfig.seeds=1"], "--noconfig.seeds=1 has a value"),
        ([CONFIG, WORKDIR, "--noconfig.seeds"], r"config\.seeds is .*it must be a tuple of whole numbers"),
    ],
)
def test_an_unknown_word_is_refused_in_one_line(parse, words, named):
    with pytest.raises(UserError, match=named) as refused:
        parse(*words)
    assert "\n" not in str(refused.value)


def test_help_exits_with_status_0(parse, capsys):
    with pytest.raises(SystemExit) as ended:
        parse("--help")
    assert not ended.value.code
    for words in (["--help"], ["plan", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert not ended.value.code
    assert capsys.readouterr().out.splitlines()[-1] == f"tll_jax {__version__}"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("explain RUN --query p --neighbors 0", "--neighbors: it is '0'; it must be a whole number, 1 or more"),
        ("explain RUN --query p --neighbors=-1", "--neighbors: it is '-1'"),
        ("explain RUN --query p --neighbors 2.5", "--neighbors: it is '2.5'"),
        ("embed RUN IMAGES --out o --shard-size 0", "--shard-size: it is '0'"),
        ("embed RUN IMAGES --out o --num-processes 0", "--num-processes: it is '0'"),
        ("embed RUN IMAGES --out o --process=-1", "--process: it is '-1'; it must be a whole number, 0 or more"),
        ("plan --config c --target cpu:1 --num-classes 0", "--num-classes: it is '0'"),
        ("plan --config c --target cpu:1 --batch-size 0", "--batch-size: it is '0'"),
        ("evaluate  --pairs emoji", "RUN: a path is empty"),
        ("evaluate RUN --pairs ", "--pairs: a path is empty"),
        ("compare RUN --out ", "--out: a path is empty"),
        ("data ", "PATH: a path is empty"),
        ("prepare imagenette --source ", "--source: a path is empty"),
        ("review PAIRS --face-overrides ", "--face-overrides: a path is empty"),
        ("embed RUN  --out o", "IMAGES: a path is empty"),
        ("export ~nobody-of-this-name/run --out o", "there is no home of that name"),
    ],
)
def test_an_argument_at_the_edge_is_refused_by_name(capsys, words, named):
    with pytest.raises(SystemExit) as ended:
        cli.main(words.split(" "))
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: argument" in line]
    assert named in line


def test_paths_of_commands_expand_the_home_and_folders_are_not_taken_for_sets(monkeypatch):
    monkeypatch.setenv("HOME", "/homes/me")
    assert arguments.a_path("~/run") == Path("/homes/me/run")
    assert [arguments.a_place(text) for text in ("emoji", "./emoji", "~/$X")] == ["emoji", "./emoji", "/homes/me/$X"]
    # An id may begin with `~`; only existing files are expanded.
    assert arguments.a_query("~/nothing-here.png") == "~/nothing-here.png"


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'tpu': none"), AssertionError()])
def test_an_unavailable_platform_is_named(monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    devices.check_platform()
    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(
        InvalidValue, match=r"JAX_PLATFORMS is 'tpu', which JAX cannot start here .*cpu is always there"
    ):
        devices.check_platform()
    # No platform was requested.
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(type(error)):
        devices.check_platform()


def test_sizes_with_different_parameters_of_a_spatial_head_are_refused():
    settings = load_study(str(HERE.parent / "configs" / "emoji.py"))
    check_image_sizes(settings)
    # Maps of stage 2 to 4 are of 6, 3 and 2 pixels at 48, and the same at 46.
    set_fields(settings, [("models.random.finetune.geometry.size", "46")])
    check_image_sizes(settings)
    set_fields(settings, [("models.random.finetune.geometry.size", "64")])
    named = (
        r"config\.models\.random\.finetune\.geometry\.size is 64 and config\.evaluate\.geometry\.size is 48: Spatial"
    )
    with pytest.raises(UserError, match=named):
        check_image_sizes(settings)
    pooled = load_study(CONFIG.removeprefix("--config="))
    set_fields(pooled, [("models.barlow.finetune.geometry.size", "24")])
    check_image_sizes(pooled)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("evaluate", r"config\.evaluate\.geometry\.size is 100, which config\.models\.pooled\.backbone does not take"),
        ("models.lora-triplet.finetune", r"config\.models\.lora-triplet\.finetune\.geometry\.size is 100, which"),
        ("systems.grid-rca-csls.features.features.features.features", r"config\.systems\.grid-rca-csls\.features"),
    ],
)
def test_sizes_that_the_patch_does_not_divide_are_refused_by_field_before_any_training(path, named):
    study = load_study(str(HERE.parent / "configs" / "tll_foundation.py"))
    set_fields(study, [(f"{path}.geometry.size", "100")])

    def check():
        validate(study)
        check_image_sizes(study)

    with pytest.raises(UserError, match=rf"{named}.*multiples of 14: 98 or 112"):
        check()


def test_a_refused_study_prints_one_line_and_help_no_error(environment, tmp_path):
    def run(*words, **variables):
        command = [sys.executable, "-m", "tll_jax.main", *words]
        return subprocess.run(
            command, env=environment | variables, capture_output=True, text=True, check=False, cwd=HERE.parent
        )

    refused = run(CONFIG, f"--workdir={tmp_path / 'study'}", "--config.models.barló.head=3", PYTHONIOENCODING="ascii")
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert line == "tll_jax: config.models has no 'barl\\xf3', perhaps barlow; it has barlow"
    shown = run("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "--workdir" in shown.stdout


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--sages=report", r"'--sages=report': no option of tll run"),
        ("--stage=report", r"'--stage=report': no option of tll run"),
        ("more", r"'more': no option"),
        ("--config.seds=1", r"seds.*perhaps seeds"),
    ],
)
def test_tll_run_refuses_unknown_words(tmp_path, words, named):
    with pytest.raises(SystemExit, match=named):
        cli.main(["run", str(HERE / "configs" / "smallest.py"), str(tmp_path / "study"), words])
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("given", [{"coordinator": "here:1"}, {"num_processes": 2}, {"process_id": 0}])
def test_any_flag_of_several_processes_starts_a_cluster(given):
    alone = {"coordinator": None, "num_processes": None, "process_id": None, "timeout_seconds": 3}
    assert main.Cluster.of(is_distributed=False, **alone) is None
    assert main.Cluster.of(is_distributed=True, **alone) == main.Cluster(**alone)
    assert main.Cluster.of(is_distributed=False, **alone | given) == main.Cluster(**alone | given)


def test_tll_run_refuses_stages_that_name_none(tmp_path):
    with pytest.raises(SystemExit, match="--stages names no stage, or an empty one"):
        cli.main(["run", str(HERE / "configs" / "smallest.py"), str(tmp_path / "study"), "--stages="])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluate default --candidates a.csv", "--candidates FILE and --submission OUT go together"),
        ("evaluate default --candidates a.csv --submission b.csv --exclude-faces", "go with --pairs"),
        ("explain", "give --left FILE and --right FILE, or --query"),
        ("explain --left a.png", "give --left FILE and --right FILE, or --query"),
        ("explain --query fox --left a.png --right b.png", "give --left FILE and --right FILE, or --query"),
        ("explain --query fox --foil a.png", "--foil goes with --left and --right"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_devices_start(words, message, monkeypatch):
    for command in (cli.evaluate, cli.explain):
        monkeypatch.setattr(command, "start_devices", lambda: pytest.fail("devices were started"))
    with pytest.raises(SystemExit, match=message):
        cli.main(words.split())
