"""No damage to a state file goes unnoticed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from common.errors import DamagedFileError
from common.system.state_file import check_digest, digest_of_file, put_aside, read_sealed, write_sealed

CONTENT = {"round": 3, "dice": 0.1 + 0.2, "name": "Köln", "none": None, "norms": {"a": 1e-300}}
DO = "restore it"


def test_values_return_with_the_digest_of_what_stands_before_it(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    digest = write_sealed(file, CONTENT)
    assert read_sealed(file, DO) == (CONTENT, digest)
    content = json.loads(file.read_text())
    assert content.pop("sha256") == digest == hashlib.sha256(json.dumps(content, indent=2).encode()).hexdigest()


def test_every_changed_byte_and_every_cut_is_named(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    write_sealed(file, CONTENT)
    whole = file.read_bytes()
    damaged = [whole[:size] for size in range(len(whole))]
    damaged += [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(len(whole))]
    damaged += [whole + b" ", b"[1, 2]", b"{}", b'{"round": 1}', b"[" * 10_000]
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(DamagedFileError, match=rf"{file}.*; {DO}"):
            read_sealed(file, DO)
    file.unlink()
    with pytest.raises(DamagedFileError, match="is missing"):
        read_sealed(file, DO)


def test_a_file_is_known_by_a_digest_that_is_kept_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "rounds.jsonl"
    file.write_bytes(b"one\n")
    digest = digest_of_file(file)
    check_digest(file, digest, DO)
    file.write_bytes(b"One\n")
    with pytest.raises(DamagedFileError, match="was changed"):
        check_digest(file, digest, DO)
    file.unlink()
    with pytest.raises(DamagedFileError, match="is missing"):
        check_digest(file, digest, DO)
    file.mkdir()
    with pytest.raises(DamagedFileError, match="cannot be read"):
        check_digest(file, digest, DO)


def test_a_damaged_file_is_put_aside_with_its_content(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    assert put_aside(file) is None
    for content in (b"1", b"2"):
        file.write_bytes(content)
        aside = put_aside(file)
        assert aside == tmp_path / "plan.json.damaged"
        assert aside.read_bytes() == content
        assert not file.exists()


def test_so_is_a_damaged_folder_again_and_again(tmp_path: Path) -> None:
    folder = tmp_path / "phantoms"
    for content in (b"1", b"2"):
        folder.mkdir()
        (folder / "scan").write_bytes(content)
        aside = put_aside(folder)
        assert aside is not None
        assert (aside / "scan").read_bytes() == content


def test_numbers_without_a_word_in_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_sealed(tmp_path / "state.json", {"dice": float("nan")})
    assert list(tmp_path.iterdir()) == []
