"""The README.md of a kit: what it is, the one command to run, and what to look after."""

from __future__ import annotations

from common.config.federation import FederationConfig
from common.config.network import format_endpoint

_SITE = """\
# {name} in the federation {federation}

This folder lets one site, **{name}**, take part in the federation *{federation}*. No scan leaves the site: what is
sent is a model update and a few numbers per round, and only after somebody at the site has approved it.

Look at what the federation wants, approve it, and join:

    fedvox-client review --kit .
    fedvox-client approve --kit .
    fedvox-client start --kit . --data /path/to/scans

Or in two containers: the *courier* has the network and no scans, the *runner* has the scans and no network. Name this
folder and the folder of the scans in `.env`, as `deploy/site/README.md` of Fedvox says, approve, and in `deploy/site`

    docker compose up -d

The site needs outbound access to `{endpoint}` (TCP, TLS), directly or through a proxy (`HTTPS_PROXY`). Nothing needs to
reach the site. A proxy that opens encrypted connections must leave this one alone: ask IT to exempt `{address}`.

{key}

| file | what it is |
| --- | --- |
| `kit.yaml` | whose kit this is, and where the server is |
| `ca.crt` | the federation's authority: the site trusts no other |
| `site.crt` | the certificate that proves to the server who the site is |
| `site.key` | the private key of that certificate |
| `federation.yaml`, `plan.json` | what is trained, and how |

`fedvox-client preflight` says when the certificate is about to expire. The coordinator then sends a new `site.crt`; the
key stays the same.
"""

_KEY_INSIDE = """\
`site.key` is private: whoever has it can take part in the site's name. Keep this folder where only the account that
runs `fedvox-client` can read it. If it was lost or copied, tell the coordinator, who revokes it and sends a new one."""

_KEY_AT_SITE = """\
The site made its own key, so this kit comes without `site.key`: copy the one that `fedvox-client request` wrote into
this folder, readable for the account that runs `fedvox-client` and nobody else. If it was lost or copied, tell the
coordinator, who revokes it, and make a new one."""

_SERVER = """\
# Server of the federation {federation}

    fedvox-server start --kit .

This starts the federation, waits for the sites ({sites}), and ends with the released model and a report in `run/`.
How far it is:

    fedvox-server status run

Or in two containers: the *gateway* is what sites reach, the *server* is all else. Name this folder in `.env`, as
`deploy/server/README.md` of Fedvox says, and in `deploy/server`

    docker compose up -d

Sites must reach `{endpoint}` (TCP, TLS); no other port of this machine needs to be open.

| file | what it is |
| --- | --- |
| `kit.yaml` | whose kit this is, and where sites reach the server |
| `ca.crt` | the federation's authority, which signed the certificates of server and sites |
| `ca.crl` | the certificates that it has revoked |
| `server.crt`, `server.key` | the server's certificate and its private key: keep it readable for one account |
| `sites/NAME.crt` | the sites that are let in; removing a file revokes the site at once |
| `federation.yaml`, `plan.json` | what is trained, and how |

`fedvox-server revoke` revokes a site for good. `fedvox-server provision`, run again, renews certificates that are about
to expire: the server's, and the sites', which must be sent to them.
"""


def site_readme(config: FederationConfig, name: str, own_key: bool) -> str:
    """The text for a site; ``own_key``: the site made its key itself."""
    key = _KEY_AT_SITE if own_key else _KEY_INSIDE
    address = config.network.address if config.network else ""
    return _SITE.format(name=name, federation=config.name, endpoint=_endpoint(config), address=address, key=key)


def server_readme(config: FederationConfig) -> str:
    """The text for the server."""
    sites = ", ".join(config.network.sites) if config.network else ""
    return _SERVER.format(federation=config.name, endpoint=_endpoint(config), sites=sites)


def _endpoint(config: FederationConfig) -> str:
    return format_endpoint(config.network.address, config.network.port) if config.network else ""
