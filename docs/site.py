"""MkDocs hook: adds the repository's own pages and figures, and a page of API reference for each room."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")
OTHERS = ("figures/results/**/*.png", "figures/results/**/*.md", "benchmarks/results/*.png")

ROOMS = (
    "losses",
    "objectives",
    "ranking",
    "statistics",
    "saliency",
    "systems",
    "models",
    "augment",
    "data",
    "study",
    "gallery",
    "training",
)


def _reference(room: str) -> str:
    """Markdown that has mkdocstrings document a room: its own docstring, then each of its public modules."""
    package = ROOT / "tll_jax" / room
    if not package.is_dir():
        return f"# {room}\n\n::: tll_jax.{room}\n"
    modules = sorted(path.stem for path in package.glob("[!_]*.py"))
    parts = [f"# {room}", f"::: tll_jax.{room}\n    options: {{members: false, show_root_heading: false}}"]
    parts += [f"::: tll_jax.{room}.{module}" for module in modules]
    return "\n\n".join(parts) + "\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds pages and figures from outside `docs/`; a table of results is served as the text that it is."""
    for room in ROOMS:
        files.append(File.generated(config, f"api/{room}.md", content=_reference(room)))
    for name in PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for path in sorted(path for pattern in OTHERS for path in ROOT.glob(pattern)):
        name = path.relative_to(ROOT).as_posix()
        # A page of its own would stand in the navigation: plain text does not.
        source = name if path.suffix != ".md" else f"{name}.txt"
        files.append(File.generated(config, source, abs_src_path=str(path)))
    return files


def _kind(line: str) -> str:
    """Kind of an unindented line's block: "code", "list", "table" or "text"."""
    found = re.match(r"(```)|([-*] |\d+\. )|(\|)", line)
    return ("code", "list", "table")[found.lastindex - 1] if found else "text"


def separated(markdown: str) -> str:
    """A blank line before and after code, and before a list and a table: GitHub needs none, Python-Markdown does."""
    lines: list[str] = []
    block, in_code = "", False
    for line in markdown.splitlines():
        kind = _kind(line)
        if not in_code:
            begins = kind in ("code", "list", "table") and kind != block
            if line.strip() and block and (begins or block == "code"):
                lines.append("")
                block = ""
            # Text below a list's item goes on with it.
            block = "" if not line.strip() else kind if begins or not block else block
        lines.append(line)
        in_code ^= line.lstrip().startswith("```")
    return "\n".join(lines) + "\n"


def unbroken(markdown: str) -> str:
    """No line break between a value in a table and its interval, nor inside the interval."""
    space = r"(?<=,) (?=[-−+]?[.\d]+\])|(?<=\d) (?=\[[-−+]?[.\d]+, )"
    return re.sub(r"^\|.*", lambda row: re.sub(space, "&nbsp;", row[0]), markdown, flags=re.MULTILINE)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links from `docs/` to the repository's root have one step less to go up; those from the root into `docs/` too."""
    markdown = unbroken(separated(markdown))
    if page.file.src_uri in PAGES:
        markdown = re.sub(r"\]\(((?:\.\./)*)docs/", r"](\1", markdown)
    else:
        markdown = re.sub(r"\]\(\.\./((?:\.\./)*(?:figures|benchmarks|CONTRIBUTING|CHANGELOG))", r"](\1", markdown)
    return re.sub(r"(\]\([^)\s]*figures/results/[^)\s]*\.md)\)", r"\1.txt)", markdown)
