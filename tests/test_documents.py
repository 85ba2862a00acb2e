"""Pages keep their promises: links, pictures, commands, make targets, paths and tests that they name exist."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
DEPLOY = REPOSITORY / "deploy"
TESTS = REPOSITORY / "tests"
DOCS = sorted((DEPLOY / "docs").glob("*.md"))
TOP = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = [*TOP, *DOCS, *sorted(DEPLOY.glob("*/README.md"))]
PICTURES = sorted((DEPLOY / "docs").glob("*.svg"))
MOST_README_LINES = 130
SIDES = ("server", "client")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_the_pages_are_there() -> None:
    names = {page.relative_to(REPOSITORY).as_posix() for page in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "deploy/docs/simulate.md", "deploy/site/README.md"} <= names


def test_the_readme_fits_on_three_screens() -> None:
    assert len(read(REPOSITORY / "README.md").splitlines()) <= MOST_README_LINES


# Markdown

_FENCED = re.compile(r"^( *)```\w*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^|\n)\n((?: {4}[^\n]*\n?)+)")
_INLINE = re.compile(r"`([^`]+)`")


def blocks_of_code(text: str) -> list[str]:
    """Fenced blocks, and blocks that are indented by four spaces."""
    fenced = [match[2] for match in _FENCED.finditer(text)]
    return fenced + [match[1] for match in _INDENTED.finditer(_FENCED.sub("", text))]


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return _INDENTED.sub("\n\n", _FENCED.sub("", text))


def inline_code(text: str) -> list[str]:
    """What stands in backticks, on one line each."""
    return [" ".join(code.split()) for code in _INLINE.findall(prose(text))]


def lines_of_code(text: str) -> list[str]:
    """Lines of all blocks; a line that ends with a backslash goes on in the next."""
    return [line for block in blocks_of_code(text) for line in block.replace("\\\n", " ").splitlines()]


def test_code_is_told_from_prose() -> None:
    text = "one `in\nline`\n\n```sh\nfirst \\\n  goes on\n```\n\ntwo\n\n    indented\n\nthree\n"
    assert inline_code(text) == ["in line"]
    assert [line.split() for line in lines_of_code(text)] == [["first", "goes", "on"], ["indented"]]
    assert prose(text).split() == ["one", "`in", "line`", "two", "three"]


# Links and pictures

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchors(text: str) -> set[str]:
    """The names by which GitHub links to the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", prose(text), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        count = sum(other == name or re.fullmatch(rf"{re.escape(name)}-\d+", other) is not None for other in found)
        found.add(f"{name}-{count}" if count else name)
    return found


def broken_links(page: Path) -> set[str]:
    """Relative links of a page, to pictures too, that lead to no file or to no heading."""
    broken = set()
    for target in _LINK.findall(_INLINE.sub("", prose(read(page)))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in anchors(read(file))):
            broken.add(target)
    return broken


@each_page
def test_links_and_pictures_of_a_page_are_there(page: Path) -> None:
    assert not broken_links(page)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Some `code`, and more\n\n## Twice\n\n## Twice\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](#here) [b](#there) [c](other.md#some-code-and-more) [d](other.md#twice-1) [e](other.md#no)\n"
        "![over\ntwo lines](lost.svg) [f](https://example.org/x) `[g](not-a-link)` [h](missing.md)\n",
        encoding="utf-8",
    )
    assert broken_links(page) == {"#there", "other.md#no", "lost.svg", "missing.md"}


def picture_problems(text: str) -> set[str]:
    """Why an SVG file does not fit both a light and a dark page, or is not a drawing."""
    drawing = ElementTree.fromstring(text)  # noqa: S314 -- our own file
    names = {element.tag.rpartition("}")[2] for element in drawing.iter()}
    problems = names & {"image", "script", "foreignObject"}
    problems |= {f"no {name}" for name in ("title", "desc") if name not in names}
    return problems | (set() if "prefers-color-scheme: dark" in text else {"no dark colours"})


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_pictures_are_drawings_for_light_and_dark_pages(picture: Path) -> None:
    assert not picture_problems(read(picture))


