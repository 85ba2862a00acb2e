"""All words of the pages, by language and key: one YAML file per language and room."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.config.yaml_file import parse_yaml

DEFAULT = "en"
LANGUAGES = {"en": "English", "de": "Deutsch"}
"""Code of each language -> its own name."""


class Texts:
    """The texts in one language.

    Parameters
    ----------
    language
        Its code.
    texts
        Key -> text, with ``{names}`` in place of values.
    """

    def __init__(self, language: str, texts: Mapping[str, str]) -> None:
        self.language = language
        self._texts = texts

    def __call__(self, key: str, **values: Any) -> str:
        """Return a text with its values put in.

        A ``count`` of 1 chooses ``KEY_one`` where the catalogue has it.

        Raises
        ------
        KeyError
            There is no such text, or a value is missing.
        """
        if values.get("count") == 1 and f"{key}_one" in self._texts:
            key = f"{key}_one"
        return self._texts[key].format_map(values)

    def number(self, value: float, form: str = ",") -> str:
        """Return a number as people write it in this language.

        Parameters
        ----------
        form
            A format of Python, such as ``,`` or ``.2f``.
        """
        marks = {ord(","): self._texts["number.thousands"], ord("."): self._texts["number.point"]}
        return format(value, form).translate(marks)

    def known(self, key: str, otherwise: str) -> str:
        """Return the text of a word that a run wrote, such as a status, or the word itself if there is none."""
        return self._texts.get(key, otherwise)


def load_texts(folders: Iterable[Path]) -> dict[str, Texts]:
    """Read the texts of all languages from ``LANGUAGE.yaml`` in some folders, together."""
    folders = list(folders)
    return {language: Texts(language, _read(language, folders)) for language in LANGUAGES}


def choose_language(asked: str | None, chosen: str | None, accepted: str) -> str:
    """Return the language for a request.

    Parameters
    ----------
    asked
        What the link says.
    chosen
        What an earlier link said (a cookie).
    accepted
        The header Accept-Language.
    """
    for language in (asked, chosen, *_by_preference(accepted)):
        if language in LANGUAGES:
            return language
    return DEFAULT


def _by_preference(accepted: str) -> list[str]:
    weighted = []
    for part in accepted[:500].split(","):
        tag, _, quality = part.partition(";")
        try:
            weight = float(quality.strip().removeprefix("q=") or 1)
        except ValueError:
            continue
        weighted.append((-weight, tag.strip().split("-")[0].lower()))
    return [tag for weight, tag in sorted(weighted, key=lambda item: item[0]) if weight < 0]


def _read(language: str, folders: Iterable[Path]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for folder in folders:
        file = folder / f"{language}.yaml"
        texts |= _flat("", parse_yaml(file.read_text(encoding="utf-8"), str(file)))
    return texts


def _flat(prefix: str, content: Any) -> dict[str, str]:
    if not isinstance(content, Mapping):
        return {prefix: str(content)}
    found: dict[str, str] = {}
    for key, value in content.items():
        found |= _flat(f"{prefix}.{key}" if prefix else str(key), value)
    return found
