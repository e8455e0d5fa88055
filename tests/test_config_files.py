"""Loading of config files, and setting of fields from text."""

import dataclasses
import importlib
import sys
from pathlib import Path

import pytest

from tests.configs import one_stage, tiny
from tll_jax import serialize
from tll_jax.config_files import MOVED, load_study, set_fields
from tll_jax.errors import MissingFile, UnknownName, UserError
from tll_jax.settings import _children, separate, validate
from tll_jax.study.settings import Explain, Loop, Study
from tll_jax.systems.baselines import Hog

HERE = Path(__file__).parent
ONE_STAGE = str(HERE / "configs" / "one_stage.py")
BARLOW = "models.barlow."


@pytest.fixture
def study():
    return load_study(ONE_STAGE)


def objects(settings, path="config"):
    """The id and path of every dataclass and dict of a tree."""
    if isinstance(settings, dict) or hasattr(settings, "__dataclass_fields__"):
        yield id(settings), path
    yield from (found for name, child in _children(settings) for found in objects(child, path=f"{path}.{name}"))


def test_a_loaded_study_has_no_settings_object_in_two_places(study):
    # The file builds one Loop and one Photometric, and uses them in two and three places.
    found = dict(objects(study))
    assert len(found) == len(list(objects(study)))
    set_fields(study, [("models.barlow.pretrain.loop.num_steps", "7"), ("models.barlow.finetune.augment.hue", "0.1")])
    assert (study.models["barlow"].pretrain.loop.num_steps, study.models["barlow"].finetune.loop.num_steps) == (
        7,
        one_stage.NUM_STEPS,
    )
    assert (study.models["barlow"].pretrain.augment_a.hue, study.models["barlow"].finetune.augment.hue) == (0.0, 0.1)


def test_separate_settings_are_equal_and_leave_the_shared_ones_alone():
    loop = Loop(num_steps=3, batch_size=2)
    one, (other, names) = separate((loop, [loop, {"a": loop}]))
    assert one == other == names["a"] == loop
    one.num_steps, names["a"].num_steps = 4, 5
    assert (loop.num_steps, other.num_steps) == (3, 3)


@pytest.mark.parametrize(
    ("fields", "path", "value"),
    [
        ([("seeds", "3,4")], "seeds", (3, 4)),
        ([("seeds", "(5,)")], "seeds", (5,)),
        ([("split.num_test", "None")], "split.num_test", None),
        ([("split.num_test", "None"), ("split.test_folds", "5")], "split.test_folds", 5),
        ([("split.path", "a b/c.json")], "split.path", "a b/c.json"),
        ([("split.faces", "not-single")], "split.faces", "not-single"),
        ([("models.barlow.pretrain", "None")], "models.barlow.pretrain", None),
        ([("models['barlow'].pretrain.loop.remat", None)], "models.barlow.pretrain.loop.remat", True),
        ([("models.barlow.pretrain.loop.remat", "false")], "models.barlow.pretrain.loop.remat", False),
        ([("models.barlow.pretrain.augment_a.hue", "0")], "models.barlow.pretrain.augment_a.hue", 0.0),
        ([("planned", "(('barlow', 'pixels'),)")], "planned", (("barlow", "pixels"),)),
    ],
)
def test_fields_are_set_from_text(study, fields, path, value):
    set_fields(study, fields)
    found = study
    for name in path.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert found == value
    validate(study)


