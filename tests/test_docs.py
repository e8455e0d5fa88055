"""Links, commands, snippets and names in README and the docs agree with the code."""

import ast
import doctest
import importlib
import re
import shlex
from pathlib import Path

import pytest

from tll_jax.cli import make_parser

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *sorted(ROOT.glob("docs/*.md")),
]


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


def test_every_file_and_function_of_an_images_journey_exists():
    text = (ROOT / "docs" / "journey.md").read_text(encoding="utf-8")
    stops = re.findall(r"`(tll_jax/[\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", text)
    assert len(stops) > 15
    for path, names in stops:
        defined = {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if hasattr(node, "name")}
        assert set(re.findall(r"\w+", names)) <= defined, path


def test_every_test_that_answers_a_users_issue_exists():
    """The table names tests as `folder/test_file.py`: what it shows; also this, by the beginning of their names."""
    table = (ROOT / "docs" / "find.md").read_text(encoding="utf-8").partition("## What others ran into")[2]
    named = re.findall(r"`(\w+/test_\w+\.py)`: ((?:(?!`\w+/test_)[^()|])*)", table)
    assert len(named) > 30
    for file, told in named:
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        for words in told.split(";"):
            if name := "_".join(re.findall(r"[a-z0-9]+", words.lower())):
                assert f"def test_{name}" in source, f"{file}: {words.strip()}"
