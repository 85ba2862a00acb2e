"""YAML as people write it is read as they mean it, or refused with its line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config.yaml_file import DEEPEST, MOST_VALUES, dump_yaml, parse_yaml, read_yaml
from common.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("-7", -7),
        ("0", 0),
        ("1e-3", 1e-3),
        ("1.0E+3", 1000.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("yes", True),
        ("Off", False),
        ("~", None),
        ("NULL", None),
        ("", None),
        # Text, because people and readers of YAML disagree on the number.
        ("017", "017"),
        ("0o17", "0o17"),
        ("0x1F", "0x1F"),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("20:00", "20:00"),
        ("2024-01-01", "2024-01-01"),
        ("inf", "inf"),
        ("'7'", "7"),
        ('"yes"', "yes"),
        ("y", "y"),
    ],
)
def test_a_plain_word_means_what_it_looks_like(text: str, value: object) -> None:
    found = parse_yaml(f"key: {text}", "file")["key"]
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_read_as_such() -> None:
    found = parse_yaml(".nan", "file")
    assert found != found


@pytest.mark.parametrize(
    "text",
    [
        "base: &b {a: 1, c: 2}\nown: {<<: *b, c: 3, d: 4}",
        "base: &b {a: 1, c: 2}\nown: {c: 3, d: 4, <<: *b}",
        "one: &o {a: 1}\ntwo: &t {a: 2, b: 3}\nown: {<<: [*o, *t]}",
        "one: &o {a: 1}\ntwo: &t {<<: *o, b: 3}\nown:\n  <<: *t\n  b: 4",
        "list: &l [1, 2]\nsame: *l",
        "a: [1, {b: null}]\nc: >\n  folded\n  text\nd: |\n  kept\n",
    ],
)
def test_merges_and_aliases_read_as_in_pyyaml(text: str) -> None:
    assert parse_yaml(text, "file") == yaml.safe_load(text)


def test_aliases_share_nothing() -> None:
    found = parse_yaml("one: &o {a: [1]}\ntwo: *o\nthree: {<<: *o}", "file")
    found["one"]["a"].append(2)
    assert found["two"] == found["three"] == {"a": [1]}


def _bomb(levels: int) -> str:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


REFUSED = [
    ("a: 1\nb: 2\na: 3", "line 3: duplicate key 'a' (also in line 1); keep one of them"),
    ('labels: {1: anterior, "1": posterior}', "line 1: duplicate key '1'; keep one of them"),
    ("x: &x {a: 1}\nown:\n  <<: *x\n  <<: *x", "line 4: duplicate key '<<' (also in line 3); write <<: [*one, *two]"),
    ("own: {<<: 3}", "line 1: << needs a mapping"),
    ("own:\n  <<: [a, b]", "line 2: << needs a mapping"),
    ("a: 1\n? [b, c]\n: 2", "line 2: a key must be a word or a number"),
    ("x: &x [1]\n*x : 2", "line 2: a key must be a word or a number"),
    ("a: 1\nrounds: {{ rounds }}", "line 2: {{ rounds }} is a template that was not filled in"),
    ("a: 1\nrounds: '{{ rounds }}'", "line 2: {{ rounds }} is a template"),
    ("a: 1\nrounds: {% if x %}3{% endif %}", "line 2: {% if x %}"),
    ("a: !!set {b, c}", "line 1: tags (!) are not supported"),
    ("a: !!int '0o17'", "line 1: tags (!) are not supported"),
    ("a: !secret b", "line 1: tags (!) are not supported"),
    ("a: *b", "line 1: *b stands for nothing; write &b at a value above it"),
    ("a: &a [*a]", "line 1: *a stands for nothing"),
    ("a: &a 1\nb: &a 2", "line 2: &a is there twice"),
    ("a: 1\n---\nb: 2", "line 2: a second document starts here"),
    ("a: " + "9" * 5000, "line 1: a number of 5000 characters"),
    ("a: 1\nb: \x00", "line 2: not valid YAML: holds the control character U+0000; remove it"),
    ("a: [1,\n", "line 2: not valid YAML"),
    ("a: [1]]", "line 1: not valid YAML"),
    ("a: 1\n\tb: 2", "line 2: not valid YAML"),
    ("a: " + "[" * 10_000 + "]" * 10_000, f"line 1: nested more than {DEEPEST} deep"),
    ("[" * 10_000, f"line 1: nested more than {DEEPEST} deep"),
    ("{a: " * 10_000, f"line 1: nested more than {DEEPEST} deep"),
    ("a0: &a0 [1]\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 60)), f"nested more than {DEEPEST} deep"),
    (_bomb(9), f"line 5: more than {MOST_VALUES:,} values"),
]


@pytest.mark.parametrize(("text", "complaint"), REFUSED)
def test_what_has_no_one_meaning_is_refused_with_its_line(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "site.yaml")
    assert str(caught.value).startswith("site.yaml: line ")
    assert complaint in str(caught.value)


def test_a_file_of_bytes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match=r"site\.yaml: is not UTF-8 text \(byte 4\)"):
        read_yaml(file)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


WORDS = ["1e-3", "017", "1:30", "yes", "null", "~", "", "<<", "2024-01-01", ".inf", "a: b", "*a", "&a", "!a", "\x1b[1m"]
AWKWARD: dict[str, Any] = {word: word for word in WORDS} | {
    "numbers": [1, -1.5, 1e-05, 1e300, float("inf")],
    "nested": {"a": [], "b": {}},
    "flags": [True, False, None],
}


@pytest.mark.parametrize("in_a_line", [False, True])
def test_what_is_written_reads_back_the_same(in_a_line: bool) -> None:
    text = dump_yaml(AWKWARD, in_a_line=in_a_line)
    assert parse_yaml(text, "file") == AWKWARD
    assert yaml.safe_load(text) == AWKWARD
    assert ("\n" in text) != in_a_line
