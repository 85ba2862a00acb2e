"""The app bundle that Flower wants for a run. It holds configuration and no code."""

from __future__ import annotations

import json

from common.config.federation import FederationConfig
from server.flower import (
    build_fab_from_files,
)

SERVER_APP = "server.coordinator.server_app:app"


CLIENT_APP = "client.runner.client_app:not_run_from_a_bundle"


def build_bundle(config: FederationConfig) -> bytes:
    """The app bundle of a run: names and digests, and no code.

    Flower wants a bundle with every run and hands it to the sites. Ours says which federation it is, and where the
    server's installation has the app; what a site runs is what the site has installed.
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
