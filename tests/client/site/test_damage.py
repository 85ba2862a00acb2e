"""Whatever happens to a file of a hospital's kit or state is named, or changes nothing that counts."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import pytest

from client.consent.disclosure import read_plan
from client.consent.site_config import SITE_FILE, SiteConfig
from client.courier.courier import open_log
from client.courier.flower_messages import PackedReply
from client.courier.mailbox import HeldTask, Mailbox, read_kept, write_kept
from client.flower import MessageHeader
from client.ledger.identifiers import Identifiers, secret_file
from client.ledger.ledger import Ledger, Witness
from client.ledger.patient_identity import PatientIndex
from client.runner.site_split import labelled_cases
from client.runner.task_journal import TaskJournal
from client.shared_folder import SharedFolder
from client.site.data_item import check_data
from client.site.preflight import check_approval, check_federation
from client.site.preflight_item import Item
from client.state_folder import StateFolder, site_status, write_json
from common.audit import head_of
from common.config.federation import load_federation
from common.config.kit import read_kit
from common.errors import FedvoxError, ProtocolError
from common.imaging.datasets.comparison import Wanted
from common.protocol.codec import pack, unpack_answer, unpack_question
from common.protocol.messages import Result, Task
from common.weights.store import FileStore
from tests.client.runner.site import PRIVACY, RunnerSite
from tests.kits import approve

STOPS = "an error names it: preflight and start stop, and no task is done"
ASIDE = "it is named and put aside; what it held is asked for again, or counts as not done"
NAMED = "it is named, and not used"
NOTHING = "nothing that counts changes"
FATES = {
    "kit/federation.yaml": STOPS,
    "kit/plan.json": STOPS,
    "kit/kit.yaml": STOPS,
    "consent.json": STOPS,
    "ledger.jsonl": STOPS,
    "ledger.jsonl.head": STOPS,
    "ledger.jsonl.secret": STOPS,
    "state/site.yaml": STOPS,
    "state/approvals.json": STOPS,
    "state/audit.jsonl": STOPS,
    "state/audit.jsonl.head": STOPS,
    "state/ledger-witness.json": STOPS,
    "state/courier-audit.jsonl": STOPS,
    "state/courier-audit.jsonl.head": STOPS,
    "state/courier/log-begun": NOTHING,
    "state/journal/*.json": ASIDE,
    "state/courier/*.json": ASIDE,
    "state/courier/*.sent": ASIDE,
    "shared/outbox/*.reply": NAMED,
    "shared/inbox/*.task": NAMED,
    "shared/inbox/*": NAMED,
    "shared/outbox/*": NAMED,
    "state/patients.fedvox-json": NOTHING,
    "state/prints.fedvox-json": NOTHING,
    "state/data-check.json": NOTHING,
    "state/global-model/*": NAMED,  # the same file as in the inbox
    "state/runner.json": NOTHING,
    "state/status.json": NOTHING,
    "state/contact": NOTHING,
    "state/lock": NOTHING,
    "shared/progress.json": NOTHING,
    "runner.log": NOTHING,
    "data/*": "the hospital's own",
}
"""What becomes of a site when a file is damaged, by a pattern of its name; the first that matches counts."""
RULE = "(?P<patient>.*)"
WEAKER, STRICTER = "limits: {max_rounds: 12}\n", f"limits: {{max_rounds: 9}}\npatient_from_name: {RULE}\n"
SAID = {
    ("state/approvals.json", "delete"): "not approved",
    ("state/ledger-witness.json", "flip"): "ledger",
    ("kit/kit.yaml", "of_another_site"): "federation.yaml",
}
"""What is said instead of a file's name."""


@dataclass(frozen=True)
class Sites:
    """Folders: a site after its second round (``now``), after its first (``older``), and another's (``other``)."""

    folder: Path
    tasks: tuple[str, ...]
    before: dict[str, object]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sites:
    folder = tmp_path_factory.mktemp("sites")
    site = RunnerSite(folder / "now", 1, PRIVACY)
    (site.state.path / SITE_FILE).write_text(STRICTER)
    approve(site.kit, site.state.path, site.consent)
    site.start()
    tasks = []
    try:
        for number in (1, 2):
            tasks.append(site.give(site.task(number, seed=number)))
            site.answer(tasks[-1])
            keep_messages(site, tasks[-1])
            log_sent(site, tasks[-1])
            if number == 1:
                shutil.copytree(site.folder, folder / "older")
                (folder / "older/state" / SITE_FILE).write_text(WEAKER)
        site.terminate()
    finally:
        site.kill()
    other = RunnerSite(folder / "other", 2, PRIVACY)
    (other.state.path / SITE_FILE).write_text("paused: false\n")
    secret_file(other.ledger).write_text(f"{'7' * 64}\n")
    log_sent(other, "f" * 32)
    look(folder / "now", tasks)  # fills the caches
    return Sites(folder, tuple(tasks), look(folder / "now", tasks)[0])


