"""Synchronises SuperLink's registered keys with the server's kit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from common.audit import AuditLog
from common.certificates import CertificateError, admitted_certificate, key_of, public_pem
from common.system.files import write_atomically
from server.coordinator.control_client import ControlError, Node, SuperLinkControl
from server.run_store.folder import now
from server.run_store.locks import NODES_FILE


class Registration:
    """Registers and unregisters sites, and tracks which are connected.

    Parameters
    ----------
    kit
        The server's kit; ``sites/NAME.crt`` are the certificates of the admitted sites. Adding or removing a file
        takes effect at the next ``sync``.
    run
        The run folder; ``nodes.json`` maps nodes to sites for the server app.
    audit
        Records when sites are registered, revoked, connected and disconnected.
    say
        Called with each message for the operator.
    """

    def __init__(self, kit: Path, run: Path, audit: AuditLog, say: Callable[[str], None]) -> None:
        self._kit = kit
        self._run = run
        self._audit = audit
        self._say = say
        self._said: set[str] = set()
        self._online: dict[str, bool] = {}
        self._left: dict[str, str] = {}

    @property
    def online(self) -> Mapping[str, bool]:
        """Registered site -> whether its SuperNode is connected, as of the last ``sync``."""
        return self._online

    @property
    def left(self) -> Mapping[str, str]:
        """When each site that is no longer connected was last seen, ISO 8601 in UTC."""
        return self._left

    def sync(self, control: SuperLinkControl) -> None:
        """Register and revoke keys so that SuperLink matches the kit.

        Raises
        ------
        ControlError
            SuperLink does not answer.
        """
        wanted = self._wanted()
        kept: list[Node] = []
        for node in control.nodes():
            if wanted.get(node.name) == node.key:
                kept.append(node)
            else:
                control.unregister(node.node_id)
                self._audit.append("site_taken_out", site=node.name)
                self._say(f"{node.name}: key revoked")
        known = {node.name for node in kept}
        for name in sorted(set(wanted) - known):
            try:
                node_id = control.register(name, wanted[name])
            except ControlError as error:
                self._say_once(f"{name}: {error}")
                continue
            self._audit.append("site_let_in", site=name)
            kept.append(Node(node_id, name, wanted[name], False))
        self._write({node.node_id: node.name for node in kept})
        self._note({node.name: node.online for node in kept})

    def _wanted(self) -> dict[str, bytes]:
        wanted = {}
        for file in sorted((self._kit / "sites").glob("*.pub")):
            self._say_once(f"{file}: belongs to an older kit format and has no effect; delete it")
        for file in sorted((self._kit / "sites").glob("*.crt")):
            try:
                wanted[file.stem] = public_pem(key_of(admitted_certificate(self._kit, file.stem)))
            except CertificateError as error:
                self._say_once(str(error))
        return wanted

    def _write(self, names: Mapping[int, str]) -> None:
        text = json.dumps({str(node): name for node, name in sorted(names.items())}, indent=2) + "\n"
        file = self._run / NODES_FILE
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            write_atomically(file, text)

    def _note(self, online: dict[str, bool]) -> None:
        for name, here in online.items():
            if here != self._online.get(name, False):
                self._audit.append("site_connected" if here else "site_disconnected", site=name)
                self._say(f"{name} {'is connected' if here else 'is no longer connected'}")
                if not here:
                    self._left[name] = now()
        self._online = online

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)