def test_a_bitmap_in_a_picture_is_found() -> None:
    assert len(PICTURES) >= 2
    bad = '<svg xmlns="http://www.w3.org/2000/svg"><title>x</title><image href="data:image/png;base64,AA"/></svg>'
    assert picture_problems(bad) == {"image", "no desc", "no dark colours"}


# Commands

_COMMAND = re.compile(r"(?:^|\s|/bin/)fedvox-(server|client) (.*)")
_OTHER_NAMES = re.compile(r"systemctl|-t fedvox-")
"""Units and images are called like the commands."""


def parser_of(side: str) -> argparse.ArgumentParser:
    """The whole parser of a command line: what ``main`` gives to ``run``."""
    entry = importlib.import_module(f"{side}.cli.entry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entry, "run", lambda parser, arguments: parser)
        parser = entry.main([])
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


PARSERS = {side: parser_of(side) for side in SIDES}


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Name of a sub-command -> its parser."""
    (action,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(action.choices)


def is_accepted(side: str, command: str) -> bool:
    """Whether a command line parses: sub-command, options, values, and all that is required."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            PARSERS[side].parse_args(shlex.split(command, comments=True))
        except SystemExit as error:
            return error.code == 0
    return True


def is_known(side: str, fragment: str) -> bool:
    """Whether sub-command and options of a fragment exist; it may leave out what is required."""
    parser, commands = PARSERS[side], subcommands(PARSERS[side])
    for word in fragment.split():
        if word.startswith("--"):
            if word.partition("=")[0] not in parser._option_string_actions:
                return False
        elif parser is PARSERS[side]:
            if word not in commands:
                return False
            parser = commands[word]
    return True


def wrong_commands(text: str) -> set[str]:
    """Lines of code and fragments in backticks that the command lines refuse."""
    wrong = set()
    for line in lines_of_code(text):
        match = _COMMAND.search(line)
        if match and not _OTHER_NAMES.search(line) and not is_accepted(match[1], match[2]):
            wrong.add(match[0].strip())
    for code in inline_code(text):
        match = _COMMAND.match(code)
        if match and not is_known(match[1], match[2]):
            wrong.add(code)
    return wrong


@each_page
def test_commands_of_a_page_are_accepted(page: Path) -> None:
    assert not wrong_commands(read(page))


def test_a_wrong_command_is_found() -> None:
    text = (
        "`fedvox-server start`, `fedvox-server strat`, `fedvox-client audit --proof`, `fedvox-client --debug check`\n"
        "\n```\nfedvox-client check --data scans/   # --no-such-option\nfedvox-client check\n"
        "sudo fedvox-client predict --model m --input i \\\n  --outptu o\ndocker build -t fedvox-client .\n```\n"
    )
    assert {wrong.split()[1] for wrong in wrong_commands(text)} == {"strat", "audit", "check", "predict"}
    assert len(wrong_commands(text)) == 4


def test_pages_show_every_command() -> None:
    text = "\n".join(read(page) for page in PAGES)
    for side in SIDES:
        missing = {name for name in subcommands(PARSERS[side]) if not re.search(rf"fedvox-{side} {name}\b", text)}
        # Inside of containers and units: started by those alone.
        assert missing <= {"courier", "runner"}


# Make targets

_TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)


def unknown_targets(text: str, makefile: str) -> set[str]:
    """Targets that a page tells to make and the Makefile does not have."""
    places = [*inline_code(text), *(line.strip() for line in lines_of_code(text))]
    named = {match[1] for place in places if (match := re.match(r"make ([a-z][a-z-]*)", place))}
    return named - set(_TARGET.findall(makefile))


@each_page
def test_make_targets_of_a_page_are_there(page: Path) -> None:
    assert not unknown_targets(read(page), read(REPOSITORY / "Makefile"))


def test_an_unknown_target_is_found() -> None:
    text = "`make test`, `make tests`\n\n```\nmake demo DATA=x    # make nothing\nmake demonstration\n```\n"
    assert unknown_targets(text, read(REPOSITORY / "Makefile")) == {"tests", "demonstration"}


# Paths

_PATH = re.compile(r"(?<![\w./-])((?:server|client|common|tests|deploy)/[\w./*-]*\w/?|(?:server|client|common|tests)/)")