def log_sent(site: RunnerSite, task: str) -> None:
    """Writes what a courier logs when it sends a reply, and what a supervisor says meanwhile."""
    open_log(site.state.path).append("sending", task=task)
    write_json(site.state.status, {"role": "site", "pid": 1, "processes": {"courier": {"pid": 2}}})
    site.state.contact.touch()


def keep_messages(site: RunnerSite, task: str) -> None:
    """Writes what a courier keeps of a task until its reply has arrived."""
    header = MessageHeader()
    header.metadata.message_id = task
    mailbox = Mailbox(site.state.path / "courier")
    mailbox.put(HeldTask(task, header.SerializeToString(), site.shared.task(task).read_text()))
    mailbox.put_sent(task, PackedReply(task, site.shared.read_reply(task), b"header", b"tree", {"object": b"content"}))
    write_kept(mailbox.node_file, {"node": 2**60 + len(mailbox.names())})


def judged(check: Callable[[], Item]) -> str:
    item = check()
    if item.severity == "error" or "no task" in item.text:
        raise FedvoxError(item.text)
    return item.severity


def status_of(state: Path) -> object:
    with StateFolder(state).locked():
        return site_status(StateFolder(state))["running"]


def look(folder: Path, tasks: Sequence[str]) -> tuple[dict[str, object], list[str]]:
    """What everything that reads these files makes of them: what counts, and the errors."""
    kit, state, shared = folder / "kit", folder / "state", SharedFolder(folder / "shared")
    ledger = Ledger(folder / "ledger.jsonl", Witness(state))

    def federation() -> Item:
        return check_federation(kit, read_kit(kit, "site"), load_federation(kit / "federation.yaml"))

    def patients() -> object:
        index = PatientIndex(state, Identifiers(ledger, may_make=False).mark)
        terms = SiteConfig(patient_from_name=RULE).data_terms
        return index.identify(list(labelled_cases(folder / "data", terms=terms).values()))

    def question(task: str) -> str:
        try:
            asked = unpack_question(shared.task(task).read_text(errors="replace"))
        except ProtocolError as error:
            raise FedvoxError(f"{shared.task(task)}: {error}") from None
        if not isinstance(asked, Task) or asked.name != task:
            raise FedvoxError(f"{shared.task(task)}: the file is named after another task")
        FileStore(shared.inbox).verified(asked.model)
        return asked.name

    def reply(task: str) -> str:
        answer = unpack_answer(shared.read_reply(task))
        assert isinstance(answer, Result) and answer.update is not None
        FileStore(shared.outbox).verified(answer.update)
        return pack(answer)

    wanted = Wanted({1: "organ", 2: "core", 3: "node"}, ("synthetic",), "MR", None)
    mailbox = Mailbox(state / "courier")
    readers: dict[str, Callable[[], object]] = {
        "kit": partial(judged, federation),
        "plan": lambda: read_plan(kit / "plan.json", load_federation(kit / "federation.yaml")),
        "approval": partial(judged, lambda: check_approval(kit, state, folder / "consent.json")),
        "ledger": lambda: str(ledger.read().rounds),
        "patients": patients,
        "status": lambda: status_of(state),
        "courier's log": lambda: len(open_log(state).kept()),
        "data": partial(judged, lambda: check_data(folder / "data", wanted, state / "data-check.json")),
        "node": lambda: read_kept(mailbox.node_file, "it is put aside"),
    }
    for task in tasks:
        readers[f"record {task}"] = partial(TaskJournal(state / "journal").find, task)
        readers[f"held {task}"] = partial(mailbox.get, task)
        readers[f"sent {task}"] = partial(mailbox.sent, task)
        readers[f"task {task}"] = partial(question, task)
        readers[f"reply {task}"] = partial(reply, task)
    found, told = dict[str, object](), list[str]()
    for name, read in readers.items():
        try:
            found[name] = read()
        except (FedvoxError, OSError, KeyError) as error:
            told.append(str(error))
            found[name] = None
    return found, told


