"""The README.md of a kit: what it is, the one command to run, and what to look after."""

from __future__ import annotations

from common.config import FederationConfig
from common.network_config import format_endpoint

_SITE = """\
# {name} in the federation {federation}

This folder lets one site, **{name}**, take part in the federation *{federation}*. No scan leaves the site: what is
sent is a model update and a few numbers per round, and only after somebody at the site has approved it.

Look at what the federation wants, approve it, and join:

    fedvox-client review --kit .
    fedvox-client approve --kit .
    fedvox-client start --kit . --data /path/to/scans

Or in two containers, one with the network and one with the scans: name this folder and that of the scans in `.env`, as
`deploy/site/README.md` of Fedvox says, approve, and in `deploy/site`

    docker compose up -d

The site needs a way out to `{endpoint}` (TCP, TLS). Nothing needs to reach the site.

{key}

| file | what it is |
| --- | --- |
| `kit.yaml` | whose kit this is, and where the server is |
| `ca.crt` | the certificate by which the server is recognised; the site trusts no other |
| `node.key`, `node.pub` | the key by which the site is recognised |
| `federation.yaml`, `plan.json` | what is trained, and how |
"""

_KEY_INSIDE = """\
`node.key` is private: whoever has it can take part in the site's name. Keep this folder where only the account that
runs `fedvox-client` can read it. If it was lost or copied, tell the coordinator, who revokes it and sends a new one."""

_KEY_AT_SITE = """\
The site made its own key, so this kit has no `node.key`: put the one that `fedvox-client request` wrote into this
folder, readable for the account that runs `fedvox-client` and nobody else."""

_SERVER = """\
# Server of the federation {federation}

    fedvox-server start --kit .

This starts the federation, waits for the sites ({sites}), and ends with the released model and a report in `run/`.
How far it is:

    fedvox-server status run

Or in two containers, the proxy and all else: name this folder in `.env`, as `deploy/server/README.md` of Fedvox says,
and in `deploy/server`

    docker compose up -d

Sites must reach `{endpoint}` (TCP, TLS); no other port of this machine needs to be open. `server.key` is private.
The sites in `sites/` are let in; `fedvox-server revoke` takes one out.
"""


def site_readme(config: FederationConfig, name: str, own_key: bool) -> str:
    """The text for a site; ``own_key``: the site made its key itself."""
    key = _KEY_AT_SITE if own_key else _KEY_INSIDE
    return _SITE.format(name=name, federation=config.name, endpoint=_endpoint(config), key=key)


def server_readme(config: FederationConfig) -> str:
    """The text for the server."""
    sites = ", ".join(config.network.sites) if config.network else ""
    return _SERVER.format(federation=config.name, endpoint=_endpoint(config), sites=sites)


def _endpoint(config: FederationConfig) -> str:
    return format_endpoint(config.network.address, config.network.port) if config.network else ""
