"""A federation in which one hospital's privacy budget runs out half-way: real apps, real ledgers, real training."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from client.consent.guard import TaskGuard, open_guard
from client.consent.site_config import SITE_FILE
from client.ledger.account import Account
from client.ledger.ledger import Ledger, Witness
from client.runner.app_call import ask, kind_of
from client.runner.client_app import SiteWeights, make_client_app
from client.runner.local_site import LedgerAccess, LocalSite, SiteData
from client.state_folder import AUDIT_FILE
from common.audit import read_entries, verify
from common.config.federation import FederationConfig
from common.imaging.phantoms.dataset import write_phantom_dataset
from common.models.unet3d import build_model
from common.plan.plan import Plan
from common.plan.privacy import PrivacyPlan
from common.planning.resolve import with_privacy
from common.privacy.accounting import epsilon_of
from common.privacy.calibration import calibrate
from common.protocol.codec import Failure, Result, WeightLayout, from_record, to_record, unpack_answer, unpack_question
from common.weights.encoding import vector_bytes
from common.weights.store import MemoryStore, WeightStore
from server.rounds.round_loop import Link, Patience
from server.rounds.weight_transfer import StoreTransfer
from server.run_store.folder import RunFolder
from server.run_store.gateway_folder import GatewayFolder
from server.simulation.inline_grid import InlineGrid
from tests import tiny
from tests.kits import approve, write_kit
from tests.server.fake_sites import FakeNetwork, GatewayWeights, begin, nodes, run_network, run_over, site

REPOSITORY = Path(__file__).resolve().parents[3]
ROUNDS = 5
NAMES = ("a", "b", "c")
LABELS = {1: "body", 2: "core", 3: "vessel"}
CONFIG = tiny.federation(
    rounds=ROUNDS,
    strategy={"min_sites": 2},
    training={"local_steps": 2, "precision": "float32", "augmentation": None},
    privacy={"epsilon": 6, "sample_rate": 0.5},
)


def noise() -> PrivacyPlan:
    assert CONFIG.privacy is not None
    return calibrate(CONFIG.privacy, ROUNDS, 2)


def after(rounds: int) -> float:
    """Epsilon of the patients who are trained on."""
    return epsilon_of([noise().training] * rounds, 1e-5)


class Hospitals(ClientApp):
    """Three hospitals, each with its own patients, ledger, decisions and limit.

    What stands between Flower and a site's app in a runner is here too: the audit log of what leaves.
    """

    def __init__(
        self,
        folder: Path,
        data: Mapping[str, Path],
        limit_of_c: float,
        config: FederationConfig = CONFIG,
        gateway: GatewayFolder | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.folder = folder
        self.plan = self.make_plan(config)
        self.store = MemoryStore()
        self._gateway = gateway
        self._guards = {name: self._open_guard(name, limit_of_c if name == "c" else 8) for name in NAMES}
        self._apps = {name: self._open(name, data[name]) for name in NAMES}

    @staticmethod
    def make_plan(config: FederationConfig = CONFIG) -> Plan:
        content = tiny.plan().model_dump()
        content["labels"] = LABELS
        content["model"]["classes"] = 4
        return with_privacy(Plan.model_validate(content), config)

    @property
    def layout(self) -> WeightLayout:
        return WeightLayout.of(build_model(self.plan.model))

    def __call__(self, message: Message, context: Context) -> Message:
        name = NAMES[int(context.node_config["partition-id"])]
        text = from_record(message.content)
        question = unpack_question(text)
        answer = ask(self._apps[name], "0" * 32, question, text)
        content = unpack_answer(answer)
        sends = isinstance(content, Result) and content.update is not None
        update_bytes = vector_bytes(self.layout.size, self.config.transport.upload) if sends else 0
        self._guards[name].record(kind_of(question), text, answer, update_bytes)
        if isinstance(content, Failure):
            return Message(Error(content.code, content.reason), reply_to=message)
        return Message(to_record(answer), reply_to=message)

    def _open_guard(self, name: str, limit: float) -> TaskGuard:
        state = self.state(name)
        kit, consent = write_kit(state.parent / "kit", self.config, self.plan, name), state.parent / "consent.json"
        approve(kit, state, consent)
        (state / SITE_FILE).write_text(f"privacy: {{required: true, max_epsilon: {limit}}}\n")
        return open_guard(kit, state, consent)

    def _open(self, name: str, data: Path) -> ClientApp:
        state = self.state(name)
        ledger = Ledger(self.ledger(name), Witness(state))
        cache = self.folder / "cache"
        site = LocalSite(
            self.config, self.plan, SiteData(name, data, cache, 0.3), "cpu", access=LedgerAccess(state, ledger)
        )
        store: WeightStore = self.store if self._gateway is None else GatewayWeights(self._gateway, name)
        return make_client_app(site, SiteWeights(store, store), self._guards[name])

    def state(self, name: str) -> Path:
        return self.folder / name / "state"

    def ledger(self, name: str) -> Path:
        return self.folder / name / "ledger.jsonl"

    def account(self, name: str) -> Account:
        return Ledger(self.ledger(name), Witness(self.state(name))).read()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    return {
        name: write_phantom_dataset(root / name, [5], seed=seed, shape=(32, 32, 32)) for seed, name in enumerate(NAMES)
    }


def run(hospitals: Hospitals, folder: RunFolder, grid: InlineGrid | None = None) -> list[dict[str, Any]]:
    """As a simulation."""
    begin(hospitals.config, hospitals.layout, folder, 0.01)
    grid = grid or InlineGrid(hospitals, nodes(3))
    link = Link(StoreTransfer(hospitals.store, "float32"), grid.message)
    run_over(grid, link, hospitals.config, hospitals.layout, 3, folder, labels=frozenset(LABELS))
    return folder.read_rounds()


def run_over_network(folder: RunFolder, make: Callable[[GatewayFolder], Hospitals]) -> list[dict[str, Any]]:
    hospitals: list[Hospitals] = []

    def app(gateway: GatewayFolder) -> ClientApp:
        hospitals.append(make(gateway))
        return hospitals[0]

    network = FakeNetwork(folder, [site(name, 0, 0.0) for name in NAMES], app=app)
    config, layout = hospitals[0].config, hospitals[0].layout
    begin(config, layout, folder, 0.01)
    run_network(config, network, layout, QUICK, labels=frozenset(LABELS))
    return folder.read_rounds()


def column(lines: list[dict[str, Any]], site: str, key: str) -> list[Any]:
    return [line["sites"].get(site, {}).get(key) for line in lines]


LIMIT_OF_C = (after(2) + after(3)) / 2


def test_a_site_whose_budget_runs_out_stops_and_the_others_finish(data: dict[str, Path], tmp_path: Path) -> None:
    hospitals, folder = Hospitals(tmp_path, data, LIMIT_OF_C), RunFolder.create(tmp_path / "run")
    lines = run(hospitals, folder)
    assert column(lines, "a", "status") == column(lines, "b", "status") == ["ok"] * (ROUNDS + 1)
    # The last message only scores: other patients, who have something left.
    assert column(lines, "c", "status") == ["ok", "ok", "failed", "failed", "failed", "ok"]
    assert column(lines, "c", "reason") == [None, None, *["privacy-budget"] * 3, None]
    state = folder.load_state()
    assert state is not None and state.finished and state.accepted_rounds == ROUNDS
    assert state.quarantine == {} and not any(map(any, state.conduct.values()))
    spent = column(lines, "a", "epsilon")
    assert spent == sorted(spent) and spent[-1] <= 6 and spent[1] < spent[2]
    assert column(lines, "c", "epsilon")[:3] == [*spent[:2], None]
    assert column(lines, "c", "epsilon")[-1] <= LIMIT_OF_C
    assert all(value is None for value in column(lines, "a", "train_loss"))


def test_what_was_spent_is_in_the_ledgers_and_nowhere_else(data: dict[str, Path], tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path, data, LIMIT_OF_C)
    lines = run(hospitals, RunFolder.create(tmp_path / "run"))
    rounds = {name: [item.entry.round for item in hospitals.account(name).rounds] for name in NAMES}
    assert rounds == {"a": [1, 2, 3, 4, 5, 6], "b": [1, 2, 3, 4, 5, 6], "c": [1, 2, 6]}
    for name in NAMES:
        log = hospitals.state(name) / AUDIT_FILE
        verify(log)
        entries = read_entries(log)
        sent = [entry.details for entry in entries if entry.event == "sent" and entry.details.get("epsilon")]
        assert [item["epsilon"] for item in sent] == [value for value in column(lines, name, "epsilon") if value]
        refused = [entry.details["error"] for entry in entries if entry.event == "sent" and "error" in entry.details]
        assert refused == (["privacy-budget"] * 3 if name == "c" else [])
        ledger = [entry.details["ledger_n"] for entry in entries if entry.event == "privacy_spent"]
        assert ledger[-1] == len(read_entries(hospitals.ledger(name)))


QUICK = Patience(
    deadline_seconds=300,
    silence_seconds=300,
    gathering_seconds=1,
    offline_seconds=300,
    stall_seconds=60,
    look_seconds=0.01,
    retry_seconds=0.05,
)


def test_over_a_network_the_site_is_asked_less_and_less(data: dict[str, Path], tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    lines = run_over_network(folder, lambda gateway: Hospitals(tmp_path, data, LIMIT_OF_C, gateway=gateway))
    assert column(lines, "a", "status") == column(lines, "b", "status") == ["ok"] * (ROUNDS + 1)
    # Asked once more in the next round, then not in the one after it.
    assert column(lines, "c", "reason")[2:5] == ["privacy-budget", "privacy-budget", None]
    assert column(lines, "c", "status")[4] is None
    state = folder.load_state()
    assert state is not None and state.quarantine == {} and state.accepted_rounds == ROUNDS


def test_a_limit_that_is_raised_lets_the_site_go_on(data: dict[str, Path], tmp_path: Path) -> None:
    """The site file is read anew; the next round is paid for, and the server need not be told."""
    hospitals, folder = Hospitals(tmp_path, data, after(1) * 1.001), RunFolder.create(tmp_path / "run")

    class Raising(InlineGrid):
        def push_messages(self, messages: Any) -> Any:
            messages = list(messages)
            if any(message.metadata.group_id == "3" for message in messages):
                (hospitals.state("c") / SITE_FILE).write_text("privacy: {max_epsilon: 8}\n")
            return super().push_messages(messages)

    lines = run(hospitals, folder, Raising(hospitals, nodes(3)))
    assert column(lines, "c", "status") == ["ok", "failed", "ok", "ok", "ok", "ok"]


def test_a_broken_ledger_stops_its_own_site_alone(data: dict[str, Path], tmp_path: Path) -> None:
    hospitals, folder = Hospitals(tmp_path, data, 8), RunFolder.create(tmp_path / "run")

    class Breaking(InlineGrid):
        def push_messages(self, messages: Any) -> Any:
            messages = list(messages)
            if any(message.metadata.group_id == "3" for message in messages):
                hospitals.ledger("c").unlink(missing_ok=True)
            return super().push_messages(messages)

    lines = run(hospitals, folder, Breaking(hospitals, nodes(3)))
    assert column(lines, "c", "reason") == [None, None, *["ledger"] * 4]
    assert column(lines, "a", "status") == ["ok"] * (ROUNDS + 1)


KILLED_IN_TRAINING = """
import os, signal, sys
from pathlib import Path
import numpy as np
from client.runner.client_app import SiteWeights, make_client_app
from client.runner.app_call import ask
from client.runner.local_site import LedgerAccess, LocalSite, SiteData
from client.ledger.ledger import Ledger, Witness
from common.protocol.codec import Task, pack
from common.weights.store import MemoryStore
from tests.server.simulation.test_privacy_budget import CONFIG, Hospitals