def flip(sites: Sites, name: str, content: bytes) -> bytes:
    if not content:
        return b"\4"
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def cut(sites: Sites, name: str, content: bytes) -> bytes:
    return content[: len(content) // 2]


def empty(sites: Sites, name: str, content: bytes) -> bytes:
    return b""


def of_another_site(sites: Sites, name: str, content: bytes) -> bytes:
    file = sites.folder / "other" / name
    return file.read_bytes() if file.exists() else content


def of_an_older_copy(sites: Sites, name: str, content: bytes) -> bytes:
    file = sites.folder / "older" / name
    return file.read_bytes() if file.exists() else content


def delete(sites: Sites, name: str, content: bytes) -> None:
    return None


Damage = Callable[[Sites, str, bytes], bytes | None]
DAMAGES = [
    *(flip, of_an_older_copy, delete),
    *(pytest.param(damage, marks=pytest.mark.long) for damage in (cut, empty, of_another_site)),
]
PATTERNS = [pattern for pattern in FATES if not pattern.startswith("data")]


def files_of(site: Path) -> dict[str, list[str]]:
    """The names of all files, by pattern."""
    found: dict[str, list[str]] = {}
    for path in sorted(site.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            name = path.relative_to(site).as_posix()
            own = next((pattern for pattern in FATES if fnmatch(name, pattern)), f"{name}, which is not in FATES")
            found.setdefault(own, []).append(name)
    return found


def test_every_file_has_a_fate(sites: Sites) -> None:
    assert set(files_of(sites.folder / "now")) == set(FATES)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_damage_is_named_or_changes_nothing(
    sites: Sites, tmp_path: Path, caplog: pytest.LogCaptureFixture, pattern: str, damage: Damage
) -> None:
    name = files_of(sites.folder / "now")[pattern][0]
    content = (sites.folder / "now" / name).read_bytes()
    after = damage(sites, name, content)
    if after == content:
        return
    # The same place, which the ledger and the digests of the scans know.
    site = sites.folder / "now"
    shutil.copytree(site, tmp_path / "kept", symlinks=True)
    try:
        (site / name).unlink() if after is None else (site / name).write_bytes(after)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found, told = look(site, sites.tasks)
        check(site, name, pattern, damage, found == sites.before, "\n".join([*told, *caplog.messages]))
        used = {what: content for what, content in found.items() if content is not None}
        assert used.items() <= sites.before.items(), "what is used is what was written"
    finally:
        for file in files_of(site).values():
            for one in file:
                if not one.startswith("data/"):
                    (site / one).unlink()
        for file_kept in (tmp_path / "kept").rglob("*"):
            own = file_kept.relative_to(tmp_path / "kept")
            if file_kept.is_file() and own.parts[0] != "data":
                shutil.copy2(file_kept, site / own)


LOGS = ["ledger.jsonl", "state/audit.jsonl", "state/courier-audit.jsonl"]


@pytest.mark.parametrize("log", LOGS)
def test_a_log_that_is_deleted_with_its_head_is_named(sites: Sites, tmp_path: Path, log: str) -> None:
    site = sites.folder / "now"
    files = [site / log, head_of(site / log)]
    for file in files:
        file.rename(tmp_path / file.name)
    try:
        _, told = look(site, sites.tasks)
        assert Path(log).name in "\n".join(told)
        assert not any(file.exists() for file in files), "whoever reads begins no new one"
    finally:
        for file in files:
            (tmp_path / file.name).rename(file)


def check(site: Path, name: str, pattern: str, damage: Damage, is_same: bool, told: str) -> None:
    fate = FATES[pattern]
    if fate == NOTHING:
        assert is_same, told
    elif fate == ASIDE and damage is delete:
        assert not (site / name).exists()
    else:
        assert is_same or SAID.get((pattern, damage.__name__), Path(name).name) in told, told
    if fate == ASIDE and damage in (flip, cut, empty):
        assert (site / name).with_name(f"{Path(name).name}.damaged").exists()
