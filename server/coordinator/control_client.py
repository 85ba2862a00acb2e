"""Client for SuperLink's Control API: registers sites, and submits, monitors and stops runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from common.errors import FedvoxError
from common.system.direct_calls import DirectCalls
from server.flower import (
    ControlHttpClient,
    Fab,
    ListNodesRequest,
    ListRunsRequest,
    NodeStatus,
    RegisterNodeRequest,
    RuntimeVersionHttpInterceptor,
    StartRunRequest,
    Status,
    StopRunRequest,
    UnregisterNodeRequest,
    fab_to_proto,
)


class ControlError(FedvoxError):
    """SuperLink did not answer, or refused a request."""


@dataclass(frozen=True)
class Node:
    """A registered site, as SuperLink knows it.

    Attributes
    ----------
    key
        The public key as PEM.
    online
        Whether its courier sent a heartbeat recently.
    """

    node_id: int
    name: str
    key: bytes
    online: bool


class SuperLinkControl:
    """A connection to SuperLink's Control API, until it is closed.

    All methods raise ``ControlError`` if SuperLink does not answer or refuses.

    Parameters
    ----------
    port
        SuperLink's port on the loopback interface.
    """

    def __init__(self, port: int) -> None:
        self._calls = DirectCalls()
        self._client = ControlHttpClient.from_server_address(
            server_address=f"127.0.0.1:{port}",
            insecure=True,  # on the loopback interface
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI"), self._calls],
        )

    def close(self) -> None:
        """Close the connection."""
        self._calls.close()
        self._client.close()

    def nodes(self) -> list[Node]:
        """Return the registered sites."""
        try:
            found = self._client.ListNodes(ListNodesRequest()).nodes_info
        except httpx.HTTPError as error:
            raise _failed("list sites", error) from None
        return [
            Node(node.node_id, node.name, node.public_key, node.status == NodeStatus.ONLINE)
            for node in found
            if node.status != NodeStatus.UNREGISTERED
        ]

    def register(self, name: str, key: bytes) -> int:
        """Register a site's key and return its node ID."""
        try:
            return int(self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id)
        except httpx.HTTPError as error:
            raise _failed(
                f"register {name} (a revoked key cannot be registered again; make a new one)", error
            ) from None

    def unregister(self, node_id: int) -> None:
        """Revoke a node's key."""
        try:
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))
        except httpx.HTTPError as error:
            raise _failed("revoke a site's key", error) from None

    def submit(self, bundle: bytes) -> int:
        """Start a Flower run and return its ID."""
        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        try:
            response = self._client.StartRun(StartRunRequest(fab=fab_to_proto(fab)))
        except httpx.HTTPError as error:
            raise _failed("start the run", error) from None
        if not response.run_id:
            raise ControlError("SuperLink did not accept the run; see logs/superlink.log")
        return int(response.run_id)

    def is_over(self, run_id: int) -> bool:
        """Return whether a run has ended, for any reason."""
        try:
            runs = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.NOT_FOUND:
                return True
            raise _failed("look for the run", error) from None
        except httpx.HTTPError as error:
            raise _failed("look for the run", error) from None
        return run_id not in runs or runs[run_id].status.status == Status.FINISHED

    def stop(self, run_id: int) -> None:
        """Stop a run unless it has ended."""
        try:
            self._client.StopRun(StopRunRequest(run_id=run_id))
        except httpx.HTTPStatusError:
            if not self.is_over(run_id):
                raise ControlError("SuperLink did not stop the previous run; see logs/superlink.log") from None
        except httpx.HTTPError as error:
            raise _failed("stop the previous run", error) from None

    def stop_all(self) -> None:
        """Stop every run that an earlier server left behind."""
        try:
            runs: Mapping[int, object] = self._client.ListRuns(ListRunsRequest(limit=1000)).run_dict
        except httpx.HTTPError as error:
            raise _failed("list runs", error) from None
        for run_id in runs:
            if not self.is_over(run_id):
                self.stop(run_id)


def _failed(what: str, error: httpx.HTTPError) -> ControlError:
    if isinstance(error, httpx.HTTPStatusError):
        detail = f"{error.response.status_code} {error.response.text[:200]}"
    else:
        detail = f"{type(error).__name__} {error}"
    return ControlError(f"SuperLink could not {what}: {' '.join(detail.split())}")


__all__ = ["ControlError", "Node", "SuperLinkControl"]
