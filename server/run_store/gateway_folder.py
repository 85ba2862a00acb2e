"""The folder through which gateway, server app and ``start`` communicate; each file has one writer.

| file | written by | content |
| --- | --- | --- |
| ``nodes.json`` (in the run folder) | ``start`` | Flower node -> site |
| ``superlink.json`` | ``start`` | port of SuperLink on the loopback interface |
| ``sites/SITE/tasks/NAME.json`` | server app | what the site may fetch and send for a task |
| ``sites/SITE/updates/SHA256`` | gateway | a complete update with this digest; ``.SHA256.part`` while it is uploaded |
| ``sites/SITE/heartbeat.json`` | gateway | the site's last heartbeat |
| ``messages/MESSAGE`` | gateway | a message handed out to a node: the node, the run and its objects |
| ``replies/MESSAGE`` | gateway | marks that SuperLink has the whole reply to this message |
| ``bells/NODE`` | server app | touched when a message waits for a node |
| ``gateway.json`` | gateway | its process, address and start time |
| ``refused.json`` | gateway | refused requests: site -> reason -> count |

Records are replaced atomically. Any file may be lost at any time; the run continues without it.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.config.network import is_site_name
from common.protocol.codec import is_task_name
from common.protocol.messages import Heartbeat
from common.system.files import OWN_FILE, cannot_write, write_atomically
from common.weights.digest import is_sha256

REFUSED_FILE = "refused.json"
_MESSAGE = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class OpenTask:
    """What a site may fetch and send for one task.

    Attributes
    ----------
    name
        Name of the task.
    model
        SHA-256 of the weights that it may fetch: ``size`` bytes from ``offset`` of ``file``, a path in the run folder.
    update_bytes
        Size of the one update that it may send; 0 for none.
    """

    name: str
    model: str
    file: str
    offset: int
    size: int
    update_bytes: int


@dataclass(frozen=True)
class HandedOut:
    """A Flower message that was handed out to a node.

    Attributes
    ----------
    node, run
        Flower's identifiers of the recipient and of the run.
    objects
        Identifiers of the message's objects.
    """

    node: int
    run: int = 0
    objects: tuple[str, ...] = ()


@dataclass(frozen=True)
class LastHeartbeat:
    """A site's last heartbeat; ``time``: when it arrived, in seconds since the epoch by the server's clock."""

    time: float
    beat: Heartbeat


class GatewayFolder:
    """Reads and writes the files above, under ``gateway`` in a run folder.

    Parameters
    ----------
    run
        The run folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.path = run / "gateway"

    def make(self) -> None:
        """Create the folders.

        Raises
        ------
        OutputError
            They cannot be created.
        """
        try:
            self.run.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in ("sites", "messages", "replies", "bells"):
                (self.path / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise cannot_write(self.path, error) from None

    # From ``start``.

    def set_superlink(self, port: int) -> None:
        """Record the port that SuperLink listens on."""
        _replace(self.path / "superlink.json", {"port": port})

    def superlink(self) -> int | None:
        """Return SuperLink's port, or None if it is not known yet."""
        port = _read(self.path / "superlink.json").get("port")
        return port if isinstance(port, int) else None

    # From the server app.

    def open_task(self, site: str, task: OpenTask) -> None:
        """Let a site fetch the task's model and send its update."""
        _replace(self._site(site) / "tasks" / f"{task.name}.json", asdict(task))

    def close_tasks(self, keep: frozenset[str] = frozenset()) -> None:
        """Close all tasks of all sites except these names; uploads for closed tasks are refused."""
        for file in (self.path / "sites").glob("*/tasks/*.json"):
            if file.stem not in keep:
                file.unlink(missing_ok=True)

    def open_tasks(self, site: str) -> list[OpenTask]:
        """Return a site's open tasks."""
        folder = self._site(site) / "tasks"
        found = [_read(file) for file in sorted(folder.glob("*.json"))]
        return [task for content in found if (task := _task_of(content)) is not None]

    def ring(self, node: int) -> None:
        """Signal that a message waits for a node."""
        with contextlib.suppress(FileNotFoundError):
            self.bell(node).touch()

    def bell(self, node: int) -> Path:
        """Return the file that ``ring`` touches."""
        return self.path / "bells" / str(node)

    # From sites, through the gateway.

    def sites(self) -> list[str]:
        """Return the sites that have had a task or have sent something."""
        return sorted(path.name for path in (self.path / "sites").glob("*") if is_site_name(path.name))

    def updates(self, site: str) -> Path:
        """Return the folder of a site's updates."""
        return self._site(site) / "updates"

    def note_heartbeat(self, site: str, beat: Heartbeat) -> None:
        """Record a site's heartbeat."""
        _replace(self._site(site) / "heartbeat.json", {"time": time.time(), "beat": asdict(beat)})

    def heartbeat(self, site: str) -> LastHeartbeat | None:
        """Return a site's last heartbeat, or None if there was none."""
        content = _read(self._site(site) / "heartbeat.json")
        try:
            values = content["beat"]
            beat = Heartbeat(tuple(values["tasks"]), str(values["task"]), int(values["step"]), int(values["steps"]))
            return LastHeartbeat(float(content["time"]), beat)
        except (KeyError, TypeError, ValueError):
            return None

    def note_handed_out(self, message: str, node: int, run: int = 0, objects: Iterable[str] = ()) -> None:
        """Record the node that a message was handed out to, to authorise requests for its objects and its reply."""
        _replace(self._message("messages", message), {"node": node, "run": run, "objects": list(objects)})

    def handed_out(self, message: str) -> HandedOut | None:
        """Return the record of a handed-out message, or None if it was never handed out or is forgotten."""
        content = _read(self._message("messages", message))
        try:
            return HandedOut(int(content["node"]), int(content["run"]), tuple(map(str, content["objects"])))
        except (KeyError, TypeError, ValueError):
            return None

    def all_handed_out(self) -> dict[str, HandedOut]:
        """Return all handed-out messages that are not forgotten."""
        names = [path.name for path in (self.path / "messages").glob("*") if _MESSAGE.fullmatch(path.name)]
        return {name: found for name in names if (found := self.handed_out(name)) is not None}

    def note_reply(self, message: str) -> None:
        """Record that SuperLink has the whole reply to a message."""
        _replace(self._message("replies", message), {})

    def has_reply(self, message: str) -> bool:
        """Return whether SuperLink has the whole reply to a message."""
        return self._message("replies", message).exists()

    def forget_message(self, message: str) -> None:
        """Forget a message and its reply; later uploads for it are refused."""
        for folder in ("messages", "replies"):
            self._message(folder, message).unlink(missing_ok=True)

    def refused(self) -> dict[str, dict[str, int]]:
        """Return how many requests the gateway refused: site -> reason -> count."""
        content = _read(self.path / REFUSED_FILE)
        return {
            site: {reason: count for reason, count in reasons.items() if isinstance(count, int)}
            for site, reasons in content.items()
            if isinstance(reasons, dict)
        }

    def remove(self) -> None:
        """Remove everything after the run, because the folder holds sites' updates."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _site(self, site: str) -> Path:
        if not is_site_name(site):
            raise ValueError("not a site name")
        return self.path / "sites" / site

    def _message(self, folder: str, message: str) -> Path:
        if not _MESSAGE.fullmatch(message):
            raise ValueError("not a message identity")
        return self.path / folder / message


def _task_of(content: dict[str, Any]) -> OpenTask | None:
    try:
        task = OpenTask(**content)
    except TypeError:
        return None
    return task if is_task_name(task.name) and is_sha256(task.model) else None


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _replace(file: Path, content: dict[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(file, error) from None
    # Not flushed to disk: after a power failure all of this is requested and sent again.
    write_atomically(file, json.dumps(content), durable=False, remedy=OWN_FILE)
