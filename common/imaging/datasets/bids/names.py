"""Names of files in BIDS: entities, such as ``ses-2``, and a suffix, such as ``T1w``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.imaging.io.nifti import nifti_stem

SUBJECT = re.compile(r"sub-[A-Za-z0-9+]+")
_SESSION = re.compile(r"ses-[A-Za-z0-9+]+")
_ENTITY = re.compile(r"([A-Za-z]+)-([A-Za-z0-9+]+)")
_SUFFIX = re.compile(r"[A-Za-z0-9]+")
CONTRAST = "ce"
_OF_LABELS = frozenset({"space", "res", "den", "desc", "label", "seg", "atlas", "hemi", "from"})


@dataclass(frozen=True)
class BidsName:
    """A file by its name.

    Attributes
    ----------
    path
        The file.
    entities
        Names and values, in their order.
    suffix
        What kind of file it is.
    """

    path: Path
    entities: tuple[tuple[str, str], ...]
    suffix: str

    @property
    def case(self) -> str:
        """All entities that channels and label maps of one scan share."""
        kept = [(key, value) for key, value in self.entities if key != CONTRAST and key not in _OF_LABELS]
        return "_".join(f"{key}-{value}" for key, value in kept)

    @property
    def channel(self) -> str:
        """The suffix, after the contrast agent if one is named."""
        agent = self.value(CONTRAST)
        return f"{CONTRAST}-{agent}_{self.suffix}" if agent else self.suffix

    @property
    def subject(self) -> str:
        """The patient."""
        return f"sub-{self.value('sub')}"

    def value(self, key: str) -> str:
        """Return the value of an entity; empty if it has none."""
        return dict(self.entities).get(key, "")


def parse_name(path: Path) -> BidsName | None:
    """Return the parts of a NIfTI file's name; None if it is not named as BIDS wants, or lies elsewhere."""
    if (found := split_stem(nifti_stem(path) or "")) is None:
        return None
    folders = [folder for folder in path.parts[-4:-1] if SUBJECT.fullmatch(folder) or _SESSION.fullmatch(folder)]
    first = ["-".join(entity) for entity in found[0][: len(folders)]]
    return BidsName(path, *found) if first == folders and folders else None


def split_stem(stem: str) -> tuple[tuple[tuple[str, str], ...], str] | None:
    """Return entities and suffix of a name without its ending; None if it is not of that form."""
    *words, suffix = stem.split("_")
    entities = [match for word in words if (match := _ENTITY.fullmatch(word))]
    pairs = tuple((match[1], match[2]) for match in entities)
    whole = len(entities) == len(words) and _SUFFIX.fullmatch(suffix) and len(dict(pairs)) == len(pairs)
    return (pairs, suffix) if whole else None


def anat_files(root: Path) -> Iterator[Path]:
    """List the NIfTI files in the folders of anatomical scans of all subjects and sessions, sorted."""
    for subject in subject_folders(root):
        sessions = [folder for folder in sorted(subject.iterdir()) if _SESSION.fullmatch(folder.name)]
        for folder in (subject, *sessions):
            if (folder / "anat").is_dir():
                yield from (path for path in sorted((folder / "anat").iterdir()) if nifti_stem(path))


def subject_folders(root: Path) -> list[Path]:
    """List the folders of subjects."""
    return [folder for folder in sorted(root.iterdir()) if SUBJECT.fullmatch(folder.name) and folder.is_dir()]
