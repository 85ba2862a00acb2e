"""All names of Flower's that are not public and that the server uses; ``deploy/docs/flower.md`` says what for.

Only this module of ``server`` imports them, so that an upgrade of Flower is looked at here.
"""

from __future__ import annotations

# The bundle that Flower wants with every run (server/coordinator/control_client.py).
from flwr.cli.build import build_fab_from_files

# Whose messages come from the server, and how a run's end is told.
from flwr.common.constant import SUPERLINK_NODE_ID, Status
from flwr.common.serde import fab_to_proto

# Messages of the Control interface: sites are registered, runs submitted and stopped (coordinator/control_client.py).
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)

# Messages of the Fleet interface: what sites may say is checked, and what SuperLink answers is noted (server/gateway).
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER as NODE_KEY_HEADER
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

# What a grid must tell of its run (server/simulation/inline_grid.py).
from flwr.supercore.run import Run

# What all of Flower's messages are made with, and its error for bytes that are none (server/gateway).
from google.protobuf.message import DecodeError as ProtobufError  # type: ignore[import-untyped]

__all__ = [
    "NODE_KEY_HEADER",
    "PROTOBUF_MEDIA_TYPE",
    "SUPERLINK_NODE_ID",
    "ActivateNodeRequest",
    "ConfirmMessageReceivedRequest",
    "ControlHttpClient",
    "DeactivateNodeRequest",
    "Fab",
    "ListNodesRequest",
    "ListRunsRequest",
    "NodeStatus",
    "ObjectTree",
    "ProtobufError",
    "PullMessagesRequest",
    "PullMessagesResponse",
    "PullObjectRequest",
    "PullObjectResponse",
    "PushMessagesRequest",
    "PushMessagesResponse",
    "PushObjectRequest",
    "PushObjectResponse",
    "RegisterNodeRequest",
    "Run",
    "RuntimeVersionHttpInterceptor",
    "SendNodeHeartbeatRequest",
    "StartRunRequest",
    "Status",
    "StopRunRequest",
    "UnregisterNodeRequest",
    "build_fab_from_files",
    "fab_to_proto",
]
