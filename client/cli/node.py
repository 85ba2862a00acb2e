"""The command ``listen``: a DICOM node, its status, and another try for what it set aside."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.system.cli import add_command, add_json, show


def add_node_command(commands: Any) -> None:
    """Add the command to the result of ``ArgumentParser.add_subparsers``."""
    text = "segment what a PACS sends, and send results back"
    examples = ("--model model --config node.yaml", "status --config node.yaml", "retry --config node.yaml")
    listen = add_command(commands, "listen", _listen, text, *examples)
    listen.add_argument(
        "action",
        nargs="?",
        choices=["run", "status", "retry"],
        default="run",
        help="run the node (default), show what it does, or try again what it set aside",
    )
    listen.add_argument("--config", type=Path, required=True, metavar="node.yaml", help="callers, series, destinations")
    listen.add_argument("--model", type=Path, metavar="MODEL_DIR", help="model.safetensors + model.json, for run")
    add_json(listen)


def _listen(options: argparse.Namespace) -> int:
    from client.node.config import load_node
    from client.node.folders import NodeFolders

    node = load_node(options.config)
    folders = NodeFolders(node.state)
    if options.action == "run":
        if options.model is None:
            raise ConfigError("--model is missing: give the folder with model.safetensors and model.json")
        # Late: it imports pynetdicom.
        from client.node.service import listen

        listen(node, options.model)
    from client.node.status import node_status, retry, status_lines
    from common.config.federation import as_json

    if options.action == "retry":
        show(retry(folders, [one.name for one in node.destinations]))
        return 0
    status = node_status(folders)
    if options.json:
        show(as_json(status), end="")
    else:
        for line in status_lines(status):
            show(line)
    return 0 if status["running"] and not status["problem"] else 1
