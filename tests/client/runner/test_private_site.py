"""A site under differential privacy, asked as a server asks it: it pays first, and only what is noised leaves."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from client.runner.app_call import ask as ask_app
from client.runner.client_app import Site, SiteWeights, coarse, make_client_app
from client.training.dp_trainer import PrivateTrainer, make_trainer
from common.config.federation import FederationConfig
from common.errors import FedvoxError
from common.imaging.phantoms.dataset import write_phantom_dataset
from common.plan.privacy import Spend
from common.planning.resolve import with_privacy
from common.privacy.accounting import epsilon_of
from common.protocol.codec import Answer, pack, unpack_answer
from common.protocol.messages import ErrorCode, Failure, Result, Task
from common.weights.encoding import Vector, vector_of
from common.weights.store import MemoryStore
from server.simulation.partition import SiteCases, SitePartition
from server.simulation.simulated_sites import SimulatedBudget, SimulatedSites
from tests import tiny

CASES = [tiny.ball(f"case-{index}", index) for index in range(5)]
LABELS = {1: "body", 2: "core", 3: "vessel"}


class BudgetSpentError(FedvoxError):
    code = ErrorCode.PRIVACY_BUDGET


class Purse:
    """A budget that says what was asked of it; it may be empty."""

    def __init__(self, epsilon: float | None) -> None:
        self.epsilon = epsilon
        self.asked: list[tuple[str, int, list[Spend]]] = []

    def spend(self, run: str, round: int, spends: Sequence[Spend]) -> float:
        self.asked.append((run, round, list(spends)))
        if self.epsilon is None:
            raise BudgetSpentError("nothing is left")
        return self.epsilon


class Watcher:
    """An observer that keeps what it is told, and how much was paid by then."""

    def __init__(self, purse: Purse) -> None:
        self._purse = purse
        self.steps: list[tuple[int, float | None, int]] = []

    def site_started(self, round: int, site: str, steps: int) -> None: ...
    def site_step(self, round: int, site: str, step: int, steps: int, loss: float | None) -> None:
        self.steps.append((step, loss, len(self._purse.asked)))


def federation(**privacy: object) -> FederationConfig:
    values = {"epsilon": 5, "sample_rate": 0.5} | privacy
    training = {"local_steps": 2, "precision": "float32", "augmentation": None}
    return tiny.federation(privacy=values, training=training)


WEIGHTS = MemoryStore()


def ask(
    purse: Purse, train: bool = True, scored_on: int = 1, **privacy: object
) -> tuple[Answer, Watcher, PrivateTrainer]:
    config = federation(**privacy)
    trainer = make_trainer(config, tiny.plan_for(config), torch.device("cpu"))
    watcher = Watcher(purse)
    cases = CASES[:-1], CASES[-1:] * scored_on
    site = Site("a", *cases, 0, config.digest(), trainer, watcher, privacy=trainer.privacy, budget=purse)
    model = WEIGHTS.put([np.zeros(trainer.layout.size, "<f4")])
    task = Task("run", config.digest(), 3 if train else 4, 3, train, model)
    app = make_client_app(lambda context: site, SiteWeights(WEIGHTS, WEIGHTS))
    return unpack_answer(ask_app(app, task.name, task, pack(task))), watcher, trainer


def unpacked(answer: Answer, trainer: PrivateTrainer) -> tuple[Result, Vector | None]:
    assert isinstance(answer, Result)
    update = None if answer.update is None else WEIGHTS.get(answer.update)
    return answer, None if update is None else vector_of(update, trainer.layout.size, "float32")


def test_a_round_is_paid_for_at_once_and_before_it_begins() -> None:
    purse = Purse(1.25)
    reply, watcher, trainer = ask(purse)
    assert purse.asked == [("run", 3, [trainer.privacy.training, trainer.privacy.validation])]
    assert watcher.steps == [(1, None, 1), (2, None, 1)]
    result, update = unpacked(reply, trainer)
    assert result.epsilon == 1.25
    assert math.isnan(result.train_loss)
    assert math.isnan(result.validation_loss)
    assert 0 <= result.dice[1] <= 1
    assert update is not None
    assert np.abs(update).max() > 0


def test_the_last_message_costs_the_scores_alone() -> None:
    purse = Purse(1.0)
    _, _, trainer = ask(purse, train=False)
    assert purse.asked == [("run", 4, [trainer.privacy.validation])]


@pytest.mark.parametrize(("scored_on", "privacy"), [(0, {}), (1, {"validation": "off"})])
def test_scores_that_do_not_leave_cost_nothing(scored_on: int, privacy: dict[str, str]) -> None:
    purse = Purse(1.0)
    reply, _, trainer = ask(purse, scored_on=scored_on, **privacy)
    assert purse.asked == [("run", 3, [trainer.privacy.training])]
    assert math.isnan(unpacked(reply, trainer)[0].dice[1])


def test_no_private_site_scores_the_model_that_it_trained() -> None:
    """Whatever its configuration says: nothing has paid for another score."""
    config = federation()
    asked = config.training.model_copy(update={"validate_local": 1})
    trainer = make_trainer(config.model_copy(update={"training": asked}), tiny.plan_for(config), torch.device("cpu"))
    assert trainer.config.scores_own_model(3)
    purse = Purse(1.0)
    site = Site("a", CASES[:-1], CASES[-1:], 0, config.digest(), trainer, privacy=trainer.privacy, budget=purse)
    model = WEIGHTS.put([np.zeros(trainer.layout.size, "<f4")])
    task = Task("run", config.digest(), 3, 3, True, model)
    app = make_client_app(lambda context: site, SiteWeights(WEIGHTS, WEIGHTS))
    result, _ = unpacked(unpack_answer(ask_app(app, task.name, task, pack(task))), trainer)
    assert math.isnan(result.local_dice) and result.dice[1] >= 0


def test_nothing_is_computed_that_cannot_be_paid() -> None:
    purse = Purse(None)
    reply, watcher, _ = ask(purse)
    assert reply == Failure(ErrorCode.PRIVACY_BUDGET, "BudgetSpentError")
    assert watcher.steps == []


def test_a_site_whose_parts_do_not_belong_together_is_refused() -> None:
    private, purse = make_trainer(federation(), tiny.plan_for(federation()), torch.device("cpu")), Purse(1.0)
    other = make_trainer(federation(epsilon=2), tiny.plan_for(federation(epsilon=2)), torch.device("cpu")).privacy
    plain = tiny.trainer()
    Site("a", CASES, [], 0, "d", private, privacy=private.privacy, budget=purse)
    Site("a", CASES, [], 0, "d", plain)
    wrong = [
        (plain, private.privacy, purse),
        (private, None, None),
        (private, private.privacy, None),
        (private, other, purse),
        (plain, None, purse),
    ]
    for trainer, privacy, budget in wrong:
        with pytest.raises(ValueError, match="do not belong together"):
            Site("a", CASES, [], 0, "d", trainer, privacy=privacy, budget=budget)


def test_every_simulated_site_of_a_private_federation_trains_privately(tmp_path: Path) -> None:
    """Also the pooled one, and in the process that a copy is sent to."""
    data = write_phantom_dataset(tmp_path / "data", (2, 2), 0, (24, 24, 24))
    names = sorted(path.name.removesuffix(".nii.gz") for path in (data / "labelsTr").glob("*.nii.gz"))
    split = {
        "a": SiteCases(train=(names[0],), validation=(names[1],)),
        "b": SiteCases(train=(names[2],), validation=(names[3],)),
    }
    partition = SitePartition(method="column", seed=0, sites=split)
    config = federation()
    plan = tiny.plan().model_copy(update={"labels": LABELS})
    plan = plan.model_copy(update={"model": plan.model.model_copy(update={"classes": 4})})
    sites = SimulatedSites(config, with_privacy(plan, config), partition, data, None, "cpu")
    copied = SimulatedSites.__new__(SimulatedSites)
    copied.__dict__.update(sites.__getstate__())
    for site in (sites.open("a"), copied.open("b"), sites.pooled(config).open("pooled")):
        assert isinstance(site.trainer, PrivateTrainer)
        assert isinstance(site.budget, SimulatedBudget)
        assert site.privacy == site.trainer.privacy
    plain = SimulatedSites(config.model_copy(update={"privacy": None}), plan, partition, data, None, "cpu")
    assert not isinstance(plain.open("a").trainer, PrivateTrainer)


def test_a_simulated_budget_is_a_function_of_the_round() -> None:
    config = federation()
    plan = make_trainer(config, tiny.plan_for(config), torch.device("cpu")).privacy
    budget = SimulatedBudget(plan, 1e-5)
    both = [plan.training, plan.validation]
    spent = [budget.spend("r", number, both) for number in (1, 2, 3)] + [budget.spend("r", 4, [plan.validation])]
    assert spent == sorted(spent)
    assert 0.98 * 5 < spent[-1] <= 5
    assert spent[1] == budget.spend("another", 2, both)
    assert spent[1] == max(epsilon_of([plan.training] * 2, 1e-5), epsilon_of([plan.validation] * 2, 1e-5))
    # The last message trains nobody: without scores it costs nothing more.
    silent = SimulatedBudget(
        make_trainer(
            federation(validation="off"), tiny.plan_for(federation(validation="off")), torch.device("cpu")
        ).privacy,
        1e-5,
    )
    assert silent.spend("r", 4, []) == silent.spend("r", 3, [silent.plan.training])


def test_durations_leave_on_a_coarse_grid() -> None:
    """How long a step takes depends on how many patients were drawn."""
    answer, _, _ = ask(Purse(1.0))
    assert isinstance(answer, Result)
    seconds = (answer.seconds, answer.seconds_data, answer.seconds_compute, answer.seconds_evaluate)
    assert min(seconds) > 0
    assert set(seconds) <= {1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0}


@pytest.mark.parametrize(
    ("seconds", "sent"),
    [
        (0.0, 0.0),
        (1e-9, 1.0),
        (1.0, 1.0),
        (1.01, 2.0),
        (4.2, 5.0),
        (5.1, 10.0),
        (10.0, 10.0),
        (99.9, 100.0),
        (5001, 1e4),
    ],
)
def test_durations_are_rounded_up(seconds: float, sent: float) -> None:
    assert coarse(seconds) == sent