class Killer:
    def site_started(self, *_): pass
    def site_step(self, *_): os.kill(os.getpid(), signal.SIGKILL)

folder, data = map(Path, sys.argv[1:])
state = folder / "state"
state.mkdir()
ledger = Ledger(folder / "ledger.jsonl", Witness(state))
plan = Hospitals.make_plan()
access = LedgerAccess(state, ledger)
site = LocalSite(CONFIG, plan, SiteData("a", data, None, 0.3), "cpu", observer=Killer(), access=access)
size = site.open().trainer.layout.size
store = MemoryStore()
model = store.put([np.full(size, 0.01, "<f4")])
task = Task("r", CONFIG.digest(), 1, 5, True, model)
ask(make_client_app(site, SiteWeights(store, store)), task.name, task, pack(task))
"""


def test_a_site_that_is_killed_while_it_trains_has_paid(data: dict[str, Path], tmp_path: Path) -> None:
    """The spend is on disk before the first step is done; nothing was sent."""
    command = [sys.executable, "-W", "ignore", "-c", KILLED_IN_TRAINING, str(tmp_path), str(data["a"])]
    assert subprocess.run(command, cwd=REPOSITORY).returncode == -signal.SIGKILL
    account = Ledger(tmp_path / "ledger.jsonl", Witness(tmp_path / "state")).read()
    [found] = account.rounds
    assert (found.entry.run, found.entry.round) == ("r", 1)
    assert {line.purpose for line in found.entry.spends} == {"training", "validation"}
    [training] = [line for line in found.entry.spends if line.purpose == "training"]
    assert account.epsilon({"training": account.datasets[training.dataset]}, 1e-5) == after(1)


def test_a_site_that_requires_privacy_stays_away_from_a_federation_without(
    data: dict[str, Path], tmp_path: Path
) -> None:
    plain = CONFIG.model_copy(update={"privacy": None, "rounds": 2})
    folder, opened = RunFolder.create(tmp_path / "run"), []

    def make(gateway: GatewayFolder) -> Hospitals:
        hospitals = Hospitals(tmp_path, data, 8, plain, gateway)
        for name in "ab":
            (hospitals.state(name) / SITE_FILE).write_text("privacy: {required: false}\n")
        opened.append(hospitals)
        return hospitals

    lines = run_over_network(folder, make)
    assert column(lines, "a", "status") == column(lines, "b", "status") == ["ok"] * 3
    assert column(lines, "c", "status") == [None] * 3
    assert '"privacy-required"' in (folder.path / "events.jsonl").read_text()
    assert not opened[0].ledger("a").exists()
