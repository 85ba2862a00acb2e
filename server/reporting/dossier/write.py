"""Writes the dossier of a run into a new folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.errors import ConfigError, OutputError
from common.system.files import new_folder, write_atomically
from server.reporting.dossier.card import CARD_FILE
from server.reporting.dossier.consent import read_consents
from server.reporting.dossier.contents import Dossier, compose
from server.reporting.dossier.facts import gather
from server.reporting.dossier.render import cover_as_markdown, dossier_as_html, page_as_markdown
from server.reporting.dossier.sbom import SBOM_FILE, bill_of_materials

HTML_FILE = "dossier.html"


def write_dossier(run: Path, out: Path, consents: Sequence[Path] = ()) -> Dossier:
    """Write the dossier of a run, finished or not.

    Parameters
    ----------
    run
        The run folder; nothing in it is changed.
    out
        A folder that does not exist yet. It appears when all its files are written.
    consents
        Consent documents of hospitals, as ``server.reporting.dossier.consent`` describes them.

    Returns
    -------
    Dossier
        What was written.

    Raises
    ------
    ConfigError
        A consent document cannot be used, or the run is a simulation, which has none.
    FedvoxError
        ``run`` is not the folder of a run.
    OutputError
        ``out`` exists, or cannot be written.
    """
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out}: already exists; choose another --out")
    facts = gather(run)
    if consents:
        if facts.is_simulated:
            raise ConfigError("--consent: this run was a simulation, which asks no hospital; drop the option")
        digest = None if facts.state is None else facts.state.digest
        facts = facts.with_consents(read_consents(consents, digest, facts.sites))
    dossier = compose(facts)
    with new_folder(out) as folder:
        for name, content in files_of(dossier).items():
            write_atomically(folder / name, content)
    return dossier


def files_of(dossier: Dossier) -> dict[str, str]:
    """Return the content of every file, by name."""
    pages = {f"{page.name}.md": page_as_markdown(page, dossier.notices) for page in dossier.pages}
    others = {HTML_FILE: dossier_as_html(dossier), SBOM_FILE: bill_of_materials(dossier.facts)}
    others |= {} if dossier.card is None else {CARD_FILE: dossier.card}
    return {"README.md": cover_as_markdown(dossier), **pages, **others}
