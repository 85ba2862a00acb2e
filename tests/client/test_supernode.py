"""On Flower's own SuperNode, less its connection."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate import NodeStateFactory

from client.supernode import STATE_VARIABLE, leave_bundles_shut

RUN, NODE = 7, 9


@pytest.mark.parametrize("content", [b"no archive at all", b""])
def test_a_task_arrives_whatever_its_bundle_holds(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "get_fused_config_from_fab"
    monkeypatch.setattr(start_client_internal, name, getattr(start_client_internal, name))  # to be put back
    leave_bundles_shut(start_client_internal)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, SUPERLINK_NODE_ID, 1
    message = Message(RecordDict({"do": ConfigRecord({"what": "work"})}), NODE, "train")
    message.metadata.__dict__["_message_id"] = message.object_id
    parts = get_all_nested_objects(message)
    objects = ObjectStoreFactory()
    state: Any = NodeStateFactory(objectstore_factory=objects).state()
    state.set_node_id(NODE)
    received = start_client_internal._pull_and_store_message(
        state=state,
        object_store=objects.store(),
        node_config={},
        receive=lambda: (message, get_object_tree(message)),
        get_run=Run.create_empty,
        get_fab=lambda digest, run: Fab(digest, content, {}),
        pull_object=lambda run, identity: parts[identity].deflate(),
        confirm_message_received=lambda run, identity: None,
        trusted_entities=None,
    )
    assert received == RUN
    assert objects.store().get(message.object_id) == message.deflate()


FAILS = """
import threading
from flwr.supernode.cli import flower_supernode as module
from client import supernode

def fail():
    threading.Thread(target=threading.Event().wait).start()
    raise RuntimeError("the connection is gone")

module.flower_supernode = fail
supernode.main()
"""


def test_the_process_ends_with_its_main_loop_although_its_log_is_on_a_full_disk(tmp_path: Path) -> None:
    environment = os.environ | {STATE_VARIABLE: str(tmp_path)}
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", FAILS]
        assert subprocess.run(command, env=environment, stdout=full, stderr=full, timeout=60).returncode == 1
