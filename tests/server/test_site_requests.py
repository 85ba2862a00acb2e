"""What one site tries against the server and the others, on SuperLink's own application, both ways."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_to_proto
from flwr.proto import fab_pb2, fleet_pb2, message_pb2, runtime_pb2
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.superlink.grid.http_grid import remove_content_from_message
from starlette.testclient import TestClient

from common.large_objects import LARGE
from server.app_lock import MOST_PARTS, RUN_VARIABLE, write_most_parts
from tests.server.superlink_apps import Key, Link, apps, link, push, store_parts

__all__ = ["apps", "link"]

PUSH, PULL = "/v1/fleet/push-messages", "/v1/fleet/pull-object"


@dataclass
class Site:
    """A registered site with a key of its own, as it would be written by somebody who breaks into it."""

    link: Link
    node: int
    key: Key
    way: TestClient

    def send(self, path: str, request: Any) -> tuple[int, bytes]:
        headers = self.link.headers(path, request, key=self.key)
        answer = self.way.post(path, headers=headers, content=request.SerializeToString())
        return answer.status_code, answer.content

    def announce(self, message: Message, tree: ObjectTree | None = None, header: Any = None) -> tuple[int, bytes]:
        message.metadata.__dict__["_message_id"] = message.object_id
        request = fleet_pb2.PushMessagesRequest(
            node=Node(node_id=self.node),
            messages_list=[header or message_to_proto(remove_content_from_message(message))],
            message_object_trees=[tree or get_object_tree(message)],
        )
        return self.send(PUSH, request)

    def push(self, message: Message) -> None:
        """A whole message, as SuperNode does it."""
        status, content = self.announce(message)
        assert status == 200
        announced = fleet_pb2.PushMessagesResponse.FromString(content)
        parts = get_all_nested_objects(message)
        for identity in announced.objects_to_push:
            request = message_pb2.PushObjectRequest(
                node=Node(node_id=self.node),
                run_id=self.link.run,
                session_id=announced.session_id,
                object_id=identity,
                object_content=parts[identity].deflate(),
            )
            assert self.send("/v1/fleet/push-object", request)[0] == 200


@pytest.fixture(params=["short", "long"])
def south(request: pytest.FixtureRequest, link: Link) -> Site:
    key, public = generate_key_pairs()
    node = link.state.create_node("aid", "south", public_key_to_bytes(public), 30.0)
    link.state.activate_node(node, 30.0)
    return Site(link, node, key, link.ours if request.param == "short" else link.flower)


@pytest.fixture
def north(link: Link, south: Site) -> Site:
    """The site that ``link.asked`` is for, reached as ``south`` is."""
    return Site(link, link.node, link.key, south.way)


def forged(source: int, destination: int, content: str = "forged") -> Message:
    message = Message(RecordDict({"info": ConfigRecord({"site": content})}), destination, "query")
    message.metadata.__dict__["_src_node_id"] = source
    return message


def reply(to: Message, source: int, content: str = "done", **arrays: bytes) -> Message:
    made = Message(RecordDict({"answer": ConfigRecord({"is": content})}), reply_to=to)
    if arrays:
        made.content["update"] = ArrayRecord({k: Array("u1", (len(v),), "x", v) for k, v in arrays.items()})
    made.metadata.__dict__["_src_node_id"] = source
    made.metadata.__dict__["_message_id"] = made.object_id
    return made


def asked(link: Link, node: int) -> Message:
    """A message of the server's to a node."""
    message = Message(RecordDict({"do": ConfigRecord({"for": str(node)})}), node, "train")
    message.metadata.__dict__["_message_id"] = message.object_id
    link.asked = message
    push(link)
    return message


def handed_out(link: Link, *messages: Message) -> list[str]:
    """What the server app gets when it asks for the answers to some messages."""
    request = runtime_pb2.PullAppMessagesRequest(message_ids=[message.object_id for message in messages])
    answer = runtime_pb2.PullAppMessagesResponse.FromString(link.ask("/v1/runtime/pull-messages", request))
    return [message.metadata.message_id for message in answer.messages_list]


def pull(site: Site, identity: str) -> tuple[int, bytes]:
    request = message_pb2.PullObjectRequest(node=Node(node_id=site.node), run_id=site.link.run, object_id=identity)
    return site.send(PULL, request)


def test_a_reply_is_announced_taken_up_and_handed_out(link: Link, north: Site) -> None:
    push(link)
    answer = reply(link.asked, north.node, update=bytes(100))
    north.push(answer)
    assert handed_out(link, link.asked) == [answer.object_id]


