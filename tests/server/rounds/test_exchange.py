"""Messages that Flower does not take, and messages that nobody waits for any more."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Message

from common.protocol.codec import Hello, from_record, pack, unpack_answer
from server.rounds.exchange import Ask, Exchange, FederationError, NoReply
from server.run_store.folder import RunFolder
from tests import tiny
from tests.server.fake_sites import LAYOUT, FakeNetwork, Sites, is_task, run_network, site
from tests.server.rounds.test_coming_and_going import CALM, TWO_OF_THREE, outcomes

THREE: Sites = [site("a", 30, 1.0), site("b", 20, 1.2), site("c", 10, 0.8)]
HELLO = Ask(1, pack(Hello("r1", "d")), "query.hello", "0")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


def exchange(network: FakeNetwork) -> Exchange:
    return Exchange(network, network.message, CALM, network.signals)


def test_a_message_is_sent_and_its_node_is_told(folder: RunFolder) -> None:
    network = FakeNetwork(folder, THREE)
    asking = exchange(network)
    assert asking.send([]) == {}
    [identity] = asking.send([HELLO])
    assert network.gateway.bell(1).exists()
    assert not network.gateway.bell(2).exists()
    reply = asking.poll(identity)
    assert isinstance(reply, Message)
    assert unpack_answer(from_record(reply.content)).site == "a"  # type: ignore[union-attr]
    assert asking.poll(identity) is None, "a reply is handed out once"


def test_of_a_message_that_nobody_waits_for_the_reply_is_not_taken(folder: RunFolder) -> None:
    network = FakeNetwork(folder, THREE, hangs=lambda node, message: hanging)
    hanging = True
    asking = exchange(network)
    [identity] = asking.send([HELLO])
    assert asking.poll(identity) is None
    asking.forget([identity, "unsent-7"])
    hanging = False
    assert asking.poll(identity) is None
    assert network.gateway.handed_out(identity) is None


def test_messages_that_superlink_does_not_store_end_the_run(folder: RunFolder) -> None:
    class Full(FakeNetwork):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            return list(super().push_messages(messages))[:-1]

    with pytest.raises(FederationError, match="SuperLink's log"):
        exchange(Full(folder, THREE)).send([HELLO, replace(HELLO, node=2)])


class Leaving(FakeNetwork):
    """SuperLink has just forgotten node 3: for its first ``times`` tasks there is no identity."""

    def __init__(self, folder: RunFolder, times: int) -> None:
        super().__init__(folder, THREE)
        self.left = times

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        identities = []
        for message in messages:
            gone = message.metadata.dst_node_id == 3 and is_task(message) and self.left > 0
            self.left -= gone
            identities += [""] if gone else super().push_messages([message])
        return identities


def test_a_message_to_a_node_that_superlink_has_forgotten_is_sent_again(folder: RunFolder) -> None:
    network = Leaving(folder, 2)
    run_network(tiny.federation(rounds=1, strategy=TWO_OF_THREE), network, LAYOUT, CALM)
    assert outcomes(folder, "c") == [("ok", None), ("ok", None)]
    assert network.left == 0


def test_a_node_that_stays_forgotten_is_given_up(folder: RunFolder) -> None:
    network = Leaving(folder, 10**9)
    run_network(tiny.federation(rounds=1, strategy=TWO_OF_THREE), network, LAYOUT, replace(CALM, silence_seconds=0.5))
    assert outcomes(folder, "c")[0] == ("missing", "silence")
    assert set(outcomes(folder, "a")) == {("ok", None)}


def test_in_a_simulation_a_node_without_a_message_is_missing_at_once(folder: RunFolder) -> None:
    network, taken = FakeNetwork(folder, THREE), list[object]()
    simulated = Exchange(network, network.message, None, None)
    simulated.gather({"unsent-9": HELLO}, lambda node, reply: taken.append(reply))
    assert taken == [NoReply.MISSING]
