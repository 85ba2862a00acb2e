"""All non-public Flower names that a site uses; ``deploy/docs/flower.md`` says what for.

Only this module of ``client`` imports them, so that an upgrade of Flower needs checking only here.
"""

from __future__ import annotations

# A message with our own metadata, for a runner unknown to Flower (client/runner/app_call.py).
from flwr.app.message import make_message

# Conversion between Flower's message header and the public ``Message`` (client/courier/flower_messages.py).
from flwr.common.serde import message_from_proto, message_to_proto

# A node's calls (client/courier/fleet_client.py).
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.message_pb2 import Message as MessageHeader
from flwr.proto.node_pb2 import Node

# Messages are stored as objects, each under the SHA-256 of its bytes (client/courier/flower_messages.py).
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

# Authentication and version of a node, and the client for its calls (client/courier/fleet_client.py).
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClientInterceptor, ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

__all__ = [
    "ActivateNodeRequest",
    "ConfirmMessageReceivedRequest",
    "DeactivateNodeRequest",
    "FleetHttpClient",
    "MessageHeader",
    "Node",
    "NodeAuthHttpInterceptor",
    "ObjectTree",
    "ProtobufCall",
    "ProtobufClientInterceptor",
    "ProtobufRequestContext",
    "PullMessagesRequest",
    "PullObjectRequest",
    "PushMessagesRequest",
    "PushObjectRequest",
    "RuntimeVersionHttpInterceptor",
    "SendNodeHeartbeatRequest",
    "get_all_nested_objects",
    "get_object_tree",
    "inflate_object_from_contents",
    "iterate_object_tree",
    "make_message",
    "message_from_proto",
    "message_to_proto",
]
