"""Whatever sites, labels and files are called, the dossier shows it, and no reader of Markdown or HTML obeys it."""

from __future__ import annotations

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from server.formatting import escaped
from server.reporting.dossier.contents import compose
from server.reporting.dossier.facts import gather
from server.reporting.dossier.write import files_of
from tests import hostile
from tests.server.reporting.dossier.runs import change_summary, write_network_run
from tests.server.run_folder import write_json_lines

MARKUP = (
    "[x](https://evil.example)",
    "| a | b |",
    "`c`",
    "**d** _e_ ~~f~~",
    "<https://evil.example>",
    "&lt;b&gt; \\",
    "x" * 5000,
)
NAMES = (*hostile.NAMES, *MARKUP)
RENDERER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    run = write_network_run(tmp_path_factory.mktemp("hostile") / "run", NAMES)
    config = yaml.safe_load((run / "federation.yaml").read_text())
    changed = {"name": NAMES[4], "description": " ".join(NAMES[:-1]), "modality": NAMES[7]}
    (run / "federation.yaml").write_text(yaml.safe_dump(config | changed))
    change_summary(run, name=NAMES[4], labels={str(number): name for number, name in enumerate(NAMES, start=1)})
    alarms = [{"event": "alarm", "about": name, "text": name} for name in NAMES]
    quarantined = [{"event": "site_quarantined", "site": name} for name in NAMES]
    started = {"event": "started", "engine": "network"}
    write_json_lines(run / "events.jsonl", [started, *alarms, *quarantined, *({"event": name} for name in NAMES)])
    return files_of(compose(gather(run)))


def tokens(text: str) -> list[Token]:
    return [inner for token in RENDERER.parse(text) for inner in (token, *(token.children or ()))]


def test_markdown_obeys_no_name(texts: dict[str, str]) -> None:
    for name, text in texts.items():
        if not name.endswith(".md"):
            continue
        assert not hostile.obeyed(text), name
        found = tokens(text)
        assert {token.content for token in found if token.type.startswith("html")} <= {"<br>"}, name
        assert not {token.type for token in found} & {"code_inline", "s_open", "image", "fence", "code_block"}, name
        links = {str(token.attrs["href"]) for token in found if token.type == "link_open"}
        assert all(link in texts for link in links), links
        rows = RENDERER.render(text).split("<tr>")[1:]
        assert len({row.count("<td>") or row.count("<th>") for row in rows}) <= 1, name


def test_a_name_is_shown_as_it_is() -> None:
    for name in MARKUP:
        (_, inline, _) = RENDERER.parse(f"- x {escaped(name)}")[2:5]
        assert "".join(token.content for token in inline.children or ()) == f"x {name}"
    assert escaped("a\nb\x1b[0m") == r"a\\nb\\x1b\[0m"


def test_names_are_bounded(texts: dict[str, str]) -> None:
    assert all("x" * 301 not in text for text in texts.values())
    assert all("x" * 250 in text for name, text in texts.items() if name in ("evidence.md", "risks.md"))