def test_a_field_below_a_name_with_a_dash_or_in_a_tuple_can_be_set(study):
    study.models["a-b"] = study.models.pop("barlow")
    set_fields(study, [("models.a-b.finetune.loop.num_steps", "4"), ("systems.pixels.size", "8")])
    assert study.models["a-b"].finetune.loop.num_steps == 4
    study.systems["views"] = (Explain(), Explain())
    set_fields(study, [("systems.views[1].num_best", "2")])
    assert [one.num_best for one in study.systems["views"]] == [6, 2]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ([("models.barlo.pretrain.seed", "1")], r"config\.models has no 'barlo', perhaps barlow; it has barlow$"),
        ([("evaluate.batchsize", "1")], "config.evaluate has no 'batchsize', perhaps batch_size; it has geometry"),
        ([("models.barlow.finetune.augments", "1")], "has no 'augments'"),
        ([("systems.hog.size", "1")], "config.systems has no 'hog'; it has pixels"),
        ([("probe.batch_size", "1")], "config.probe is None, which has no 'batch_size'"),
        ([("seeds.0.x", "1")], "config.seeds.0 is 0, which has no 'x'"),
        ([("", "1")], "config has no ''"),
        ([("evaluate.batch_size", "1.5")], "config.evaluate.batch_size is '1.5'; it must be a whole number"),
        ([("evaluate.batch_size", "None")], "config.evaluate.batch_size is 'None'; it must be a whole number"),
        ([("evaluate.batch_size", None)], "config.evaluate.batch_size has no value; write --config"),
        ([("seeds", "('a',)")], r"config\.seeds is \('a',\); it must be a tuple of whole numbers, such as \(1, 2\)"),
        ([("seeds.0", "1")], "config.seeds.0 is 0, which a command line cannot give"),
        (
            [("models.barlow.pretrain.augment_a.blur_sigma", "0.5")],
            r"blur_sigma is \(0\.5,\); it must be two finite numbers",
        ),
        ([("split.num_test", "many")], "config.split.num_test is 'many'; it must be a whole number or None"),
        ([("split.faces", "None")], "must be one of none, not-single, both, include"),
        ([("evaluate.geometry", "64")], "config.evaluate.geometry is a Resize, which .* set its fields: size"),
        ([("evaluate", "None")], "config.evaluate is an Evaluate"),
        ([("probe", "3")], "config.probe is None, which a command line cannot give; write it in the config file"),
        ([("seeds", "1"), ("seeds", "2")], "--config.seeds would overwrite --config.seeds"),
        ([("models.barlow.pretrain.seed", "1"), ("models.barlow.pretrain", "None")], "would overwrite"),
    ],
)
def test_an_error_names_the_unknown_field_and_the_known_ones(study, fields, named):
    before = serialize.fingerprint(study)
    with pytest.raises(UserError, match=named):
        set_fields(study, fields)
    assert serialize.fingerprint(study) == before


def test_setting_a_field_of_nothing_that_was_just_set_to_none_is_refused(study):
    with pytest.raises(UnknownName, match=r"config\.models\.barlow\.pretrain is None"):
        set_fields(study, [("models.barlow.pretrain", "None"), ("models.barlow.pretrain.seed", "1")])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("def get_config(): return {'models': {}}", "returns {'models': {}}; it must return a tll_jax.Study"),
        ("def get_config(): pass", "returns None; .* is its return missing"),
        ("def get_configs(): pass", r"which has no function get_config\(\)"),
        ("get_config = 3", r"which has no function get_config\(\)"),
        ("def get_config(:", r"mine\.py, line 1 \(def get_config\(:\): SyntaxError: invalid syntax"),
        ("import nothing_of_this_name", r"line 1 \(import nothing_of_this_name\): ModuleNotFoundError"),
        (
            "import json\n\ndef read():\n    return json.loads('{')\n\ndef get_config():\n    return read()",
            r"mine\.py, line 4 \(return json.loads\('{'\)\): JSONDecodeError: Expecting property name",
        ),
        (
            "from tll_jax.study.settings import Loop\ndef get_config():\n    return Loop(steps=3)",
            r"line 3 \(return Loop\(steps=3\)\): TypeError: .*unexpected keyword argument 'steps'",
        ),
        ("def get_config(name):\n    return name", r"takes an argument; write .*mine\.py:ARGUMENT"),
        ("raise OSError('two\\nlines')", r"OSError: two lines$"),
    ],
)
def test_a_file_that_is_no_config_is_refused_in_one_line_with_the_users_own(tmp_path, text, named):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=named) as refused:
        load_study(str(tmp_path / "mine.py"))
    assert "\n" not in str(refused.value)


