"""The audit log: what it proves, and every way to damage it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from common.audit import START, AuditError, AuditLog, head_of, read_entries, verify

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log of five entries."""
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    for number in range(5):
        log.append("sent", bytes=number, name=f"round {number}")
    return path


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_lines_are_what_the_contract_says(path: Path) -> None:
    previous = START
    for number, line in enumerate(lines(path), start=1):
        values = json.loads(line)
        assert list(values) == ["n", "time", "event", "bytes", "name", "previous", "hash"]
        assert (values["n"], values["previous"]) == (number, previous)
        body = line.removesuffix(b',"hash":"%s"}\n' % values["hash"].encode()) + b"}"
        assert values["hash"] == hashlib.sha256(body).hexdigest()
        previous = values["hash"]


def test_a_whole_log_is_proven(path: Path) -> None:
    AuditLog(path).append("paused", user="Zoë \u2028 \udcff")
    summary = verify(path)
    entries = read_entries(path)
    assert (summary.entries, summary.events, summary.torn_bytes) == (6, {"sent": 5, "paused": 1}, 0)
    assert summary.head == entries[-1].hash
    assert summary.hashes == {entry.hash for entry in entries}
    assert (summary.first, summary.last) == (entries[0].time, entries[-1].time)
    assert entries[-1].details == {"user": "Zoë \u2028 \udcff"}


def test_append_tells_what_it_wrote(path: Path) -> None:
    written = AuditLog(path).append("paused", user="a")
    assert written == read_entries(path)[-1]


