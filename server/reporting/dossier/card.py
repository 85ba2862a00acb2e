"""The card of a run's released model, as ``fedvox-server export`` writes it, for the dossier."""

from __future__ import annotations

from pydantic import ValidationError

from common.errors import DamagedFileError
from common.models.bundle_file import DESCRIPTION_FILE, BundleDescription
from server.export.model_card import CardFacts, model_card
from server.export.signing import audit_part
from server.reporting.dossier.facts import MODEL_FILE, RunFacts
from server.run_store.damage import check_model
from server.run_store.folder import RunFolder

CARD_FILE = "model-card.md"


def card_of(facts: RunFacts) -> tuple[str | None, str]:
    """Return the card, or None if there is no model that is as it was released, and a sentence about that."""
    if MODEL_FILE not in facts.files:
        return None, "There is no released model, so there is no model card yet."
    folder = RunFolder(facts.run.folder)
    try:
        check_model(folder)
        description = BundleDescription.model_validate_json((folder.path / "model" / DESCRIPTION_FILE).read_bytes())
        if description.weights.sha256 != facts.files[MODEL_FILE]:
            return None, f"There is no model card: {DESCRIPTION_FILE} describes other weights than {MODEL_FILE}."
        audited = audit_part(folder, description.weights.sha256) is not None
    except DamagedFileError as error:
        return None, f"There is no model card: {error.path.name} {error.problem}."
    except (OSError, ValidationError):
        return None, f"There is no model card: model/{DESCRIPTION_FILE} cannot be read."
    card = CardFacts(facts.run, description.plan, description.provenance, description.weights.sha256, audited)
    return model_card(card), f"{CARD_FILE} is the card that fedvox-server export writes."
