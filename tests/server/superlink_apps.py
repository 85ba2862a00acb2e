"""SuperLink's own application, with and without the short way, on one state: for tests of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_to_proto
from flwr.proto import message_pb2, runtime_pb2
from flwr.proto.node_pb2 import Node
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink import main as superlink_main
from flwr.superlink.grid.http_grid import remove_content_from_message
from flwr.superlink.routers.fleet import node_auth
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from starlette.testclient import TestClient

from common.large_objects import leave_pieces_beside
from common.short_way import Answer, ShortWay, runtime_answers
from server.doorkeeper import Doorkeeper
from server.fleet import fleet_answers
from server.site_requests import check_all_requests

Key = ec.EllipticCurvePrivateKey


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
def apps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apps]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLWR_DATABASE", str(tmp_path_factory.mktemp("state") / "superlink.db"))
        # So that it is put back afterwards.
        patch.setattr(node_auth, "authenticate_node", node_auth.authenticate_node)
        check_all_requests()
        patch.setattr(fleet_handlers, "PullObjectResponse", fleet_handlers.PullObjectResponse)
        leave_pieces_beside(fleet_handlers)
        yield made()


def made() -> Apps:
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
    shorter.add_middleware(Doorkeeper)
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
    store_parts(link, link.asked, announced.session_id)
    return announced


def store_parts(link: Link, message: Message, session: str) -> None:
    """Stores the parts of a message that the server app has announced."""
    for identity, part in get_all_nested_objects(message).items():
        stored = link.ask(
            "/v1/runtime/push-object",
            message_pb2.PushObjectRequest(
                node=Node(node_id=SUPERLINK_NODE_ID),
                run_id=link.run,
                object_id=identity,
                object_content=part.deflate(),
                session_id=session,
            ),
        )
        assert message_pb2.PushObjectResponse.FromString(stored).stored