def test_no_site_speaks_to_the_server_app_in_the_name_of_another(link: Link, south: Site) -> None:
    push(link)
    for source in (SUPERLINK_NODE_ID, south.node, link.node):
        assert south.announce(forged(source, SUPERLINK_NODE_ID))[0] == 403
    assert handed_out(link, link.asked) == [], "or it would be taken for the answer of the site that is asked just then"


def test_no_site_gives_another_one_a_task(link: Link, south: Site, north: Site) -> None:
    assert south.announce(forged(SUPERLINK_NODE_ID, north.node))[0] == 403
    request = fleet_pb2.PullMessagesRequest(node=Node(node_id=north.node))
    status, content = north.send("/v1/fleet/pull-messages", request)
    assert status == 200
    assert not fleet_pb2.PullMessagesResponse.FromString(content).messages_list


def test_no_site_answers_under_another_ones_number(link: Link, south: Site, north: Site) -> None:
    push(link)
    assert south.announce(reply(link.asked, north.node))[0] == 403
    assert handed_out(link, link.asked) == []
    north.push(reply(link.asked, north.node, "true"))
    assert len(handed_out(link, link.asked)) == 1


def test_no_site_ends_the_upload_of_a_task(link: Link, south: Site) -> None:
    earlier = asked(link, south.node)
    task = Message(RecordDict({"do": ConfigRecord({"next": str(link.run)})}), south.node, "train")
    task.metadata.__dict__["_message_id"] = task.object_id
    request = runtime_pb2.PushAppMessagesRequest(
        messages_list=[message_to_proto(remove_content_from_message(task))],
        message_object_trees=[get_object_tree(task)],
    )
    announced = runtime_pb2.PushAppMessagesResponse.FromString(link.ask("/v1/runtime/push-messages", request))
    answer = reply(earlier, south.node)
    header = message_to_proto(remove_content_from_message(answer))
    header.metadata.message_id = task.object_id
    assert south.announce(answer, get_object_tree(task), header)[0] == 403
    store_parts(link, task, announced.session_id)


def test_a_part_is_had_by_the_site_that_its_message_is_for(link: Link, south: Site, north: Site) -> None:
    push(link)
    secret = reply(link.asked, north.node, "secret", update=b"\7" * 1000)
    north.push(secret)
    for message, readers in ((link.asked, [north]), (secret, [])):
        for identity, part in get_all_nested_objects(message).items():
            for site in (north, south):
                status, content = pull(site, identity)
                if site in readers:
                    assert message_pb2.PullObjectResponse.FromString(content).object_content == part.deflate()
                else:
                    assert status == 403
    status, content = pull(south, "0" * 64)
    assert status == 200
    assert not message_pb2.PullObjectResponse.FromString(content).object_found


def test_large_parts_are_treated_as_small_ones(link: Link, south: Site, north: Site) -> None:
    content = link.run.to_bytes(8, "big") * LARGE
    weights = ArrayRecord({"0": Array("u1", (len(content),), "x", content)})
    link.asked = Message(RecordDict({"weights": weights, "to": ConfigRecord({"run": link.run})}), north.node, "train")
    link.asked.metadata.__dict__["_message_id"] = link.asked.object_id
    push(link)
    parts = get_all_nested_objects(link.asked)
    large = next(identity for identity, part in parts.items() if len(part.deflate()) > LARGE)
    status, content = pull(north, large)
    assert (status, message_pb2.PullObjectResponse.FromString(content).object_content) == (200, parts[large].deflate())
    assert pull(south, large)[0] == 403
    answer = reply(link.asked, north.node, update=content[::-1])
    north.push(answer)
    assert handed_out(link, link.asked) == [answer.object_id]
    assert {link.state.object_store.get(name) for name in get_all_nested_objects(answer)} == {
        part.deflate() for part in get_all_nested_objects(answer).values()
    }


@pytest.mark.parametrize("size", [10, 2 * LARGE])
def test_a_part_without_a_proper_name_is_refused_whatever_its_size(link: Link, south: Site, size: int) -> None:
    for name in ("../../somewhere", "A" * 64, ""):
        request = message_pb2.PushObjectRequest(
            node=Node(node_id=south.node), run_id=link.run, object_id=name, object_content=bytes(size)
        )
        assert south.send("/v1/fleet/push-object", request)[0] == 403


def test_a_large_part_in_the_name_of_another_node_is_refused(link: Link, south: Site, north: Site) -> None:
    request = message_pb2.PushObjectRequest(
        node=Node(node_id=north.node), run_id=link.run, object_id="0" * 64, object_content=bytes(2 * LARGE)
    )
    assert south.send("/v1/fleet/push-object", request)[0] == 401


