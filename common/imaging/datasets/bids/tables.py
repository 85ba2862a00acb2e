"""Tables that name the labels of BIDS (``dseg.tsv``): each label map has its own, by the inheritance principle.

Tables lie in the folder of a label map or above it. The nearest that has no entity which the label map lacks is the
label map's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import DataError
from common.formatting import visible
from common.imaging.datasets.bids.names import BidsName, split_stem
from common.imaging.datasets.patients_csv import read_column

_SUFFIX = "dseg"
_ADVICE = "write one table for all, or choose label maps of one kind by bids.labels in site.yaml"


def names_of_values(labels: Sequence[BidsName], root: Path) -> dict[int, str]:
    """Return what the numbers in label maps mean: foreground value -> name; empty if no table says it.

    Parameters
    ----------
    labels
        The label maps.
    root
        The folder of derivatives that they are in.

    Raises
    ------
    DataError
        A table cannot be read, several apply alike to one label map, tables contradict each other, or some label maps
        have one and others have none.
    """
    inside = {folder for label in labels for folder in _way_up(label, root)}
    tables = {folder: _tables_in(folder) for folder in inside}
    own = {label.path: _table_of(label, root, tables) for label in labels}
    named = {table: _read(table) for table in dict.fromkeys(own.values()) if table is not None}
    for path, table in own.items():
        if table is None and named:
            other = next(iter(named)).relative_to(root)
            raise DataError(path, f"has no table of label names, and others have one, such as {other}: {_ADVICE}")
    said: dict[int | str, tuple[object, Path]] = {}
    for table, names in named.items():
        for subject, meaning in _meanings(names).items():
            known, other = said.setdefault(subject, (meaning, table))
            if known != meaning:
                raise DataError(
                    table, f"contradicts {other.relative_to(root)} about {visible(str(subject))}: {_ADVICE}"
                )
    return {value: name for names in reversed(named.values()) for value, name in names.items()}


def _way_up(label: BidsName, root: Path) -> list[Path]:
    """Return the folders of a label map, from its own to the root."""
    return [folder for folder in label.path.parents if folder == root or root in folder.parents]


def _tables_in(folder: Path) -> dict[Path, frozenset[tuple[str, str]]]:
    """Return the tables in a folder with the entities in their names."""
    found = {path: split_stem(path.stem) for path in sorted(folder.glob(f"*{_SUFFIX}.tsv")) if path.is_file()}
    return {path: frozenset(name[0]) for path, name in found.items() if name is not None and name[1] == _SUFFIX}


def _table_of(
    label: BidsName, root: Path, tables: Mapping[Path, Mapping[Path, frozenset[tuple[str, str]]]]
) -> Path | None:
    for folder in _way_up(label, root):
        fitting = {path: len(entities) for path, entities in tables[folder].items() if entities <= {*label.entities}}
        best = [path for path, count in fitting.items() if count == max(fitting.values())]
        if len(best) > 1:
            raise DataError(best[1], f"names the labels of {label.path.name}, and so does {best[0].name}: remove one")
        if best:
            return best[0]
    return None


def _read(table: Path) -> dict[int, str]:
    rows = read_column(table, "index", "name", delimiter="\t")
    try:
        named = {int(index): name for index, (name, _) in rows.items() if name}
    except ValueError:
        raise DataError(table, "has an index that is no whole number") from None
    return {value: name for value, name in named.items() if 0 < value < 256}


def _meanings(names: Mapping[int, str]) -> dict[int | str, object]:
    """Return what a table says: the name of each value, and the values of each name."""
    found: dict[int | str, object] = {value: name.casefold() for value, name in names.items()}
    for name in set(found.values()):
        found[str(name)] = {value for value, other in found.items() if other == name}
    return found
