"""The README.md of a kit: what it is, which commands to run, and how to keep it safe."""

from __future__ import annotations

from common.config.federation import FederationConfig
from common.config.network import format_endpoint

_SITE = """\
# {name} in the federation {federation}

This folder lets one site, **{name}**, take part in the federation *{federation}*. No scan leaves the site. It sends a
model update and a few numbers per round, and only after someone at the site has approved this.

Review what the federation asks for, approve it, and join:

    fedvox-client review --kit .
    fedvox-client approve --kit .
    fedvox-client start --kit . --data /path/to/scans

Or use two containers: the *courier* has network access but no scans; the *runner* has the scans but no network access.
Set this folder and the folder of the scans in `.env`, as described in Fedvox's `deploy/site/README.md`. Approve, then
run in `deploy/site`:

    docker compose up -d

The site needs outbound access to `{endpoint}` (TCP, TLS), directly or through a proxy (`HTTPS_PROXY`). It needs no
inbound access. If the hospital's proxy inspects TLS traffic, ask IT to exempt `{address}`.

{key}

| file | content |
| --- | --- |
| `kit.yaml` | the site's name and the server's address |
| `ca.crt` | the certificate of the federation's authority, the only one that the site trusts |
| `site.crt` | the certificate that authenticates the site to the server |
| `site.key` | the certificate's private key |
| `federation.yaml`, `plan.json` | what is trained, and how |
| `chosen.json`, if there is one | what of it was chosen from the fingerprints of all sites |

`fedvox-client preflight` warns when the certificate is about to expire. The coordinator then sends a new `site.crt`;
the key stays the same.
"""

_KEY_INSIDE = """\
`site.key` is private: anyone who has it can act as the site. Keep this folder where only the account that runs
`fedvox-client` can read it. If the key is lost or copied, tell the coordinator, who revokes it and sends a new one."""

_KEY_AT_SITE = """\
The site made its own key, so this kit comes without `site.key`. Copy the key that `fedvox-client request` wrote into
this folder, readable only by the account that runs `fedvox-client`. If the key is lost or copied, tell the coordinator,
who revokes it, and make a new one."""

_SERVER = """\
# Server of the federation {federation}

    fedvox-server start --kit .

This starts the federation, waits for the sites ({sites}), and ends with the released model and a report in `run/`.
To see its progress:

    fedvox-server status run

Or use two containers: sites connect to the *gateway*; the *server* runs everything else. Set this folder in `.env`, as
described in Fedvox's `deploy/server/README.md`, then run in `deploy/server`:

    docker compose up -d

Sites must reach `{endpoint}` (TCP, TLS); no other port of this machine needs to be open.

| file | content |
| --- | --- |
| `kit.yaml` | the federation's name and the server's address |
| `ca.crt` | the certificate of the federation's authority, which signed the certificates of server and sites |
| `ca.crl` | the authority's revocation list |
| `server.crt`, `server.key` | the server's certificate and private key; keep the key readable by one account only |
| `sites/NAME.crt` | the certificates of the admitted sites; removing a file shuts the site out at once |
| `federation.yaml`, `plan.json` | what is trained, and how |
| `chosen.json`, if there is one | what of it was chosen from the fingerprints of all sites |

`fedvox-server revoke` permanently revokes a site's key. Run `fedvox-server provision` again to renew certificates that
are about to expire, then send the sites their new ones.
"""


def site_readme(config: FederationConfig, name: str, own_key: bool) -> str:
    """Return a site's README; ``own_key`` says whether the site made its own key."""
    key = _KEY_AT_SITE if own_key else _KEY_INSIDE
    address = config.network.address if config.network else ""
    return _SITE.format(name=name, federation=config.name, endpoint=_endpoint(config), address=address, key=key)


def server_readme(config: FederationConfig) -> str:
    """Return the server's README."""
    sites = ", ".join(config.network.sites) if config.network else ""
    return _SERVER.format(federation=config.name, endpoint=_endpoint(config), sites=sites)


def _endpoint(config: FederationConfig) -> str:
    return format_endpoint(config.network.address, config.network.port) if config.network else ""
