"""Fleet calls through the gateway to a real SuperLink: a site speaks for itself, and for nobody else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectResponse, PushObjectRequest
from flwr.proto.node_pb2 import Node as ProtoNode

from client.courier.flower_messages import PackedReply
from common.protocol.codec import from_record, pack, unpack_answer
from tests.server.gateway.lab import wait_for
from tests.server.gateway.node import INFO, QUESTION, Arrived, Node, World, refused, write_nodes


@pytest.fixture
def arrived(world: World) -> Arrived:
    return world.ask(world.north)


@pytest.fixture
def reply(world: World, arrived: Arrived) -> PackedReply:
    return world.north.packed(arrived)


def test_a_message_comes_and_its_reply_goes(world: World, arrived: Arrived) -> None:
    north, folder = world.north, world.lab.folder
    assert {name: found.node for name, found in folder.all_handed_out().items()} == {arrived.message: north.number}
    north.fetch(arrived)
    assert north.confirm(arrived.message, arrived.run).status == 200
    reply = north.packed(arrived)
    announced = north.announce(reply)
    assert set(announced.objects_to_push) == set(reply.objects)
    for number, identity in enumerate(announced.objects_to_push, 1):
        assert not folder.has_reply(arrived.message), "not before all of it is there"
        assert north.hand_over(reply, identity, announced.session_id)
        assert folder.has_reply(arrived.message) == (number == len(reply.objects))
    found = world.link.reply(arrived.message)
    assert unpack_answer(from_record(found.content)) == INFO


def test_a_node_signs_on_and_off_and_shows_itself(world: World) -> None:
    south = world.south
    alive = south.call("send-node-heartbeat", SendNodeHeartbeatRequest(node=south.proto, heartbeat_interval=600))
    assert SendNodeHeartbeatResponse.FromString(alive.body).success
    assert world.link.is_online(south.number)
    assert south.call("deactivate-node", DeactivateNodeRequest(node_id=south.number)).status == 200
    wait_for(lambda: not world.link.is_online(south.number), "a node that is off")
    assert south.activate().status == 200


# What a site may not do.


def test_another_sites_key_is_refused(world: World) -> None:
    north, south = world.north, world.south
    request = ActivateNodeRequest(public_key=south.client.pem, heartbeat_interval=30)
    refused(north.call("activate-node", request), "public-key")
    request = ActivateNodeRequest(public_key=north.client.pem, heartbeat_interval=30)
    refused(north.call("activate-node", request, {"flwr-public-key": south.proof()["flwr-public-key"]}), "public-key")
    refused(north.call("activate-node", request, {"flwr-public-key": ""}), "public-key")
    refused(north.call("activate-node", request, {"flwr-public-key": "%%%"}), "public-key")


def test_a_wrong_proof_of_flowers_is_refused_by_superlink(world: World) -> None:
    north = world.north
    for header in ("flwr-signature", "flwr-timestamp"):
        wrong = {header: north.proof()[header]}
        time.sleep(0.01)
        found = north.call("pull-messages", PullMessagesRequest(node=north.proto), wrong)
        assert found.status == 401, "SuperLink still looks at it"


@pytest.mark.parametrize(
    ("method", "make"),
    [
        ("deactivate-node", lambda number: DeactivateNodeRequest(node_id=number)),
        ("send-node-heartbeat", lambda number: SendNodeHeartbeatRequest(node=ProtoNode(node_id=number))),
        ("pull-messages", lambda number: PullMessagesRequest(node=ProtoNode(node_id=number))),
        ("push-messages", lambda number: PushMessagesRequest(node=ProtoNode(node_id=number))),
        ("pull-object", lambda number: Node(None, number).object_request("ab" * 32, 1)),  # type: ignore[arg-type]
        ("push-object", lambda number: PushObjectRequest(node=ProtoNode(node_id=number), object_id="ab" * 32)),
        ("confirm-message-received", lambda number: ConfirmMessageReceivedRequest(node=ProtoNode(node_id=number))),
    ],
)
def test_another_node_is_refused_in_every_call(world: World, method: str, make: Callable[[int], object]) -> None:
    for number in (world.south.number, 0, 1, 2**63):
        refused(world.north.call(method, make(number)), "node")
    assert world.link.is_online(world.south.number)


def test_bytes_that_are_no_call_are_refused(world: World) -> None:
    refused(world.north.call("pull-messages", b"\xff\xff\xff"), "malformed", 400)


def test_what_was_not_looked_at_does_not_reach_superlink(world: World) -> None:
    """An unknown field is dropped, and the last of several nodes counts at both ends."""
    north, south = world.north, world.south
    own, other = (PullMessagesRequest(node=node.proto).SerializeToString() for node in (north, south))
    refused(north.call("pull-messages", own + other), "node")
    assert north.call("pull-messages", other + own + b"\xfa\x3f\x03abc").status == 200


def test_a_call_of_more_than_256_kilobytes_is_refused(world: World, reply: PackedReply) -> None:
    request = PushObjectRequest(node=world.north.proto, object_id="ab" * 32, object_content=bytes(256 * 1024))
    refused(world.north.call("push-object", request), "too-large", 413)


def changed(announcement: PushMessagesRequest, change: Callable[[PushMessagesRequest], object]) -> PushMessagesRequest:
    copy = PushMessagesRequest.FromString(announcement.SerializeToString())
    change(copy)
    return copy


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("node", lambda r: setattr(r.messages_list[0].metadata, "src_node_id", 1)),
        ("node", lambda r: setattr(r.messages_list[0].metadata, "dst_node_id", r.node.node_id)),
        ("message", lambda r: setattr(r.messages_list[0].metadata, "reply_to_message_id", "")),
        ("message", lambda r: setattr(r.messages_list[0].metadata, "reply_to_message_id", "cd" * 32)),
        ("message", lambda r: setattr(r.messages_list[0].metadata, "reply_to_message_id", "../" * 20)),
        ("message", lambda r: setattr(r.messages_list[0].metadata, "run_id", 1)),
        ("object", lambda r: setattr(r.messages_list[0].metadata, "message_id", "cd" * 32)),
        ("object", lambda r: setattr(r.message_object_trees[0], "object_id", "cd" * 32)),
        ("object", lambda r: setattr(r.message_object_trees[0].children[0], "object_id", "AB" * 32)),
        ("object", lambda r: setattr(r.message_object_trees[0].children[0], "object_id", "ab" * 32 + "\n")),
        ("not-one-reply", lambda r: r.messages_list.append(r.messages_list[0])),
        ("not-one-reply", lambda r: r.message_object_trees.append(r.message_object_trees[0])),
        ("not-one-reply", lambda r: r.ClearField("messages_list")),
        ("not-one-reply", lambda r: r.ClearField("message_object_trees")),
        ("header", lambda r: setattr(r.messages_list[0].error, "reason", "x" * 20_000)),
        ("header", lambda r: r.clientapp_runtime_list.append(1.0)),
        ("too-many-objects", lambda r: r.message_object_trees[0].children.extend([ObjectTree()] * 64)),
    ],
)
def test_what_is_no_reply_of_this_node_is_refused(
    world: World, reply: PackedReply, arrived: Arrived, reason: str, change: Callable[[PushMessagesRequest], object]
) -> None:
    refused(world.north.call("push-messages", changed(world.north.announcement(reply), change)), reason)
    assert not world.lab.folder.has_reply(arrived.message)


def test_a_deep_list_of_objects_is_refused(world: World, reply: PackedReply) -> None:
    tree = ObjectTree(object_id="ab" * 32)
    for _ in range(90):
        tree = ObjectTree(object_id="ab" * 32, children=[tree])
    tree.object_id = ObjectTree.FromString(reply.tree).object_id
    request = world.north.announcement(reply)
    request.message_object_trees[0].CopyFrom(tree)
    refused(world.north.call("push-messages", request), "too-many-objects")


def test_another_sites_message_cannot_be_answered(world: World) -> None:
    theirs = world.ask(world.south)
    mine = world.north.packed(theirs)
    request = world.north.announcement(mine)
    request.messages_list[0].metadata.src_node_id = world.north.number
    refused(world.north.call("push-messages", request), "message")
    request.messages_list[0].metadata.src_node_id = world.south.number
    refused(world.north.call("push-messages", request), "node")
    world.south.answer(world.south.packed(theirs))


def test_a_message_of_the_servers_cannot_be_announced(world: World, arrived: Arrived) -> None:
    request = world.north.announcement(world.north.packed(arrived))
    request.messages_list[0].metadata.message_id = arrived.message
    request.message_object_trees[0].CopyFrom(arrived.tree)
    refused(world.north.call("push-messages", request), "message")


def test_objects_of_another_sites_message_are_not_had(world: World) -> None:
    theirs = world.ask(world.south)
    for identity in {theirs.message, "ab" * 32}:
        refused(world.north.call("pull-object", world.north.object_request(identity, theirs.run)), "object")
    for identity in ("", "ab", "../messages", "AB" * 32):
        refused(world.north.call("pull-object", world.north.object_request(identity, theirs.run)), "object")
    refused(world.north.confirm(theirs.message, theirs.run), "message")
    assert len(world.south.fetch(theirs)) == 3, "it is all still there"
    refused(world.south.call("pull-object", world.south.object_request(theirs.message, 7)), "object")


def test_messages_with_the_same_content_share_objects_and_both_sites_have_them(world: World) -> None:
    mine, theirs = world.ask(world.north), world.ask(world.south)
    assert set(mine.objects) & set(theirs.objects)
    assert len(world.north.fetch(mine)) == len(world.south.fetch(theirs)) == 3


def test_an_object_that_was_not_asked_for_is_not_taken(world: World, reply: PackedReply) -> None:
    north, south = world.north, world.south
    for identity in reply.objects:
        refused(north.call("push-object", north.object_push(reply, identity, "")), "object", 503)
    announced = north.announce(reply)
    identity = announced.objects_to_push[0]
    push = north.object_push(reply, identity, announced.session_id)
    foreign = PushObjectRequest.FromString(push.SerializeToString())
    foreign.node.CopyFrom(south.proto)
    refused(south.call("push-object", foreign), "object", 503)
    push.object_id = "cd" * 32
    refused(north.call("push-object", push), "object", 503)
    push.object_id = "x"
    refused(north.call("push-object", push), "object")
    push = north.object_push(reply, identity, announced.session_id)
    push.object_content = b"something else"
    found = north.call("push-object", push)
    assert found.status == 200 and not found.body, "SuperLink sees that it does not fit, and keeps nothing"


def test_a_forgotten_message_is_not_answered(world: World, reply: PackedReply, arrived: Arrived) -> None:
    world.lab.folder.forget_message(arrived.message)
    refused(world.north.call("push-messages", world.north.announcement(reply)), "message")
    refused(world.north.call("pull-object", world.north.object_request(arrived.message, arrived.run)), "object")
    refused(world.north.confirm(arrived.message, arrived.run), "message")


def test_a_site_that_the_server_has_not_registered_waits(world: World) -> None:
    north, south = world.north.number, world.south.number
    try:
        write_nodes(world.lab.run, {"south": south})
        refused(world.north.call("pull-messages", PullMessagesRequest(node=world.north.proto)), "node")
        write_nodes(world.lab.run, {})
        refused(world.north.call("pull-messages", PullMessagesRequest(node=world.north.proto)), "not-ready", 503)
    finally:
        write_nodes(world.lab.run, {"north": north, "south": south})


# When a reply counts as whole.


def test_a_reply_that_is_announced_again_goes_on(world: World, reply: PackedReply, arrived: Arrived) -> None:
    north, folder = world.north, world.lab.folder
    first = north.announce(reply)
    wanted = list(first.objects_to_push)
    assert north.hand_over(reply, wanted[0], first.session_id)
    again = north.announce(reply)
    assert list(again.objects_to_push) == wanted[1:]
    for identity in wanted[1:]:
        assert not folder.has_reply(arrived.message)
        assert north.hand_over(reply, identity, again.session_id)
    assert folder.has_reply(arrived.message)
    assert list(north.announce(reply).objects_to_push) == []
    assert world.link.reply(arrived.message).has_content()


def test_another_reply_beside_one_that_is_half_there_does_not_make_it_whole(
    world: World, reply: PackedReply, arrived: Arrived
) -> None:
    """SuperLink takes no second reply, and asks for nothing more; it looks like one that is whole."""
    north, folder = world.north, world.lab.folder
    first = north.announce(reply)
    second = north.announce(north.packed(arrived, replace(INFO, train_examples=5)))
    assert list(second.objects_to_push) == []
    assert not folder.has_reply(arrived.message)
    for identity in first.objects_to_push:
        assert north.hand_over(reply, identity, first.session_id)
    assert folder.has_reply(arrived.message)


def test_a_gateway_that_is_killed_between_any_two_calls_loses_no_reply(world: World) -> None:
    north, made = world.north, world.lab
    arrived = world.ask(north)

    def restart() -> None:
        made.kill()
        made.start()

    restart()
    assert len(north.fetch(arrived)) == 3, "it is known what was handed out"
    assert north.confirm(arrived.message, arrived.run).status == 200
    reply = north.packed(arrived)
    announced = north.announce(reply)
    restart()
    identity = announced.objects_to_push[0]
    refused(north.call("push-object", north.object_push(reply, identity, announced.session_id)), "object", 503)
    announced = north.announce(reply)
    for identity in announced.objects_to_push:
        assert north.hand_over(reply, identity, announced.session_id)
    # As if it had been killed between SuperLink's answer and the note of it.
    (made.folder.path / "replies" / arrived.message).unlink()
    restart()
    assert list(north.announce(reply).objects_to_push) == []
    assert made.folder.has_reply(arrived.message)


def test_a_message_is_only_a_few_kilobytes(world: World, arrived: Arrived) -> None:
    contents = world.north.fetch(arrived)
    assert pack(QUESTION).encode() in b"".join(contents.values())
    answer = world.north.call("pull-object", world.north.object_request(arrived.message, arrived.run))
    assert PullObjectResponse.FromString(answer.body).object_found
    assert sum(map(len, contents.values())) < 4096
