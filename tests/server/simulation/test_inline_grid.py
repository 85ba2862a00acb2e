"""A site's app behind the grid of a simulation: what it is asked, and what leaves it, also when something is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.runner.client_app import Site, SiteWeights, make_client_app
from client.runner.gradient_memory import GradientMemory
from client.site_vectors import SiteVectors
from common.errors import FedvoxError
from common.protocol.codec import (
    ErrorCode,
    Hello,
    Question,
    Refusal,
    Result,
    SiteInfo,
    Task,
    from_record,
    pack,
    to_record,
    unpack_answer,
)
from common.weights.encoding import Encoding, encode, vector_bytes, vector_of
from common.weights.store import MemoryStore
from server.simulation.inline_grid import InlineGrid
from tests import tiny

DIGEST = "the one that it agreed to"


@dataclass
class Hospital:
    """One real site, as a server reaches it."""

    site: Site = field(default_factory=lambda: tiny.site("a", 1, DIGEST))
    inbox: MemoryStore = field(default_factory=MemoryStore)
    outbox: MemoryStore = field(default_factory=MemoryStore)

    def app(self, guard: Guard | None = None) -> ClientApp:
        return make_client_app(lambda context: self.site, SiteWeights(self.inbox, self.outbox), guard)

    @property
    def size(self) -> int:
        return self.site.trainer.layout.size

    def model(self, encoding: Encoding = "float32", size: int | None = None) -> str:
        """Weights for it to fetch."""
        values = np.random.default_rng(0).normal(0, 0.1, self.size if size is None else size)
        return self.inbox.put([encode(values.astype(np.float32), encoding)])

    def task(self, **values: object) -> Task:
        task = Task("r1", DIGEST, 1, 3, True, self.model())
        return replace(task, **values)  # type: ignore[arg-type]

    def ask(self, question: Question | RecordDict, kind: str = "train", guard: Guard | None = None) -> Message:
        grid = InlineGrid(self.app(guard), {1: {}})
        content = question if isinstance(question, RecordDict) else to_record(pack(question))
        [reply] = grid.send_and_receive([grid.message(content, 1, kind)])
        return reply

    def result(self, task: Task) -> Result:
        answer = unpack_answer(from_record(self.ask(task, "train" if task.train else "evaluate").content))
        assert isinstance(answer, Result)
        return answer


class Guard:
    """A hospital that says no."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.asked: list[str] = []

    def check(self, digest: str) -> None:
        self.asked.append(digest)
        if self.error is not None:
            raise self.error

    def begin(self, task: Task) -> Callable[[], None]:
        return lambda: None

    def shares_personal_score(self) -> bool:
        return False


@pytest.fixture
def hospital() -> Hospital:
    return Hospital()


def test_a_greeting_is_answered_with_who_it_is(hospital: Hospital) -> None:
    info = unpack_answer(from_record(hospital.ask(Hello("r1", DIGEST), "query.hello").content))
    assert isinstance(info, SiteInfo)
    assert (info.site, info.train_examples, info.validation_examples) == ("a", 3, 1)
    assert (info.device, info.precision) == ("cpu", "float32")


@pytest.mark.parametrize("upload", ["float32", "bfloat16", "int8"])
def test_an_update_is_put_beside_the_answer_in_the_form_that_was_asked_for(
    hospital: Hospital, upload: Encoding
) -> None:
    result = hospital.result(hospital.task(upload=upload))
    assert result.update is not None
    content = hospital.outbox.get(result.update)
    assert content.size == vector_bytes(hospital.size, upload)
    update = vector_of(content, hospital.size, upload)
    assert np.isfinite(update).all()
    assert np.abs(update).max() > 0
    plain = Hospital()
    whole = plain.result(plain.task()).update
    expected = vector_of(plain.outbox.get(str(whole)), plain.size, "float32")
    np.testing.assert_allclose(update, expected, atol=0.01 * float(np.abs(expected).max()))


def test_it_works_on_the_model_that_the_task_names(hospital: Hospital) -> None:
    """In whatever form that is."""
    half = hospital.result(hospital.task(model=hospital.model("bfloat16"), download="bfloat16"))
    whole = hospital.result(hospital.task())
    assert half.validation_loss == pytest.approx(whole.validation_loss, rel=0.02)
    zeros = hospital.inbox.put([np.zeros(hospital.size, "<f4")])
    assert hospital.result(hospital.task(model=zeros)).validation_loss != pytest.approx(whole.validation_loss, rel=1e-4)


def test_without_training_there_is_no_update(hospital: Hospital) -> None:
    result = hospital.result(hospital.task(train=False, round=4))
    assert (result.update, result.steps) == (None, 0)
    assert math.isnan(result.train_loss)
    assert 0 <= result.mean_dice <= 1


