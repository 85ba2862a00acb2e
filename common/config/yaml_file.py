"""Reads and writes YAML: plain data only, numbers as they are written, and every key once.

YAML 1.1 reads ``017`` as 15, ``1:30`` as 90, ``2024-01-01`` as a date and ``1e-3`` as text. Here, as in YAML 1.2,
numbers are decimal, and whatever is no number, boolean or null is text. ``yes``, ``no``, ``on`` and ``off`` stay
booleans, as in YAML 1.1. Merge keys (``<<``) are supported: a mapping's own keys win, then the first of several merged
mappings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from common.errors import ConfigError

DEEPEST = 50
"""Largest depth of lists and mappings inside each other."""
MOST_VALUES = 50_000
"""Most keys and values in a file; a value counts each time that an alias repeats it."""
LONGEST_NUMBER = 100
_MERGE = object()
_TEMPLATE = re.compile(r"\{\{.*\}\}|\{%.*%\}")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)$")
_FLOAT = re.compile(
    r"[-+]?(?:(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)
_CONSTANTS: dict[str, bool | None] = {
    form: value
    for word, value in {**yaml.SafeLoader.bool_values, "null": None, "~": None, "": None}.items()
    for form in (word, word.capitalize(), word.upper())
}


class _Dumper(yaml.SafeDumper):
    """Also quotes text that only this module reads as a number, such as ``1e-3``."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def read_yaml(path: Path) -> Any:
    """Read a file of plain YAML data: mappings, lists, text, numbers, booleans and null.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ConfigError
        It cannot be read, or ``parse_yaml`` refuses its content.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start + 1}); save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML that holds plain data.

    Parameters
    ----------
    text
        One YAML document.
    source
        The file or option that the text comes from, for errors.

    Raises
    ------
    ConfigError
        It is not valid YAML, has a duplicate or unusable key, a tag or an unfilled template, is nested too deep, or is
        too large. The error names the line.
    """
    reader = _Reader(text)
    try:
        return reader.read()
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{source}: line {line}: not valid YAML: holds the control character U+{ord(text[error.position]):04X}; "
            "remove it"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        if template := reader.template_in(line):
            raise ConfigError(f"{source}: {template}") from None
        raise ConfigError(f"{source}: line {line}: not valid YAML: {error.problem or error.context}") from None


def dump_yaml(content: Any, *, in_a_line: bool = False) -> str:
    """Format plain data as YAML that ``parse_yaml`` and readers of YAML 1.1 read back as the same data.

    Parameters
    ----------
    content
        Mappings, lists, text, numbers, booleans and null.
    in_a_line
        Write everything in one line, without a newline at its end.
    """
    text: str = yaml.dump(
        content,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=in_a_line,
        width=MOST_VALUES if in_a_line else 80,
    )
    return text.removesuffix("...\n").strip() if in_a_line else text


class _Reader:
    """Builds plain data from the parser's events, and counts and compares as it goes."""

    def __init__(self, text: str) -> None:
        self._lines = text.split("\n")
        self._text = text
        self._events: Iterator[yaml.Event] = iter(())
        self._anchors: dict[str, Any] = {}
        self._values = 0

    def read(self) -> Any:
        self._events = iter(yaml.parse(self._text, Loader=yaml.SafeLoader))
        next(self._events)
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        content = self._value(next(self._events), 1)
        next(self._events)
        following = next(self._events)
        if not isinstance(following, yaml.StreamEndEvent):
            raise _error(following, "a second document starts here (---); keep one document in a file")
        return content

    def template_in(self, line: int) -> str | None:
        """Describe the unfilled template in a line, if there is one."""
        found = _TEMPLATE.search(self._lines[line - 1]) if line <= len(self._lines) else None
        return f"line {line}: {found[0]} is a template that was not filled in; write the value" if found else None

    def _value(self, event: yaml.Event, depth: int) -> Any:
        self._count(event, depth)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise _error(event, f"*{event.anchor} stands for nothing; write &{event.anchor} at a value above it")
            return self._copy(self._anchors[event.anchor], event, depth)
        if getattr(event, "tag", None) not in (None, "!"):
            raise _error(event, "tags (!) are not supported; write the value alone")
        anchor: str | None = getattr(event, "anchor", None)
        if anchor in self._anchors:
            raise _error(event, f"&{anchor} is there twice; rename one of them")
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._list(depth)
        else:
            value = self._mapping(depth)
        if anchor is not None:
            self._anchors[anchor] = value
        return value

    def _count(self, event: yaml.Event, depth: int) -> None:
        self._values += 1
        if depth > DEEPEST:
            raise _error(event, f"nested more than {DEEPEST} deep; close the brackets before, or indent less")
        if self._values > MOST_VALUES:
            raise _error(event, f"more than {MOST_VALUES:,} values with this one, aliases (*) filled in; write fewer")

    def _copy(self, value: Any, event: yaml.Event, depth: int) -> Any:
        if isinstance(value, dict | list):
            self._count(event, depth)
            if isinstance(value, list):
                return [self._copy(item, event, depth + 1) for item in value]
            return {key: self._copy(item, event, depth + 1) for key, item in value.items()}
        self._count(event, depth)
        return value

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        text = event.value
        if template := _TEMPLATE.search(text):
            raise _error(event, f"{template[0]} is a template that was not filled in; write the value")
        if not event.implicit[0]:
            return text
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if not (_INT.match(text) or _FLOAT.match(text)):
            return text
        if len(text) > LONGEST_NUMBER:
            raise _error(event, f"a number of {len(text)} characters; write at most {LONGEST_NUMBER}")
        return int(text) if _INT.match(text) else float(text.replace(".inf", "inf").replace(".nan", "nan"))

    def _list(self, depth: int) -> list[Any]:
        items = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._value(event, depth + 1))
        return items

    def _mapping(self, depth: int) -> dict[Any, Any]:
        own: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event, depth)
            name = "<<" if key is _MERGE else str(key)
            line = _line(event)
            if name in lines:
                also = f" (also in line {lines[name]})" if lines[name] != line else ""
                hint = "write <<: [*one, *two]" if key is _MERGE else "keep one of them"
                raise _error(event, f"duplicate key {name!r}{also}; {hint}")
            lines[name] = line
            following = next(self._events)
            value = self._value(following, depth + 1)
            if key is _MERGE:
                merged = self._merged(following, value)
            else:
                own[key] = value
        # 1 and "1" are the same key to whoever reads it.
        return {key: value for key, value in merged.items() if str(key) not in lines} | own

    def _key(self, event: yaml.Event, depth: int) -> Any:
        if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]:
            return _MERGE
        line = _line(event)
        if isinstance(event, yaml.CollectionStartEvent):
            raise ConfigError(self.template_in(line) or f"line {line}: a key must be a word or a number, not a list")
        key = self._value(event, depth)
        if isinstance(key, dict | list):
            raise _error(event, "a key must be a word or a number, not a list or mapping")
        return key

    def _merged(self, event: yaml.Event, value: Any) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for each in value if isinstance(value, list) else [value]:
            if not isinstance(each, dict):
                raise _error(event, "<< needs a mapping, or a list of mappings, to merge")
            names = set(map(str, found))
            found |= {key: item for key, item in each.items() if str(key) not in names}
        return found


def _error(event: yaml.Event, problem: str) -> ConfigError:
    return ConfigError(f"line {_line(event)}: {problem}")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1
