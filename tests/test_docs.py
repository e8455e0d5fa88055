"""Links, commands, snippets and names in README and the docs agree with the code."""

import ast
import doctest
import importlib
import inspect
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest

import tll_jax
from tll_jax.cli import main, make_parser
from tll_jax.config_files import load_study, set_fields
from tll_jax.main import split_fields
from tll_jax.settings import validate
from tll_jax.study.checks import check_image_sizes, check_lora
from tll_jax.study.load import Explanation, LoadedModel

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *sorted(ROOT.glob("docs/*.md")),
]
YOUR_OWN = ("mine.py", "CONFIG")
"""Configs in commands that stand for a reader's own."""


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def blocks(path, language=""):
    """The fenced blocks of a page that are marked as `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def anchors(path):
    headings = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(path):
    """The command lines of a page's blocks, as words, without comments and with continued lines whole."""
    for block in [*blocks(path), *blocks(path, "bash"), *blocks(path, "sh")]:
        for line in block.replace("\\\n", " ").splitlines():
            yield shlex.split(line, comments=True)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_of_a_page_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        if name.startswith("api/"):
            # The site has a generated page for each subpackage.
            assert (ROOT / "tll_jax" / Path(name).stem).exists(), target
            continue
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_of_a_page_exists(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for program, *words in filter(None, commands(page)):
        if program == "tll":
            words = words[: words.index("&")] if "&" in words else words
            parsed, rest = make_parser().parse_known_args(words)
            assert not [word for word in rest if not (parsed.command == "run" and word.startswith("--config."))], words
        elif program == "make":
            assert {word for word in words if "=" not in word} <= targets, words
        elif program.startswith("python") and words[0].endswith(".py"):
            assert (ROOT / words[0]).is_file(), words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_and_extra_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:benchmarks|configs|docs|examples|figures|launch|tests|tll_jax)/[\w./*-]+)`", text)
    for name in [*named, *re.findall(r"(?<![\w/])((?:configs|figures|benchmarks)/\w+\.(?:py|json))", text)]:
        assert list(ROOT.glob(name)), name
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for names in re.findall(r"(?:`|'\.|'tll_jax)\[([a-z0-9,]+)\][`']", text):
        assert set(names.split(",")) <= extras.keys(), names


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_config_of_a_page_builds_a_study_that_has_the_fields_it_sets(page):
    for program, *words in filter(None, commands(page)):
        if program == "tll" and words[0] == "run":
            config, fields = words[1], words[2:]
        elif program.startswith("python") and words[:2] == ["-m", "tll_jax.main"]:
            config, fields = words[2].removeprefix("--config="), words[3:]
        else:
            continue
        if config in YOUR_OWN:
            continue
        _, fields = split_fields([word for word in fields if word.startswith("--config.")])
        set_fields(load_study(str(ROOT / config) if "/" in config else config), fields)


def test_the_commands_of_the_readme_that_take_seconds_run_as_they_stand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "PAIRS").mkdir()
    rng = np.random.default_rng(0)
    names = [f"{side}-{number}.png" for number in range(12) for side in ("left", "right")]
    for name in names:
        cv2.imwrite(f"PAIRS/{name}", rng.integers(0, 256, (48, 48, 3), dtype=np.uint8))
    lines = ["left,right", *(",".join(pair) for pair in zip(names[::2], names[1::2], strict=True))]
    (tmp_path / "PAIRS" / "pairs.csv").write_text("\n".join(lines))
    quick = [
        words for program, *words in filter(None, commands(ROOT / "README.md")) if program == "tll" and "PAIRS" in words
    ]
    assert [words[0] for words in quick] == ["data", "new"]
    for words in quick:
        main(words)
    assert re.search(r"^pairs +12$", capsys.readouterr().out, re.MULTILINE)
    assert (tmp_path / "look" / "contact-sheet.png").stat().st_size > 100
    # As the next line of README reads it.
    assert list(load_study("mine.py").models) == ["barlow"]


def test_the_config_for_your_own_weights_is_a_study_of_them(tmp_path, monkeypatch):
    (config,) = (block for block in blocks(ROOT / "docs" / "backbones.md", "python") if "def get_config" in block)
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(config)
    for weights, targets in (("dinov2", ("attention", "mlp")), ("convnext", ("expand", "project"))):
        Path("dinov2-small").symlink_to(ROOT / "tests" / "data" / "backbones" / weights)
        study = load_study("mine.py")
        validate(study)
        check_image_sizes(study)
        study.models["lora"].finetune.lora.targets = targets
        check_lora(study)
        Path("dinov2-small").unlink()


def test_the_readme_calls_what_a_loaded_model_has():
    (snippet,) = (block for block in blocks(ROOT / "README.md", "python") if ">>>" not in block)
    calls = [node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Call)]
    methods = {call.func.attr: call for call in calls if isinstance(call.func, ast.Attribute)}
    assert {"load", "embed", "rank", "explain", "write"} == methods.keys()
    for name, call in methods.items():
        function = {"load": tll_jax.load, "write": Explanation.write}.get(name) or getattr(LoadedModel, name)
        itself = [] if name == "load" else [None]
        inspect.signature(function).bind(*itself, *call.args, **{word.arg: word.value for word in call.keywords})


def test_the_snippets_of_the_readme_give_what_it_prints():
    outcome = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert outcome.attempted > 5
    assert outcome.failed == 0


EXAMPLES = [path for path in sorted(ROOT.glob("tll_jax/**/*.py")) if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
def test_the_examples_in_docstrings_give_what_they_print(path):
    name = name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.attempted > 0
    assert outcome.failed == 0


@pytest.fixture
def site(monkeypatch):
    """The functions of the site's hook, without MkDocs."""
    for name in ("config.defaults", "structure.files", "structure.pages"):
        monkeypatch.setitem(sys.modules, f"mkdocs.{name}", mock.MagicMock())
    return runpy.run_path(str(ROOT / "docs" / "site.py"))


def test_no_line_breaks_between_a_value_in_a_table_and_its_interval(site):
    text = "| hog | .14 [.11, .18] | [−.04, .01] | [Munteanu 2022] |\n.14 [.11, .18]\n"
    shown = "| hog | .14&nbsp;[.11,&nbsp;.18] | [−.04,&nbsp;.01] | [Munteanu 2022] |\n.14 [.11, .18]\n"
    assert site["unbroken"](text) == shown


def test_the_site_shows_lists_tables_and_code_that_no_blank_line_separates(site):
    separated = site["separated"]
    text = "Two:\n- one\nand more\n- two\n```\n- code\n\n| code |\n```\n| table |\n|---|\n| row |\n# End\n"
    shown = "Two:\n\n- one\nand more\n- two\n\n```\n- code\n\n| code |\n```\n\n| table |\n|---|\n| row |\n# End\n"
    assert separated(text) == shown
    assert separated(shown) == shown
    assert separated("# Title\ntext\n\n1. one\n2. two\n") == "# Title\ntext\n\n1. one\n2. two\n"


def test_every_file_and_function_of_an_images_journey_exists():
    text = (ROOT / "docs" / "journey.md").read_text(encoding="utf-8")
    stops = re.findall(r"`(tll_jax/[\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", text)
    assert len(stops) > 15
    for path, names in stops:
        defined = {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if hasattr(node, "name")}
        assert set(re.findall(r"\w+", names)) <= defined, path


def test_every_test_that_answers_a_users_issue_exists():
    """The table names tests as `folder/test_file.py`: what it shows; also this, by the beginning of their names."""
    table = (ROOT / "docs" / "find_issues.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+/test_\w+\.py)`: ((?:(?!`\w+/test_)[^()|])*)", table)
    assert len(named) > 30
    for file, told in named:
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        for words in told.split(";"):
            if name := "_".join(re.findall(r"[a-z0-9]+", words.lower())):
                assert f"def test_{name}" in source, f"{file}: {words.strip()}"