def missing_paths(text: str) -> set[str]:
    """Paths of the repository that a page names and that lead nowhere; those of tests may leave ``tests/`` out."""
    whole = {code.partition("::")[0] for code in inline_code(text)}
    named = {code for code in whole if _PATH.fullmatch(code)}
    named |= {path for line in lines_of_code(text) for path in _PATH.findall(line)}
    return {path for path in named if not any(next(root.glob(path), None) for root in (REPOSITORY, TESTS))}


@each_page
def test_paths_of_a_page_are_there(page: Path) -> None:
    assert not missing_paths(read(page))


def test_a_missing_path_is_found() -> None:
    text = (
        "`server/cli`, `server/nowhere.py`, `common/*.py`, `common/*.txt`, `deploy/test_lint.py`, `kits/server/run`, "
        "`tests/test_documents.py::test_x`, `client/`\n\n```\ncp deploy/lost.yaml /deploy/x kits/server/y\n```\n"
    )
    assert missing_paths(text) == {"server/nowhere.py", "common/*.txt", "deploy/lost.yaml"}


# Tests that pages name


def named_tests(text: str) -> set[str]:
    """``folder/test_file.py``, ``folder/test_file.py::test_name`` and ``test_name`` as pages write them."""
    return set(re.findall(r"`(?:tests/)?((?:[\w/]+/)?test_\w+(?:\.py(?:::\w+)?)?)`", text))


def is_there(name: str) -> bool:
    file, _, function = name.rpartition("::")
    if name.endswith(".py"):
        return (TESTS / name).is_file()
    files = [TESTS / file] if file else TESTS.rglob("test_*.py")
    return any(f"def {function}(" in read(path) for path in files if path.is_file())


@each_page
def test_every_test_that_a_page_names_is_there(page: Path) -> None:
    assert not {name for name in named_tests(read(page)) if not is_there(name)}


def test_a_test_that_is_not_there_is_found() -> None:
    found = named_tests("| `deploy/test_lint.py` | `tests/test_documents.py::test_no_more` | `test_never_was` |")
    assert {name for name in found if not is_there(name)} == {"test_documents.py::test_no_more", "test_never_was"}
    assert len(named_tests(read(DEPLOY / "docs/faults.md"))) > 10


def faults_without_test(text: str) -> list[str]:
    """Rows without a test; tables without a column for it are covered by the test that the text above them names."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    faults = [cells for cells in rows if len(cells) == 5 and cells[0] != "fault" and set(cells[0]) != {"-"}]
    return [cells[0] for cells in faults if not named_tests(cells[4]) and cells[4] != "the same"]


def test_every_fault_names_a_test() -> None:
    assert not faults_without_test(read(DEPLOY / "docs/faults.md"))


def test_a_fault_without_a_test_is_found() -> None:
    head = "| fault | seen | happens | to do | test |\n| --- | --- | --- | --- | --- |\n"
    rows = "| flood | water | pump | wait | surely |\n| fire | smoke | ends | leave | `test_images.py` |\n"
    assert faults_without_test(head + rows) == ["flood"]


# Flower


def private_modules(file: Path) -> set[str]:
    """Modules of Flower's that a module of ours imports from."""
    return set(re.findall(r"^from (flwr[\w.]*) import", read(file), re.MULTILINE))


def listed_modules(text: str, column: int) -> set[str]:
    """Modules in the table of the page about Flower whose cell in a column says yes."""
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    rows = [cells for cells in table if len(cells) == 4 and cells[column] == "yes"]
    return {name for cells in rows for name in re.findall(r"`(flwr[\w.]+)`", cells[0])}


@pytest.mark.parametrize(("side", "column"), [("client", 1), ("server", 2)])
def test_the_page_about_flower_lists_every_private_module_of_it(side: str, column: int) -> None:
    used = private_modules(REPOSITORY / side / "flower.py")
    assert len(used) > 8
    assert used == listed_modules(read(DEPLOY / "docs/flower.md"), column)


def test_a_module_of_flower_that_is_not_listed_is_found() -> None:
    used = private_modules(REPOSITORY / "client/flower.py")
    assert used != listed_modules("| `flwr.common.serde` | yes | | messages |\n", 1)
