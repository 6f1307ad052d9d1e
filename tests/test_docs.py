"""What the documents name is there: paths, modules, make targets, commands, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_group

from infra.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
        *(ROOT / folder / "README.md" for folder in ("benchmarks", "stacks", "tests")),
        *ROOT.glob("docs/**/*.md"),
    ]
)
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."}
MADE_LATER = (".venv/", ".splitstack/", "stacks/Pulumi.NAME.yaml")
TARGETS = set(re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
COMMANDS = set(get_group(app).commands)

_BLOCK = re.compile(r"^```.*?\n(.*?)^```", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PATH = re.compile(r"[\w.-]+/[\w./-]*")
_SUFFIXES = ("/", ".py", ".md", ".json", ".yaml", ".toml")


def prose(page: Path) -> str:
    return _BLOCK.sub("", page.read_text("utf-8"))


def spans(page: Path) -> list[str]:
    return _SPAN.findall(prose(page))


def commands(page: Path) -> Iterator[list[str]]:
    """Words of every command in spans and blocks, without the variables that it begins with."""
    blocks = _BLOCK.findall(page.read_text("utf-8"))
    for line in re.split(r"&&|[|;\n]", "\n".join([*spans(page), *blocks])):
        words = line.split()
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if words:
            yield words


def anchors(page: Path) -> set[str]:
    """As code hosts make them of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_path(text: str) -> bool:
    """Whether `text` can only be a path of the repository: hosts and HTTP paths look alike."""
    if not _PATH.fullmatch(text) or text.startswith(MADE_LATER):
        return False
    return text.endswith(_SUFFIXES) or text.partition("/")[0] in FOLDERS


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
class TestPage:
    def test_paths(self, page: Path) -> None:
        named = [span.partition("::")[0] for span in spans(page)]
        missing = [
            path
            for path in named
            if is_path(path) and not ((ROOT / path).exists() or (page.parent / path).exists())
        ]
        assert not missing

    def test_commands(self, page: Path) -> None:
        wrong = []
        for words in commands(page):
            program, rest = words[0].rpartition("/")[2], words[1:]
            if program == "make":
                files = [word.removeprefix("T=").partition("::")[0] for word in rest if "=" in word]
                wrong += [path for path in files if is_path(path) and not (ROOT / path).exists()]
                wrong += [word for word in rest if "=" not in word and word not in TARGETS]
            elif program == "splitstack" and rest and rest[0][0] != "-":
                wrong += [] if rest[0] in COMMANDS else [rest[0]]
            elif program.startswith("python") and rest[:1] == ["-m"] and len(rest) > 1:
                ours = rest[1].partition(".")[0] in FOLDERS
                wrong += [rest[1]] if ours and not is_module(rest[1]) else []
        assert not wrong

    def test_links(self, page: Path) -> None:
        broken = []
        for link in _LINK.findall(prose(page)):
            if "://" in link:
                continue
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(link)
        assert not broken


def test_nothing_is_looked_for_in_vain() -> None:
    """The expressions above still find something in what they are made for."""
    assert any(is_path(span) for page in PAGES for span in spans(page))
    found = [words for page in PAGES for words in commands(page)]
    assert {"make", "splitstack", "python"} <= {words[0] for words in found}
    assert {"up", "test"} <= TARGETS
    assert {"up", "import-block"} <= COMMANDS
    assert "on-your-cluster" in anchors(ROOT / "README.md")
