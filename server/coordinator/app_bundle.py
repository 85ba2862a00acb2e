"""The app bundle that Flower requires for a run. It holds configuration and no code."""

from __future__ import annotations

import json

from common.config.federation import FederationConfig
from server.flower import (
    build_fab_from_files,
)

SERVER_APP = "server.coordinator.server_app:app"


CLIENT_APP = "client.runner.client_app:not_run_from_a_bundle"


def build_bundle(config: FederationConfig) -> bytes:
    """Build the app bundle of a run: names and digests, and no code.

    Flower requires a bundle for every run and sends it to the sites. Ours names the federation and the module of the
    server app. Sites run only their own installed code.
    """
    values = {"federation": config.name, "digest": config.digest()}
    project = f"""\
[project]
name = "fedvox-run"
version = "1.0.0"
description = "Configuration of a Fedvox federation; holds no code"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedvox"

[tool.flwr.app.components]
serverapp = "{SERVER_APP}"
clientapp = "{CLIENT_APP}"

[tool.flwr.app.config]
{chr(10).join(f"{name} = {json.dumps(value)}" for name, value in values.items())}
"""
    return build_fab_from_files({"pyproject.toml": project.encode()})[0]
