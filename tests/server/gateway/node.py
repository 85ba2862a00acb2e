"""A site as a node of Flower's, which says what a test wants it to say."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.message_pb2 import Message as Header
from flwr.proto.node_pb2 import Node as ProtoNode
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

from client.courier.flower_messages import PackedReply, pack_reply
from common.protocol.codec import pack
from common.protocol.messages import Hello, SiteInfo
from tests.client.courier.superlink import SuperLink
from tests.server.gateway.lab import Lab, Reply, SiteClient, wait_for

QUESTION = Hello("01" * 16, "ab" * 32)
INFO = SiteInfo("north", 4, 1, "1", "1.42.0", "2.10", "3.11", "cpu", "float32")


@dataclass
class Arrived:
    """A message that was handed out."""

    header: Header
    tree: ObjectTree

    @property
    def message(self) -> str:
        return str(self.header.metadata.message_id)

    @property
    def run(self) -> int:
        return int(self.header.metadata.run_id)

    @property
    def objects(self) -> list[str]:
        return [str(item.object_id) for item in iterate_object_tree(self.tree)]


@dataclass
class Node:
    """Calls of one site, by its own key and number unless a test says otherwise."""

    client: SiteClient
    number: int

    @property
    def proto(self) -> ProtoNode:
        return ProtoNode(node_id=self.number)

    def proof(self) -> dict[str, str]:
        """Flower's own headers."""
        stamp = datetime.now(UTC).isoformat()
        signature = self.client.key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
        return {
            "content-type": "application/protobuf",
            "accept": "application/protobuf",
            "flwr-public-key": base64.b64encode(self.client.pem).decode(),
            "flwr-timestamp": stamp,
            "flwr-signature": base64.b64encode(signature).decode(),
        }

    def call(self, method: str, request: Any, headers: Mapping[str, str] | None = None, timeout: float = 40) -> Reply:
        """A call with both signatures; ``request`` is a protobuf message, or bytes."""
        body = request if isinstance(request, bytes) else request.SerializeToString()
        return self.client.request(
            "POST", f"/v1/fleet/{method}", body, {**self.proof(), **(headers or {})}, timeout=timeout
        )

    def activate(self) -> Reply:
        return self.call("activate-node", ActivateNodeRequest(public_key=self.client.pem, heartbeat_interval=600))

    def pull(self, wait: int | None = None) -> Arrived | None:
        found = self.call(
            "pull-messages", PullMessagesRequest(node=self.proto), {} if wait is None else {"prefer": f"wait={wait}"}
        )
        assert found.status == 200, found
        answer = PullMessagesResponse.FromString(found.body)
        if not answer.messages_list:
            return None
        return Arrived(answer.messages_list[0], answer.message_object_trees[0])

    def object_request(self, identity: str, run: int) -> PullObjectRequest:
        return PullObjectRequest(node=self.proto, run_id=run, object_id=identity)

    def fetch(self, arrived: Arrived) -> dict[str, bytes]:
        contents = {}
        for identity in arrived.objects:
            found = self.call("pull-object", self.object_request(identity, arrived.run))
            assert found.status == 200, found
            answer = PullObjectResponse.FromString(found.body)
            assert answer.object_available
            contents[identity] = bytes(answer.object_content)
        return contents

    def confirm(self, message: str, run: int) -> Reply:
        return self.call(
            "confirm-message-received",
            ConfirmMessageReceivedRequest(node=self.proto, run_id=run, message_object_id=message),
        )

    def packed(self, arrived: Arrived, info: SiteInfo = INFO) -> PackedReply:
        return pack_reply(arrived.header.SerializeToString(), info, pack(info))

    def announcement(self, reply: PackedReply) -> PushMessagesRequest:
        return PushMessagesRequest(
            node=self.proto,
            messages_list=[Header.FromString(reply.header)],
            message_object_trees=[ObjectTree.FromString(reply.tree)],
        )

    def announce(self, reply: PackedReply) -> PushMessagesResponse:
        found = self.call("push-messages", self.announcement(reply))
        assert found.status == 200, found
        answer: PushMessagesResponse = PushMessagesResponse.FromString(found.body)
        return answer

    def object_push(self, reply: PackedReply, identity: str, session: str) -> PushObjectRequest:
        content = reply.objects[identity]
        return PushObjectRequest(
            node=self.proto, run_id=reply.run, session_id=session, object_id=identity, object_content=content
        )

    def hand_over(self, reply: PackedReply, identity: str, session: str) -> bool:
        found = self.call("push-object", self.object_push(reply, identity, session))
        assert found.status == 200, found
        return bool(PushObjectResponse.FromString(found.body).stored)

    def answer(self, reply: PackedReply) -> None:
        """All of a reply."""
        announced = self.announce(reply)
        for identity in announced.objects_to_push:
            assert self.hand_over(reply, identity, announced.session_id)


@dataclass
class World:
    """A gateway in front of a SuperLink, with two sites."""

    lab: Lab
    link: SuperLink
    north: Node
    south: Node

    def ask(self, node: Node) -> Arrived:
        """Sends a question to a node, which pulls it."""
        identity = self.link.send(node.number, QUESTION)
        arrived: Arrived = wait_for(node.pull, "a message")
        assert arrived.message == identity
        return arrived


def refused(reply: Reply, reason: str, status: int = 403) -> None:
    """A reply must be this refusal."""
    assert (reply.status, reply.word) == (status, reason)


def join(lab: Lab, link: SuperLink, *sites: str) -> list[Node]:
    """Registers sites with SuperLink, as ``start`` does, and signs them on."""
    lab.folder.set_superlink(link.port)
    numbers = {site: link.register(lab.path / site / "site.crt") for site in sites}
    write_nodes(lab.run, numbers)
    nodes = [Node(lab.client(site), number) for site, number in numbers.items()]
    for node in nodes:
        assert node.activate().status == 200
    return nodes


def write_nodes(run: Path, numbers: Mapping[str, int]) -> None:
    (run / "nodes.json").write_text(json.dumps({str(number): site for site, number in numbers.items()}))
