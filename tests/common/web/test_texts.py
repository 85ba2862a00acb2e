"""Every language has every text, with the same values in it."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

from common.web.rendering import TEMPLATES
from common.web.shell import Shell
from common.web.texts import DEFAULT, LANGUAGES, choose_language, load_texts
from common.web.visits import Role
from tests.common.web.side import signed_in

REPOSITORY = Path(__file__).resolve().parents[3]
ROOMS = [folder for side in ("common", "server", "client") if (folder := REPOSITORY / side / "web").is_dir()]
ROOM_OF_BOTH = TEMPLATES.parent


def values_in(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.parent.name)
@pytest.mark.parametrize("language", [code for code in LANGUAGES if code != DEFAULT])
def test_languages_have_the_same_texts(room: Path, language: str) -> None:
    texts = load_texts([room / "texts"])
    ours, others = texts[DEFAULT]._texts, texts[language]._texts
    assert ours.keys() == others.keys()
    assert {key: values_in(text) for key, text in ours.items()} == {
        key: values_in(text) for key, text in others.items()
    }


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.parent.name)
def test_templates_hold_no_words_of_their_own_and_name_texts_that_exist(room: Path) -> None:
    known = load_texts([ROOM_OF_BOTH / "texts", room / "texts"])[DEFAULT]._texts
    for template in (room / "templates").glob("*.jinja"):
        text = re.sub(r"\{#.*?#\}", "", template.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert set(re.findall(r"\bt\(\"([^\"]+)\"[,)]", text)) <= known.keys()
        words = re.sub(r"\{%.*?%\}|\{\{.*?\}\}|<[^>]*>|&\w+;", " ", text, flags=re.DOTALL)
        assert not set(re.findall(r"[A-Za-zÄÖÜäöüß]{2,}", words)) - {"Fedvox"}, template


@pytest.mark.parametrize(
    ("asked", "chosen", "accepted", "language"),
    [
        (None, None, "", "en"),
        (None, None, "de-AT,de;q=0.9,en;q=0.5", "de"),
        (None, None, "fr, de;q=0.2, en;q=0.8", "en"),
        (None, None, "de;q=0, *", "en"),
        (None, None, "de;q=much", "en"),
        (None, "de", "en", "de"),
        ("en", "de", "de", "en"),
        ("xx", "yy", "de", "de"),
    ],
)
def test_the_language_follows_the_link_then_the_browser(
    asked: str | None, chosen: str | None, accepted: str, language: str
) -> None:
    assert choose_language(asked, chosen, accepted) == language


def test_a_chosen_language_stays(shell: Shell) -> None:
    client = signed_in(shell, Role.LOOK)
    assert '<html lang="de">' in client.get("/?lang=de").text
    assert "Abmelden" in client.get("/").text


@pytest.mark.parametrize(
    ("language", "form", "written"),
    [("en", ",", "1,234,568"), ("de", ",", "1.234.568"), ("en", ".2f", "1234567.89"), ("de", ",.1f", "1.234.567,9")],
)
def test_numbers_are_written_as_in_the_language(language: str, form: str, written: str) -> None:
    assert (
        load_texts([ROOM_OF_BOTH / "texts"])[language].number(1234567.89 if "f" in form else 1234568, form) == written
    )
