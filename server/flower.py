"""All names of Flower's that are not public and that the server uses; ``deploy/docs/flower.md`` says what for.

Only this module of ``server`` imports them, so that an upgrade of Flower is looked at here.
"""

from __future__ import annotations

# The bundle that Flower wants with every run (server/control.py).
from flwr.cli.build import build_fab_from_files

# Whose messages come from the server, and how a run's end is told.
from flwr.common.constant import SUPERLINK_NODE_ID, Status
from flwr.common.serde import fab_to_proto

# Messages of the Control interface: sites are registered, runs submitted and stopped (server/control.py).
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

# What a grid must tell of its run (server/inline_grid.py).
from flwr.supercore.run import Run

__all__ = [
    "SUPERLINK_NODE_ID",
    "ControlHttpClient",
    "Fab",
    "ListNodesRequest",
    "ListRunsRequest",
    "NodeStatus",
    "RegisterNodeRequest",
    "Run",
    "RuntimeVersionHttpInterceptor",
    "StartRunRequest",
    "Status",
    "StopRunRequest",
    "UnregisterNodeRequest",
    "build_fab_from_files",
    "fab_to_proto",
]
