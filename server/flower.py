"""Flower's private names that the server uses; ``deploy/docs/flower.md`` says what for.

No other module of ``server`` imports them, so an upgrade of Flower is checked here.
"""

from __future__ import annotations

# The app bundle that Flower requires for every run (server/coordinator/app_bundle.py).
from flwr.cli.build import build_fab_from_files

# The server's node ID, and the status of a finished run.
from flwr.common.constant import SUPERLINK_NODE_ID, Status
from flwr.common.serde import fab_to_proto

# Control API: registers sites, submits and stops runs (server/coordinator/control_client.py).
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)

# Fleet API: the gateway checks sites' requests and records SuperLink's responses (server/gateway).
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

# The run that a grid must describe (server/simulation/inline_grid.py).
from flwr.supercore.run import Run

# protobuf's error for bytes that are not a valid message (server/gateway).
from google.protobuf.message import DecodeError as ProtobufError  # type: ignore[import-untyped]  # -- no types

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
