"""SuperLink's own application, with and without the short way, on one state."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto import fleet_pb2, message_pb2, runtime_pb2
from flwr.proto.node_pb2 import Node
from flwr.supercore import date
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes

from tests.server.superlink_apps import Link, apps, link, push

__all__ = ["apps", "link"]

Change = Callable[[Link, dict[str, str], bytes], tuple[dict[str, str], bytes]]


def test_a_message_reaches_its_node_and_is_confirmed(link: Link) -> None:
    push(link)
    node = Node(node_id=link.node)
    pulled = fleet_pb2.PullMessagesResponse.FromString(
        link.ask("/v1/fleet/pull-messages", fleet_pb2.PullMessagesRequest(node=node))
    )
    assert [message.metadata.message_id for message in pulled.messages_list] == [link.asked.object_id]
    for identity, part in get_all_nested_objects(link.asked).items():
        request = message_pb2.PullObjectRequest(node=node, run_id=link.run, object_id=identity)
        found = message_pb2.PullObjectResponse.FromString(link.ask("/v1/fleet/pull-object", request))
        assert found.object_content == part.deflate()
    confirm = message_pb2.ConfirmMessageReceivedRequest(
        node=node, run_id=link.run, message_object_id=link.asked.object_id
    )
    link.ask("/v1/fleet/confirm-message-received", confirm)
    assert link.state.object_store.get(link.asked.object_id) is None
    assert set(link.taken) == {
        "/v1/runtime/push-messages",
        "/v1/runtime/push-object",
        "/v1/fleet/pull-messages",
        "/v1/fleet/pull-object",
        "/v1/fleet/confirm-message-received",
    }


def requests(link: Link) -> dict[str, Any]:
    """One request for every path that only asks."""
    node = Node(node_id=link.node)
    part = {"node": node, "run_id": link.run, "object_id": link.asked.object_id}
    other = {**part, "node": Node(node_id=SUPERLINK_NODE_ID)}
    return {
        "/v1/fleet/pull-messages": fleet_pb2.PullMessagesRequest(node=node),
        "/v1/fleet/pull-object": message_pb2.PullObjectRequest(**part),
        "/v1/runtime/pull-object": message_pb2.PullObjectRequest(**other),
        "/v1/runtime/pull-messages": runtime_pb2.PullAppMessagesRequest(message_ids=[link.asked.object_id]),
        "/v1/runtime/get-nodes": runtime_pb2.GetNodesRequest(),
    }


PATHS = (
    "/v1/fleet/pull-messages",
    "/v1/fleet/pull-object",
    "/v1/runtime/pull-object",
    "/v1/runtime/pull-messages",
    "/v1/runtime/get-nodes",
)


@pytest.mark.parametrize("path", PATHS)
def test_both_ways_answer_alike(link: Link, path: str) -> None:
    request = requests(link)[path]
    if path != "/v1/fleet/pull-messages":
        push(link)
    link.taken.clear()
    assert link.ask(path, request) == link.ask(path, request, link.flower)
    assert link.taken == [path]


def without(*names: str) -> Change:
    return lambda _, headers, body: ({k: v for k, v in headers.items() if k not in names}, body)


def altered(name: str, value: str) -> Change:
    return lambda _, headers, body: (headers | {name: value} if name in headers else headers, body)


SIGNED = ("flwr-public-key", "flwr-signature", "flwr-timestamp", "flwr-task-token")
WRONG: dict[str, Change] = {
    "nobody's": without(*SIGNED),
    "a signature that is not one": lambda _, h, b: ({k: "AAAA" if "signature" in k else v for k, v in h.items()}, b),
    "a token that is not one": altered("flwr-task-token", "0" * 32),
    "not protobuf": lambda _, headers, body: (headers, b"\xff" + body),
    "another type of content": altered("content-type", "text/plain"),
    "an empty header": lambda _, h, b: ({k: "" if k.startswith("flwr") else v for k, v in h.items()}, b),
}


ONLY = {"a signature that is not one": "/v1/fleet/", "a token that is not one": "/v1/runtime/"}


@pytest.mark.parametrize(
    ("wrong", "path"), [(wrong, path) for wrong in WRONG for path in PATHS if path.startswith(ONLY.get(wrong, "/"))]
)
def test_what_is_refused_is_refused_in_flowers_words(link: Link, wrong: str, path: str) -> None:
    request = requests(link)[path]
    usual = link.headers(path, request), request.SerializeToString()
    headers, body = WRONG[wrong](link, *usual)
    assert (headers, body) != usual
    ours = link.ours.post(path, headers=headers, content=body)
    flower = link.flower.post(path, headers=headers, content=body)
    assert ours.status_code == flower.status_code >= 400
    assert ours.content == flower.content
    assert link.taken == []


def test_a_node_gets_nothing_with_another_ones_key(link: Link) -> None:
    stranger, public = generate_key_pairs()
    other = link.state.create_node("aid", "south", public_key_to_bytes(public), 30.0)
    for path in PATHS[:2]:
        request = requests(link)[path]
        headers = link.headers(path, request, key=stranger)
        for app in (link.ours, link.flower):
            assert app.post(path, headers=headers, content=request.SerializeToString()).status_code == 401
    request = fleet_pb2.PullMessagesRequest(node=Node(node_id=other))
    headers = link.headers("/v1/fleet/pull-messages", request, key=stranger)
    assert link.ours.post("/v1/fleet/pull-messages", headers=headers, content=request.SerializeToString()).is_success
    assert link.taken == ["/v1/fleet/pull-messages"]


def test_a_signature_of_yesterday_is_refused(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    path = PATHS[0]
    request = requests(link)[path]
    from flwr.supernode import node_auth_http_interceptor

    yesterday = date.now() - timedelta(days=1)
    monkeypatch.setattr(node_auth_http_interceptor, "now", lambda: yesterday)
    headers = link.headers(path, request)
    assert link.ours.post(path, headers=headers, content=request.SerializeToString()).status_code == 401
    assert link.taken == []


def test_other_paths_and_methods_go_flowers_way(link: Link) -> None:
    for method, path in (("GET", "/v1/fleet/pull-object"), ("POST", "/v1/fleet/unheard-of"), ("GET", "/docs")):
        assert link.ours.request(method, path).status_code == link.flower.request(method, path).status_code
    assert link.taken == []