def test_the_model_that_was_trained_is_scored_in_the_rounds_that_were_agreed_on() -> None:
    hospital = Hospital(tiny.site("a", 1, DIGEST, validate_local=2))
    first, second = (hospital.result(hospital.task(round=number)) for number in (1, 2))
    assert math.isnan(first.local_dice) and math.isnan(hospital.result(hospital.task(train=False, round=4)).local_dice)
    update = vector_of(hospital.outbox.get(str(second.update)), hospital.size, "float32")
    sent = vector_of(hospital.inbox.get(hospital.model()), hospital.size, "float32")
    trained = hospital.inbox.put([sent + update])
    assert second.local_dice == hospital.result(hospital.task(train=False, model=trained, round=4)).mean_dice


def one_step(folder: Path, name: str) -> Hospital:
    """A hospital that does one step of SGD in each of three rounds, with an algorithm that keeps something."""
    training = {"optimizer": "sgd", "local_steps": 1, "momentum": 0, "gradient_clip": 0, "weight_decay": 0}
    config = tiny.federation(strategy={"name": name}, training=training)
    memory = GradientMemory(config, SiteVectors(folder, "a"))
    return Hospital(replace(tiny.site("a", 1, DIGEST, rounds=3, **training), memory=memory))


def test_scaffold_corrects_steps_and_remembers_the_mean_gradient(tmp_path: Path) -> None:
    """With one step, the update is -rate * (gradient + c - c_i), and then c_i is the gradient."""
    hospital = one_step(tmp_path, "scaffold")
    size = hospital.size
    weights = np.random.default_rng(0).normal(0, 0.1, size).astype(np.float32)
    control = np.random.default_rng(1).normal(0, 0.1, size).astype(np.float32)
    gradients = []
    for number, counted in ((1, 0), (2, 1), (3, 1), (2, 1)):
        kept = SiteVectors(tmp_path, "a").read("r1", counted + 1).vectors.get("gradient", np.zeros(size))
        model = hospital.inbox.put([weights, control])
        result = hospital.result(hospital.task(model=model, round=number, counted_last=counted))
        update = vector_of(hospital.outbox.get(str(result.update)), size, "float32")
        rate = 2e-3 * (1 - (number - 1) / 3) ** 0.9
        gradients.append(-update / rate - control + kept)
        remembered = SiteVectors(tmp_path, "a").read("r1", number + 1).vectors["gradient"]
        np.testing.assert_allclose(remembered, gradients[-1], atol=2e-4)
    # The second round was trained again, from the same vectors.
    np.testing.assert_array_equal(gradients[1], gradients[3])
    assert np.abs(gradients[0]).max() > 0.01


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_without_what_it_kept_a_site_does_not_train(tmp_path: Path, name: str) -> None:
    hospital = one_step(tmp_path, name)
    weights = [np.zeros(hospital.size, "<f4")] * (2 if name == "scaffold" else 1)
    model = hospital.inbox.put(weights)
    error = hospital.ask(hospital.task(model=model, round=2, counted_last=1)).error
    assert (error.code, error.reason) == (ErrorCode.INTERNAL, "DamagedFileError")
    assert hospital.result(hospital.task(model=model, train=False, round=4, counted_last=1)).update is None


@pytest.mark.parametrize("behind", [0, 2, math.nan])
def test_a_model_without_the_vectors_that_belong_to_it_is_refused(tmp_path: Path, behind: float) -> None:
    hospital = one_step(tmp_path, "scaffold")
    weights = np.zeros(hospital.size, "<f4")
    vectors = [weights + np.float32(behind)] if math.isnan(behind) else [weights] * int(behind)
    error = hospital.ask(hospital.task(model=hospital.inbox.put([weights, *vectors]))).error
    assert (error.code, error.reason) == (ErrorCode.BAD_TASK, "ProtocolError")


def test_the_weights_of_the_store_are_not_written_to(hospital: Hospital) -> None:
    """They may be a file that is mapped: training works on a copy."""
    task = hospital.task()
    before = hospital.inbox.get(task.model).copy()
    hospital.result(task)
    np.testing.assert_array_equal(hospital.inbox.get(task.model), before)


def test_what_was_refused_last_is_told_in_the_log(hospital: Hospital, caplog: pytest.LogCaptureFixture) -> None:
    hospital.result(hospital.task(refused_last=Refusal.NORM_OUTLIER))
    assert "norm-outlier" in caplog.text


def failed(reply: Message) -> tuple[int, str]:
    assert reply.has_error()
    assert not reply.has_content()
    return reply.error.code, reply.error.reason


def no_message(text: str) -> RecordDict:
    return to_record(text)


