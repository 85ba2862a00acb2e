"""Templates of the shell and of one side: everything escaped, and everything that somebody named visible."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common.formatting import visible

STATIC = Path(__file__).parent / "static"
TEMPLATES = Path(__file__).parent / "templates"


def shown(value: object) -> object:
    """Make what a page's reader could not see, or a browser would obey, visible; markup stays as it is."""
    return visible(value, keep="\n") if type(value) is str else value


def shown_in_json(value: Any) -> Any:
    """Do as ``shown`` to all texts of JSON values: a script shows them too."""
    if isinstance(value, Mapping):
        return {str(shown(str(key))): shown_in_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shown_in_json(item) for item in value]
    return shown(value)


def environment(folders: Iterable[Path]) -> Environment:
    """Return an environment for the templates in some folders, with escaping; earlier folders win."""
    return Environment(
        loader=FileSystemLoader(list(folders)),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def moment(time: str | None) -> str:
    """Return a time in ISO 8601, to the second, without the zone and letters; the page says that it is UTC."""
    return time[:19].replace("T", " ") if time else "–"


class Renderer:
    """Renders the templates of the shell and of one side.

    Parameters
    ----------
    folder
        The side's room.
    asset
        Returns the address of a file of ``static``.
    """

    def __init__(self, folder: Path, asset: Callable[[str], str]) -> None:
        self._environment = environment([folder / "templates", TEMPLATES])
        self._environment.globals["asset"] = asset
        self._environment.filters["moment"] = moment

    def __call__(self, template: str, values: Mapping[str, Any]) -> str:
        """Return a page as HTML."""
        return self._environment.get_template(template).render(values)