def test_an_empty_log_is_whole(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").touch()
    assert verify(tmp_path / "audit.jsonl").head == START


def test_nobody_else_may_read_it(path: Path) -> None:
    assert path.stat().st_mode & 0o077 == 0


def _edited(text: list[bytes]) -> list[bytes]:
    return [*text[:2], text[2].replace(b'"bytes":2', b'"bytes":0'), *text[3:]]


def _edited_with_its_hash(text: list[bytes]) -> list[bytes]:
    body = text[2].replace(b'"bytes":2', b'"bytes":0').rsplit(b',"hash"', 1)[0] + b"}"
    own = hashlib.sha256(body).hexdigest().encode()
    return [*text[:2], body[:-1] + b',"hash":"' + own + b'"}\n', *text[3:]]


DAMAGE: dict[str, tuple[Callable[[list[bytes]], list[bytes]], int | None]] = {
    "edited": (_edited, 3),
    "edited, hash made anew": (_edited_with_its_hash, 4),
    "a space more": (lambda text: [*text[:2], text[2].replace(b":2", b": 2"), *text[3:]], 3),
    "another line end": (lambda text: [line.replace(b"\n", b"\r\n") for line in text], 1),
    "deleted at the start": (lambda text: text[1:], 1),
    "deleted in the middle": (lambda text: [*text[:2], *text[3:]], 3),
    "swapped": (lambda text: [text[0], text[2], text[1], *text[3:]], 2),
    "one line twice": (lambda text: [*text, text[-1]], 6),
    "a line that is none": (lambda text: [*text, b"hello\n"], 6),
    "an empty line": (lambda text: [*text[:2], b"\n", *text[2:]], 3),
    "JSON that is no object": (lambda text: [b'["a","hash":"' + b"0" * 64 + b'"}\n', *text], 1),
    "last line gone": (lambda text: text[:-1], None),
    "three last lines gone": (lambda text: text[:2], None),
    "all lines gone": (lambda text: [], None),
    "last line cut in half": (lambda text: [*text[:-1], text[-1][:20]], None),
    "last line end gone": (lambda text: [*text[:-1], text[-1][:-1]], None),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_shows_and_nothing_is_appended_to_it(path: Path, name: str) -> None:
    log = AuditLog(path)
    log.append("sent", bytes=5, name="by a writer that stays open")
    change, line = DAMAGE[name]
    path.write_bytes(b"".join(lines(path)[:-1]))
    head_of(path).write_text(json.dumps({"n": 5, "hash": read_entries(path)[-1].hash}))
    assert verify(path).entries == 5
    damaged = b"".join(change(lines(path)))
    path.write_bytes(damaged)
    with pytest.raises(AuditError) as error:
        verify(path)
    assert error.value.line == line
    for writer in (log, AuditLog(path)):
        with pytest.raises(AuditError):
            writer.append("sent")
    assert path.read_bytes() == damaged


def test_a_log_that_is_gone_shows_by_its_head(path: Path) -> None:
    path.unlink()
    with pytest.raises(AuditError, match="is gone"):
        verify(path)
    with pytest.raises(AuditError, match="is gone"):
        AuditLog(path).append("sent")
    assert not path.exists()


def test_a_log_that_never_was(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="there is no log"):
        verify(tmp_path / "audit.jsonl")


def test_a_head_that_is_gone_or_put_back_shows(path: Path) -> None:
    old = head_of(path).read_bytes()
    for _ in range(2):
        AuditLog(path).append("sent")
    head_of(path).write_bytes(old)
    with pytest.raises(AuditError, match="do not belong together"):
        verify(path)
    head_of(path).unlink()
    with pytest.raises(AuditError, match="do not belong together"):
        AuditLog(path).append("sent")
    head_of(path).write_text("{")
    with pytest.raises(AuditError, match="damaged"):
        verify(path)


def test_a_history_of_another_log_shows_by_the_head(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    for _ in range(5):
        AuditLog(other).append("sent")
    path.write_bytes(other.read_bytes())
    with pytest.raises(AuditError, match="do not belong together"):
        verify(path)


def test_a_crash_between_entry_and_head_is_no_damage(path: Path) -> None:
    old = head_of(path).read_bytes()
    AuditLog(path).append("sent")
    head_of(path).write_bytes(old)
    assert verify(path).entries == 6
    AuditLog(path).append("sent")
    assert verify(path).entries == 7


def test_what_a_crash_tore_is_cut_off_and_noted(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"n":6,"time":"20')
    assert verify(path).torn_bytes == 17
    assert len(read_entries(path)) == 5
    AuditLog(path).append("sent")
    events = [(entry.event, entry.details) for entry in read_entries(path)[5:]]
    assert events == [("log_repaired", {"torn_bytes": 17}), ("sent", {})]
    assert verify(path).torn_bytes == 0


def test_a_detail_may_not_take_the_place_of_a_key(path: Path) -> None:
    for name in ("n", "time", "previous", "hash"):
        with pytest.raises(ValueError, match=name):
            AuditLog(path).append("sent", **{name: 1})
    with pytest.raises(ValueError, match="JSON"):
        AuditLog(path).append("sent", loss=float("nan"))
    assert verify(path).entries == 5


def test_a_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for path in (tmp_path / "folder", tmp_path / "missing" / "audit.jsonl", tmp_path / "link"):
        with pytest.raises(AuditError, match="cannot be written"):
            AuditLog(path).append("sent")
    assert (tmp_path / "target").read_bytes() == b""


FULL_DISK = """
import resource, sys
from pathlib import Path
from common.audit import AuditError, AuditLog, verify
path = Path(sys.argv[1])
log = AuditLog(path)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + int(sys.argv[2]), resource.RLIM_INFINITY))
before = path.read_bytes()
for _ in range(2):
    try:
        log.append("sent", name="x" * 300)
    except AuditError as error:
        print(error)
assert path.read_bytes() == before
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.append("sent")
print(verify(path).entries)
"""


@pytest.mark.parametrize("room", [0, 100])
def test_a_full_disk_leaves_the_log_as_it_was(path: Path, room: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path), str(room)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *errors, entries = done.stdout.splitlines()
    assert len(errors) == 2
    assert all("cannot be written" in error for error in errors)
    assert entries == "6"


WRITER = """
import sys
from pathlib import Path
from common.audit import AuditLog
log = AuditLog(Path(sys.argv[1]))
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    log.append("sent", writer=sys.argv[2], number=number)
"""


def test_processes_and_threads_do_not_disturb_each_other(path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(index), "20"], cwd=REPOSITORY, stdin=-1)
        for index in range(3)
    ]
    log = AuditLog(path)

    def write(index: int) -> None:
        for number in range(10):
            log.append("sent", writer=f"thread {index}", number=number)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(2)]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.close()
    for thread in threads:
        thread.start()
    while any(writer.poll() is None for writer in writers):
        verify(path)
    for thread in threads:
        thread.join()
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert verify(path).entries == 5 + 3 * 20 + 2 * 10
    order: dict[str, list[int]] = {}
    for entry in read_entries(path)[5:]:
        order.setdefault(entry.details["writer"], []).append(entry.details["number"])
    assert order == {str(index): list(range(20)) for index in range(3)} | {
        f"thread {index}": list(range(10)) for index in range(2)
    }


def test_killed_at_any_moment_the_log_goes_on(path: Path) -> None:
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), "0", "100000"], cwd=REPOSITORY, stdin=-1)
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.close()
        before = path.stat().st_size
        while path.stat().st_size < before + 2000:
            assert writer.poll() is None
            os.sched_yield()
        writer.kill()
        writer.wait()
        AuditLog(path).append("sent", writer="survivor", number=0)
        verify(path)
