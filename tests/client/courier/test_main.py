"""What the courier's program says when it cannot begin, and what it finds of an earlier process."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.courier.flower_messages import PackedReply
from client.courier.mailbox import HeldTask, Mailbox
from client.courier.main import main
from client.flower import MessageHeader
from client.shared_folder import SharedFolder
from common.certificates import new_key, private_pem
from common.config.kit import read_kit
from common.protocol.codec import pack
from tests.client.courier.kits import Kits
from tests.client.courier.site import task
from tests.kits import change_kit, seal_kit


@pytest.fixture
def kit(kits: Kits, tmp_path: Path) -> Path:
    return kits.site(tmp_path / "kit", 9)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """The program changes what belongs to its process."""
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    level, handlers = logging.getLogger("fedvox").level, list(logging.getLogger().handlers)
    yield
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGTERM, handler)
    logging.getLogger("fedvox").setLevel(level)
    logging.getLogger().handlers[:] = handlers


def run(kit: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit status and the last line that it writes."""
    folder = kit.parent
    status = main(["--kit", str(kit), "--state", str(folder / "state"), "--shared", str(folder / "shared")])
    return status, capsys.readouterr().err.strip().splitlines()[-1]


def test_a_folder_that_is_no_kit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = run(tmp_path / "nothing", capsys)
    assert status == 2
    assert "is not a kit" in said


def test_a_key_that_does_not_belong_to_the_certificate(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kit / "site.key").write_bytes(private_pem(new_key()))
    status, said = run(kit, capsys)
    assert status == 2
    assert "site.key and site.crt do not belong together" in said


def test_a_proxy_variable_that_is_no_url(
    kit: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "socks5://user:hidden@proxy:1080")
    status, said = run(kit, capsys)
    assert status == 2
    assert "https_proxy: write it as http://USER:PASSWORD@HOST:PORT" in said
    assert "hidden" not in said


def test_a_site_file_that_is_wrong(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kit.parent / "state").mkdir()
    (kit.parent / "state" / "site.yaml").write_text("network: {max_megabits: -1}\n")
    status, said = run(kit, capsys)
    assert status == 2
    assert "site.yaml: network.max_megabits" in said


def test_a_damaged_audit_log_is_named_before_anything_is_sent(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kit.parent / "state").mkdir()
    (kit.parent / "state" / "courier-audit.jsonl").write_text("{}\n")
    status, said = run(kit, capsys)
    assert status == 1
    assert "courier-audit.jsonl, line 1: is not an entry of an audit log" in said


def test_a_kit_file_that_was_changed(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_kit(kit, files=read_kit(kit).files | {"federation.yaml": "0" * 64})
    status, said = run(kit, capsys)
    assert status == 2
    assert f"{kit / 'federation.yaml'}: was changed" in said


def test_a_federation_without_a_network(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = kit / "federation.yaml"
    file.write_text("\n".join(line for line in file.read_text().splitlines() if not line.startswith("network")))
    seal_kit(kit, read_kit(kit))
    status, said = run(kit, capsys)
    assert status == 2
    assert "network: is missing" in said


def test_a_shared_folder_that_cannot_be_made(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kit.parent / "shared").write_text("a file")
    status, said = run(kit, capsys)
    assert status == 1
    assert str(kit.parent / "shared") in said


def test_a_shared_folder_with_another_courier(kit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = SharedFolder(kit.parent / "shared")
    shared.make()
    with shared.held_by("courier"):
        status, said = run(kit, capsys)
    assert status == 1
    assert "another courier works here" in said


def held(name: str = "a" * 32, message: str = "b" * 64, text: str = "{}") -> HeldTask:
    header = MessageHeader()
    header.metadata.message_id = message
    return HeldTask(name, header.SerializeToString(), text)


def test_a_mailbox_outlives_its_process(tmp_path: Path) -> None:
    changes: list[str] = []
    mailbox = Mailbox(tmp_path, lambda: changes.append("changed"))
    question = task("c" * 64)
    first, second = held(question.name, text=pack(question)), held("d" * 32)
    mailbox.put(first)
    mailbox.put(second)
    mailbox.put(held("d" * 32, "e" * 64))
    assert len(changes) == 2
    again = Mailbox(tmp_path)
    assert set(again.names()) == {question.name, "d" * 32}
    assert again.get(question.name) == first
    assert again.get("d" * 32).message == "e" * 64
    assert again.models() == {"c" * 64}
    assert again.needs("c" * 64, besides="d" * 32)
    assert not again.needs("c" * 64, besides=question.name)
    again.remove(question.name)
    assert Mailbox(tmp_path).names() == ("d" * 32,)


def test_a_packed_reply_stays_the_same_to_the_bit(tmp_path: Path) -> None:
    mailbox = Mailbox(tmp_path)
    reply = PackedReply("b" * 64, "text", b"\0header", b"\xfftree", {"c" * 64: b"\1object"})
    assert mailbox.sent("a" * 32) is None
    mailbox.put_sent("a" * 32, reply)
    assert Mailbox(tmp_path).sent("a" * 32) == reply


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"message": "b"}', b'{"objects": 5}', b"\xff"])
def test_a_damaged_reply_is_packed_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / f"{'a' * 32}.sent").write_bytes(content)
    assert Mailbox(tmp_path).sent("a" * 32) is None


@pytest.mark.parametrize("content", [{}, {"header": "?", "text": ""}, {"header": "", "text": ""}, [], 5])
def test_a_damaged_message_is_not_held(tmp_path: Path, content: object) -> None:
    (tmp_path / f"{'a' * 32}.json").write_text(json.dumps(content))
    assert Mailbox(tmp_path).names() == ()
