"""Federation files with random mistakes are read with their meaning kept, or refused with a word; never a crash."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config.federation import load_federation
from common.errors import ConfigError

EXAMPLES = sorted((Path(__file__).parents[3] / "deploy" / "examples").glob("*.yaml"))
WORDS = [
    *("{{ x }}", "1:30", "017", "0o17", "0x1F", "1_000", "yes", "~", "", ".inf", "-.inf", ".nan", "-1", "0", "1e400"),
    *("9" * 40, "[]", "{}", "[[[[]]]]", "'1'", "true", "1.0", "*a", "&a 1", "!!int 3", "<<", "\x1b[1m", "# no", "- 1"),
    *("${N}", "% x", "@", "`", '"', "'", "{", "}", "[", ": :", "? x", "2024-01-01", "null", "\ufeff", "\u2028", "\0"),
]


def _damaged(text: str, draw: random.Random) -> str:
    lines = text.split("\n")
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(lines))
        kind = draw.randrange(5)
        if kind == 0 and ":" in lines[at]:
            lines[at] = f"{lines[at].partition(':')[0]}: {draw.choice(WORDS)}"
        elif kind == 1:
            lines.insert(at, draw.choice(lines))
        elif kind == 2:
            del lines[at]
            lines = lines or [""]
        elif kind == 3:
            place = draw.randint(0, len(lines[at]))
            lines[at] = lines[at][:place] + draw.choice(WORDS) + lines[at][place:]
        else:
            lines[at] = " " * draw.randint(0, 4) + lines[at].lstrip()
    return "\n".join(lines)


def _leaves(content: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(content, dict) and content:
        return {at: leaf for key, value in content.items() for at, leaf in _leaves(value, (*path, str(key))).items()}
    if isinstance(content, list) and content:
        return {at: leaf for n, value in enumerate(content) for at, leaf in _leaves(value, (*path, str(n))).items()}
    return {path: content}


def _check(folder: Path, seed: int) -> bool:
    draw = random.Random(seed)
    text = _damaged(draw.choice(EXAMPLES).read_text(encoding="utf-8"), draw)
    file = folder / "federation.yaml"
    file.write_text(text, encoding="utf-8")
    try:
        config = load_federation(file)
    except ConfigError as error:
        assert str(error).startswith((f"{file}: ", "initial_model: ")), (seed, str(error))
        assert "input should" not in str(error).lower()
        return False
    # A number or boolean of the file, as another reader understands it, stands in the configuration as such, or as the
    # text that the file has there.
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return True
    understood = _leaves(config.model_dump(mode="json"))
    for path, leaf in _leaves(content).items():
        if isinstance(leaf, int | float) and not path[0].startswith("x") and path != ("privacy", "validation"):
            value = understood[path]
            assert value == leaf or (isinstance(value, str) and value in text), (seed, path, leaf, value)
    return True


def test_500_damaged_files(tmp_path: Path) -> None:
    accepted = sum(_check(tmp_path, seed) for seed in range(500))
    assert 20 < accepted < 480


@pytest.mark.long
def test_5000_damaged_files(tmp_path: Path) -> None:
    for seed in range(500, 5500):
        _check(tmp_path, seed)
