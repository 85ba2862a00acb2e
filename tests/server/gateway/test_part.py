"""An update that comes in pieces is the same file, however it was cut and how often the process was killed."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.gateway.fleet.announcements import MOST_ANNOUNCEMENTS, Announcements
from server.gateway.part import Part, part_path
from server.gateway.refusals import RefusedError
from server.gateway.uploads import make_room

pieces = st.lists(st.lists(st.binary(max_size=50), max_size=4), min_size=1, max_size=6)


@given(pieces, st.data())
def test_it_goes_on_from_what_is_there(cut: list[list[bytes]], data: st.DataObject) -> None:
    content = b"".join(piece for portions in cut for piece in portions)
    digest = hashlib.sha256(content).hexdigest()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "updates"
        part = Part(folder, digest, len(content))
        for portions in cut:
            part.append(portions)
            assert part.is_in_place
            if data.draw(st.booleans()):
                part.close()
                part = Part(folder, digest, len(content))
        assert part.size == len(content)
        assert part.finish()
        assert [file.name for file in folder.iterdir()] == [digest]
        assert (folder / digest).read_bytes() == content


def test_a_wrong_content_leaves_nothing(tmp_path: Path) -> None:
    part = Part(tmp_path, "ab" * 32, 3)
    part.append([b"abc"])
    assert not part.finish()
    assert list(tmp_path.iterdir()) == []


def test_what_is_longer_than_the_whole_is_begun_anew(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"abc").hexdigest()
    part_path(tmp_path, digest).write_bytes(b"abcd")
    part = Part(tmp_path, digest, 3)
    assert part.size == 0
    part.append([b"abc"])
    assert part.finish()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    part_path(tmp_path, "ab" * 32).symlink_to(tmp_path / "secret")
    with pytest.raises(OSError):
        Part(tmp_path, "ab" * 32, 10)
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_a_file_that_was_moved_or_changed_is_noticed(tmp_path: Path) -> None:
    part = Part(tmp_path, "ab" * 32, 10)
    part.append([b"abc"])
    path = part_path(tmp_path, "ab" * 32)
    with path.open("ab") as file:
        file.write(b"?")
    assert not part.is_in_place
    path.write_bytes(b"abc")
    assert part.is_in_place
    path.replace(tmp_path / "elsewhere")
    assert not part.is_in_place
    path.write_bytes(b"abc")
    assert not part.is_in_place, "another file of the same name"


def test_room_is_made_of_idle_parts_alone(tmp_path: Path) -> None:
    names = [f"{number:02}" * 32 for number in range(5)]
    for name in names[:2]:
        (tmp_path / name).write_bytes(b"")
    for name in names[2:4]:
        part_path(tmp_path, name).write_bytes(b"")
    (tmp_path / ".spare").write_bytes(b"as large as an update")
    make_room(tmp_path, names[4], set(names[2:3]), 4)
    assert {file.name for file in tmp_path.iterdir()} == {*names[:2], f".{names[2]}.part"}
    make_room(tmp_path, names[2], set(), 4)
    with pytest.raises(RefusedError, match="updates"):
        make_room(tmp_path, names[4], set(names[2:3]), 3)


def test_only_the_newest_announcements_are_remembered() -> None:
    announcements = Announcements()
    for number in range(MOST_ANNOUNCEMENTS + 1):
        announcements.begin(7, f"s{number}", f"m{number}", ["a", "b"])
    assert not announcements.includes(7, "s0", "a")
    assert announcements.includes(7, "s1", "a") and not announcements.includes(8, "s1", "a")
    assert announcements.note_stored(7, "s1", "a") is None
    assert announcements.note_stored(7, "s1", "a") is None
    assert announcements.note_stored(7, "s1", "b") == "m1"
    assert announcements.note_stored(7, "s1", "b") is None
    assert announcements.note_stored(8, "s2", "b") is None
