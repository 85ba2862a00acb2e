"""SuperLink's own application, with and without the short way, on one state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2, message_pb2, runtime_pb2
from flwr.proto.node_pb2 import Node
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore import date
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink import main as superlink_main
from flwr.superlink.grid.http_grid import remove_content_from_message
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from starlette.testclient import TestClient

from common.short_way import Answer, ShortWay, runtime_answers
from server.fleet import fleet_answers

Key = ec.EllipticCurvePrivateKey
Change = Callable[["Link", dict[str, str], bytes], tuple[dict[str, str], bytes]]


@dataclass
class Link:
    """A run with a task, a node, a message to it, and SuperLink both ways."""

    state: SqlLinkState
    run: int
    token: str
    node: int
    key: Key
    flower: TestClient
    ours: TestClient
    taken: list[str]
    asked: Message = field(init=False)

    def __post_init__(self) -> None:
        self.asked = Message(RecordDict({"do": ConfigRecord({"what": f"work of {self.run}"})}), self.node, "train")
        self.asked.metadata.__dict__["_message_id"] = self.asked.object_id

    def headers(self, path: str, message: Any, key: Key | None = None, token: str | None = None) -> dict[str, str]:
        """As Flower's clients send them."""
        request = httpx.Request("POST", f"http://superlink{path}", headers={"content-type": PROTOBUF_MEDIA_TYPE})
        key = key or self.key
        if path.startswith("/v1/fleet"):
            interceptors: list[Any] = [NodeAuthHttpInterceptor(key, key.public_key())]
        else:
            version = RuntimeVersionHttpInterceptor(component_name="flwr-serverapp")
            interceptors = [version, RuntimeTokenHttpInterceptor(token or self.token)]
        for interceptor in interceptors:
            interceptor.intercept(ProtobufRequestContext("", message, request), lambda _: httpx.Response(200))
        return {name: value for name, value in request.headers.items() if name not in ("host", "content-length")}

    def ask(self, path: str, message: Any, client: TestClient | None = None) -> bytes:
        answer = (client or self.ours).post(
            path, headers=self.headers(path, message), content=message.SerializeToString()
        )
        assert answer.status_code == 200, answer.text
        return answer.content


@dataclass
class Apps:
    """SuperLink's application twice, with one state; ``taken``: what the short way answered."""

    state: SqlLinkState
    flower: TestClient
    ours: TestClient
    taken: list[str]


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Apps:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLWR_DATABASE", str(tmp_path_factory.mktemp("state") / "superlink.db"))
        plain, shorter = superlink_main.create_app(), superlink_main.create_app()
    for name in ("linkstate_factory", "runtime_state_factory"):
        setattr(shorter.state, name, getattr(plain.state, name))
    taken: list[str] = []

    def noted(path: str, answer: Answer) -> Answer:
        def of(request: Any, content: Any) -> Any:
            result = answer(request, content)
            taken.append(path)
            return result

        return of

    answers = fleet_answers() | runtime_answers("SuperLink")
    shorter.add_middleware(ShortWay, answers={path: noted(path, answer) for path, answer in answers.items()})
    return Apps(plain.state.linkstate_factory.state(), client(plain), client(shorter), taken)


@pytest.fixture
def link(apps: Apps) -> Link:
    key, public = generate_key_pairs()
    state = apps.state
    node = state.create_node("aid", "north", public_key_to_bytes(public), 30.0)
    state.activate_node(node, 30.0)
    run = state.create_run(None, None, None, {}, "@none/default", None, None, TaskType.SERVER_APP)
    for name, value in {"run_id": run, "node_id": 1, "task_id": 1}.items():
        setattr(TaskIdentity, name, value)
    task = state.get_run_info(run_ids=[run])[0].primary_task_id
    token = state.claim_task(task)
    assert token is not None
    assert state.activate_task(task)
    apps.taken.clear()
    return Link(state, run, token, node, key, apps.flower, apps.ours, apps.taken)


def client(app: FastAPI) -> TestClient:
    return TestClient(app, raise_server_exceptions=False)


def push(link: Link) -> runtime_pb2.PushAppMessagesResponse:
    """Announces the message to the node and stores its parts, as the server app does."""
    request = runtime_pb2.PushAppMessagesRequest(
        messages_list=[message_to_proto(remove_content_from_message(link.asked))],
        message_object_trees=[get_object_tree(link.asked)],
    )
    announced = runtime_pb2.PushAppMessagesResponse.FromString(link.ask("/v1/runtime/push-messages", request))
    for identity, part in get_all_nested_objects(link.asked).items():
        stored = link.ask(
            "/v1/runtime/push-object",
            message_pb2.PushObjectRequest(
                node=Node(node_id=SUPERLINK_NODE_ID),
                run_id=link.run,
                object_id=identity,
                object_content=part.deflate(),
                session_id=announced.session_id,
            ),
        )
        assert message_pb2.PushObjectResponse.FromString(stored).stored
    return announced


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