def test_an_error_in_a_file_that_the_config_imports_names_that_file(tmp_path, monkeypatch):
    (tmp_path / "my_parts.py").write_text("def make():\n    return {}['model']\n")
    (tmp_path / "mine.py").write_text("import my_parts\n\ndef get_config():\n    return my_parts.make()\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"my_parts\.py, line 2 \(return {}\['model'\]\): KeyError: 'model'"):
        load_study(str(tmp_path / "mine.py"))


def test_a_configs_own_user_error_is_shown_unchanged():
    with pytest.raises(UnknownName, match=r"^there is no model simclrr; there are barlow, classification"):
        load_study(f"{HERE.parent / 'configs' / 'tll_pretraining.py'}:simclrr")
    with pytest.raises(UserError, match="takes no argument; leave out :wide"):
        load_study(f"{ONE_STAGE}:wide")


def test_a_missing_config_a_folder_and_an_empty_name_have_different_errors(tmp_path, monkeypatch):
    with pytest.raises(MissingFile, match="where there is no file"):
        load_study(str(tmp_path / "mine.py:argument"))
    with pytest.raises(MissingFile, match="a folder; name a file in it"):
        load_study(str(tmp_path))
    with pytest.raises(UserError, match="a path is empty"):
        load_study("")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a:b.py").write_text(Path(ONE_STAGE).read_text())
    assert load_study("~/a:b.py").name == "one_stage"


def test_the_old_name_of_a_field_still_works_and_names_the_new_one(study, caplog):
    said = "config.num_processes is now called num_workers; the old name works in this release"
    set_fields(study, [("num_processes", "3")])
    assert (study.num_workers, said in caplog.text) == (3, True)
    saved = serialize.to_json(tiny.get_config())
    assert "num_processes" not in saved
    del saved["num_workers"]
    assert serialize.from_json(saved | {"num_processes": 5}).num_workers == 5
    caplog.clear()
    said = "Study.num_processes is now called num_workers; the old name works in this release"
    built = Study(**dict(_children(study)) | {"num_workers": None}, num_processes=2)
    assert (built.num_workers, said in caplog.text) == (2, True)
    assert serialize.fingerprint(built) == serialize.fingerprint(dataclasses.replace(study, num_workers=2))
    with pytest.raises(ValueError, match="config: num_workers is -1; it must be 0 or more"):
        validate(dataclasses.replace(study, num_workers=-1))


def test_a_config_with_the_former_module_of_the_settings_works_with_one_warning(tmp_path, caplog):
    former = Path(tiny.__file__).read_text().replace("tll_jax.study.settings", "tll_jax.config")
    assert "from tll_jax.config import Evaluate" in former
    (tmp_path / "former.py").write_text(former)
    sys.modules.pop("tll_jax.config", None)
    for _ in range(2):
        assert load_study(str(tmp_path / "former.py")) == tiny.get_config()
    assert [record.getMessage() for record in caplog.records] == [
        "tll_jax.config is now called tll_jax.study.settings; the old name works in this release and not in the next"
    ]


def test_a_study_of_the_package_is_found_by_name_unless_a_file_has_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_study("emoji") == load_study(str(HERE.parent / "configs" / "emoji.py"))
    with pytest.raises(MissingFile, match=r"config is 'emojy', .* the package itself has emoji, emoji_full"):
        load_study("emojy")
    (tmp_path / "emoji").write_text((HERE / "configs" / "smallest.py").read_text())
    assert load_study("emoji").name == "smallest"


def test_a_config_that_imports_moved_modules_works_with_a_warning(tmp_path, caplog):
    config = tmp_path / "old.py"
    old = "from tll_jax.evaluation.baselines import Hog\nfrom tll_jax.evaluation.ensemble import Ensemble\n"
    smallest = (HERE / "configs" / "smallest.py").read_text()
    systems = 'systems={"histogram": ColorHistogram(), "hog": Hog()}'
    config.write_text(old + smallest.replace('systems={"histogram": ColorHistogram()}', systems))
    try:
        study = load_study(str(config))
    finally:
        for name in MOVED:
            sys.modules.pop(name, None)
    assert study.systems["hog"] == Hog()
    assert "tll_jax.evaluation.baselines is now called tll_jax.systems.baselines" in caplog.text
    assert "ensemble is now called tll_jax.systems.ensemble" in caplog.text
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("tll_jax.evaluation.baselines")
    for name in MOVED.values():
        importlib.import_module(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "from tll_jax.models.resnet import ResNet\n\ndef get_config():\n    return ResNet(dept=18)\n",
            r"line 4 \(return ResNet\(dept=18\)\): TypeError: .* 'dept'; perhaps depth; it has depth, width, ",
        ),
        ("from tll_jax.models.resnet import ResNett\n", r"line 1 .*ResNett.*; perhaps ResNet$"),
        ("def get_config():\n    return int(nonsense=1)\n", r"line 2 .*TypeError: [^;]*$"),
    ],
)
def test_the_error_for_a_misspelled_name_in_a_config_suggests_a_similar_one(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_study(str(tmp_path / "mine.py"))


def test_a_config_finds_modules_beside_it_and_only_while_it_is_read(tmp_path):
    (tmp_path / "shared_by_mine.py").write_text("from tll_jax.studies.emoji import get_config\n")
    (tmp_path / "mine.py").write_text("from shared_by_mine import get_config\n")
    before = list(sys.path)
    assert load_study(str(tmp_path / "mine.py")).name == "emoji"
    assert sys.path == before