def test_a_part_of_messages_to_several_sites_is_had_by_all_of_them(link: Link, south: Site, north: Site) -> None:
    shared = ArrayRecord({"0": Array("u1", (9,), "x", b"\1" * 9)})
    for site in (north, south):
        message = Message(RecordDict({"weights": shared}), site.node, "train")
        message.metadata.__dict__["_message_id"] = message.object_id
        link.asked = message
        request = runtime_pb2.PushAppMessagesRequest(
            messages_list=[message_to_proto(remove_content_from_message(message))],
            message_object_trees=[get_object_tree(message)],
        )
        link.ask("/v1/runtime/push-messages", request)
    for site in (north, south):
        for identity in get_all_nested_objects(shared):
            assert pull(site, identity)[0] == 200


def test_no_site_removes_a_message_to_or_of_another(link: Link, south: Site, north: Site) -> None:
    push(link)
    answer = reply(link.asked, north.node)
    north.push(answer)
    for identity in (link.asked.object_id, answer.object_id):
        confirm = message_pb2.ConfirmMessageReceivedRequest(
            node=Node(node_id=south.node), run_id=link.run, message_object_id=identity
        )
        assert south.send("/v1/fleet/confirm-message-received", confirm)[0] == 403
        assert link.state.object_store.get(identity)
    confirm.message_object_id, confirm.node.node_id = link.asked.object_id, north.node
    assert north.send("/v1/fleet/confirm-message-received", confirm)[0] == 200
    assert link.state.object_store.get(link.asked.object_id) is None


def with_parts(root: str, count: int) -> ObjectTree:
    names = (hashlib.sha256(f"{root}{index}".encode()).hexdigest() for index in range(count))
    return ObjectTree(object_id=root, children=[ObjectTree(object_id=name) for name in names])


@pytest.mark.parametrize("said", [None, 20])
def test_a_message_has_no_more_parts_than_the_model(
    said: int | None, link: Link, north: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(link)
    if said is not None:
        monkeypatch.setenv(RUN_VARIABLE, str(tmp_path))
        write_most_parts(tmp_path, said)
    most = said or MOST_PARTS
    answer = reply(link.asked, north.node)
    before = len(link.state.object_store)
    assert north.announce(answer, with_parts(answer.object_id, most))[0] == 403
    assert len(link.state.object_store) == before
    assert north.announce(answer, with_parts(answer.object_id, 19))[0] == 200


Bad = Callable[[Site, Message], tuple[int, bytes]]
LONG = "x\n" * 5000


def header_of(message: Message, **changes: Any) -> Any:
    header = message_to_proto(remove_content_from_message(message))
    for name, value in changes.items():
        setattr(header.metadata, name, value)
    return header


def twice(site: Site, message: Message) -> tuple[int, bytes]:
    header, tree = header_of(message), get_object_tree(message)
    request = fleet_pb2.PushMessagesRequest(
        node=Node(node_id=site.node), messages_list=[header, header], message_object_trees=[tree, tree]
    )
    return site.send(PUSH, request)


BAD: dict[str, Bad] = {
    "nothing at all": lambda site, _: site.send(PUSH, fleet_pb2.PushMessagesRequest(node=Node(node_id=site.node))),
    "two messages": twice,
    "a message that comes whole": lambda s, m: s.announce(m, header=message_to_proto(forged(1, 1, "x" * 10**5))),
    "a long name of its message": lambda s, m: s.announce(m, header=header_of(m, reply_to_message_id=LONG)),
    "a name of a part that is none": lambda s, m: s.announce(m, ObjectTree(object_id=m.object_id, children=[ODD])),
    "parts of another message": lambda s, m: s.announce(m, with_parts("a" * 64, 3)),
    "a part with a long name": lambda site, _: pull(site, LONG),
    "a part with a name in capitals": lambda site, _: pull(site, "A" * 64),
    "a bundle with a long name": lambda site, _: site.send(
        "/v1/fleet/get-fab",
        fab_pb2.GetFabRequest(node=Node(node_id=site.node), run_id=site.link.run, hash_str=LONG),
    ),
}
# What Flower takes for a SHA-256.
ODD = ObjectTree(object_id="+0x" + "_1" * 30 + " ")


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_request_of_a_site_is_refused_in_one_line(
    bad: str, link: Link, north: Site, caplog: pytest.LogCaptureFixture
) -> None:
    push(link)
    before = len(link.state.object_store)
    caplog.clear()
    status, content = BAD[bad](north, reply(link.asked, north.node))
    assert status == 403
    assert len(content) < 100
    assert len(link.state.object_store) == before
    assert all(len(record.getMessage()) < 200 and "\n" not in record.getMessage() for record in caplog.records)