BAD_CONTENT: dict[str, RecordDict] = {
    "nothing": RecordDict(),
    "something else": RecordDict({"fedvox": ConfigRecord({"json": 3})}),
    "no JSON": no_message("{"),
    "another version": no_message(json.dumps(json.loads(pack(Hello("r1", DIGEST))) | {"format": 2})),
    "a field more": no_message(json.dumps(json.loads(pack(Hello("r1", DIGEST))) | {"command": "rm"})),
    "an answer": no_message(pack(SiteInfo("a", 1, 1, "0", "0", "0", "0", "cpu", "float32"))),
}


@pytest.mark.parametrize("content", BAD_CONTENT.values(), ids=BAD_CONTENT)
@pytest.mark.parametrize("kind", ["train", "evaluate", "query.hello"])
def test_what_is_no_message_is_refused(hospital: Hospital, content: RecordDict, kind: str) -> None:
    assert failed(hospital.ask(content, kind)) == (ErrorCode.BAD_TASK, "ProtocolError")


@pytest.mark.parametrize("size", [0, -1, 1])
def test_a_model_of_another_size_is_refused(hospital: Hospital, size: int) -> None:
    model = hospital.model(size=hospital.size + size if size else 0)
    assert failed(hospital.ask(hospital.task(model=model))) == (ErrorCode.BAD_TASK, "ProtocolError")


def test_a_model_in_another_form_than_the_task_says_is_refused(hospital: Hospital) -> None:
    assert failed(hospital.ask(hospital.task(download="bfloat16"))) == (ErrorCode.BAD_TASK, "ProtocolError")


def test_a_model_that_did_not_come_is_no_crash(hospital: Hospital) -> None:
    code, reason = failed(hospital.ask(hospital.task(model="f" * 64)))
    assert (ErrorCode(code), reason) == (ErrorCode.INTERNAL, "MissingWeightsError")


def test_another_federation_is_refused(hospital: Hospital) -> None:
    for question in (Hello("r1", "another"), hospital.task(digest="another")):
        assert failed(hospital.ask(question)) == (ErrorCode.WRONG_FEDERATION, "WrongFederationError")


class ReluctantError(FedvoxError):
    code = ErrorCode.PAUSED


@pytest.mark.parametrize(("error", "code"), [(ReluctantError("for Jane Doe"), 1011), (RuntimeError("Jane Doe"), 1000)])
def test_without_the_guards_leave_the_site_is_not_even_opened(error: Exception, code: int) -> None:
    def open_site(context: Context) -> Site:
        raise AssertionError("opened")

    store, guard = MemoryStore(), Guard(error)
    app = make_client_app(open_site, SiteWeights(store, store), guard)
    grid = InlineGrid(app, {1: {}})
    [reply] = grid.send_and_receive([grid.message(to_record(pack(Hello("r1", DIGEST))), 1, "query.hello")])
    assert failed(reply) == (code, type(error).__name__)
    assert guard.asked == [DIGEST]
    assert "Jane" not in str(reply.error)


def test_with_the_guards_leave_it_answers(hospital: Hospital) -> None:
    assert hospital.ask(Hello("r1", DIGEST), "query.hello", Guard(None)).has_content()


def echo() -> tuple[ClientApp, list[int]]:
    app, seen = ClientApp(), list[int]()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        seen.append(context.node_id)
        return Message(message.content, reply_to=message)

    return app, seen


def contents(messages: Iterable[Message]) -> list[str]:
    return [from_record(message.content) for message in messages]


def test_sites_work_one_after_another_and_only_when_their_reply_is_asked_for() -> None:
    app, seen = echo()
    grid = InlineGrid(app, {3: {}, 1: {}, 2: {}})
    assert list(grid.get_node_ids()) == [1, 2, 3]
    sent = list(grid.push_messages([grid.message(to_record(str(node)), node, "train") for node in (2, 3, 1)]))
    assert seen == []
    assert contents(grid.pull_messages(sent)) == ["2"]
    assert seen == [2]
    assert contents(grid.pull_messages([sent[2]])) == ["1"]
    assert contents(grid.pull_messages(sent)) == ["3"]
    assert contents(grid.pull_messages(sent)) == []
    assert seen == [2, 1, 3]


def test_all_replies_come_and_belong_to_their_messages() -> None:
    grid = InlineGrid(echo()[0], {1: {}, 2: {}})
    messages = [grid.message(to_record(str(node)), node, "train", group_id="7") for node in (1, 2)]
    replies = list(grid.send_and_receive(messages, timeout=0.001))
    assert [reply.metadata.reply_to_message_id for reply in replies] == [item.metadata.message_id for item in messages]
    assert {reply.metadata.group_id for reply in replies} == {"7"}
    assert contents(replies) == ["1", "2"]
    assert {item.metadata.run_id for item in messages} == {grid.run.run_id}


def test_a_message_to_nobody_is_an_error() -> None:
    grid = InlineGrid(echo()[0], {1: {}})
    with pytest.raises(ValueError, match="no node 2"):
        grid.push_messages([grid.message(RecordDict(), 2, "train")])
