"""The consent document: what a federation asks of a hospital, in plain words, for a person to read before approving.

The list of what is sent follows from the fields of ``common.protocol.messages``, the closed list of what may leave,
and gives every field its meaning. A field without a meaning is an error, so neither this document nor an approval can
fall behind the protocol.
"""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import common
from client.consent.algorithm_terms import algorithm_sentence
from client.consent.fingerprint_terms import fingerprint_lines, fingerprint_terms
from client.consent.personal_terms import personal_terms
from client.consent.privacy_terms import privacy_terms, private_meanings
from common.config.chosen import CHOSEN_FILE, Chosen, read_chosen
from common.config.federation import FederationConfig, load_federation
from common.config.kit import Kit, read_kit
from common.config.privacy import PrivacyConfig
from common.config.strategy import SITES_OVER_A_NETWORK
from common.errors import ConfigError
from common.formatting import counted, visible
from common.models.bundle_file import FEWEST
from common.models.size import weight_count
from common.plan.plan import Plan
from common.protocol.messages import ErrorCode, Failure, Heartbeat, Result, SiteInfo
from common.weights.encoding import pieces_of

_HEADS = {
    "ledger_head": "hash of the last entry that your site wrote to the privacy ledger; empty without one. The server "
    "hands it back, so that your site notices if an older copy of the ledger was put in its place",
    "audit_head": "hash of the last entry in your site's log of what left, for the same purpose",
}
MEANINGS: Mapping[type, Mapping[str, str]] = {
    SiteInfo: {
        "site": "the name that your hospital has in this federation",
        "train_examples": "how many scans are trained on",
        "validation_examples": "how many scans are held out to score models",
        "fedvox": "version of Fedvox at your site",
        "flwr": "version of Flower, the transport, at your site",
        "torch": "version of PyTorch at your site",
        "python": "version of Python at your site",
        "device": "type of processor used: cpu or cuda",
        "precision": "number format of the computation: float32, bfloat16 or float16",
        **_HEADS,
    },
    Heartbeat: {
        "tasks": "names of the tasks that your site has received but not yet answered",
        "task": "name of the task that it is working on; empty if it is waiting",
        "step": "training steps done so far in this round",
        "steps": "training steps of the round",
    },
    Result: {
        "site": "the name that your hospital has in this federation",
        "run": "random name of the run, repeated from the task",
        "round": "number of the round, repeated from the task",
        "examples": "how many scans were trained on",
        "validation_examples": "how many scans the model was scored on",
        "steps": "training steps done",
        "train_loss": "training loss, one mean over the round's steps",
        "validation_loss": "validation loss, one mean over all validation scans",
        "dice": "for each label, one Dice: the mean over validation scans with the label or its prediction",
        "seconds": "how long the task took",
        "seconds_data": "how much of that was spent waiting for data",
        "seconds_compute": "how much of that was spent training",
        "seconds_evaluate": "how much of that was spent scoring",
        "epsilon": "privacy cost so far (epsilon); empty without differential privacy",
        "update": "SHA-256 of the model update file, which is sent with this message; empty without training",
        "local_dice": "one Dice of the model as trained at your site, with the global norm layers if those stay at the "
        "site: the mean over labels and validation scans; empty in rounds in which your site does not score it",
        **_HEADS,
        "personal_dice": "as dice, of your site's personal model; empty without one, and unless "
        "privacy.share_personal_score is true in your site.yaml",
    },
    Failure: {
        "code": "number of one of the error codes below",
        "reason": "type of error: the name of a class in the program",
    },
}
OCCASIONS: Mapping[type, str] = {
    SiteInfo: "before the first round, and after your site or the server restarts",
    Heartbeat: "every few seconds while your site is connected, as a heartbeat",
    Result: "after every round",
    Failure: "when something goes wrong",
}
NEVER_SENT = (
    "Scans, label maps or predictions, or any part or thumbnail of them.",
    "Names, dates, identifiers or anything else about a single patient; file and folder names.",
    "Scores or losses of individual patients: only means over all patients are sent. (The mean over one "
    "patient is that patient's score: use several for validation.)",
    "Error messages and logs. When something goes wrong, only a code and the type of error are sent.",
)


class ConsentError(ConfigError):
    """A kit asks for something that this document cannot describe faithfully."""


@dataclass(frozen=True)
class Field:
    """One field that leaves the hospital: its message, name and meaning."""

    message: str
    name: str
    meaning: str


def fields_that_leave(privacy: PrivacyConfig | None = None) -> list[Field]:
    """List every field of every message that a site sends, with its meaning in plain words.

    Parameters
    ----------
    privacy
        The federation's differential privacy; changes the meaning of some fields, but not the list.

    Raises
    ------
    ConsentError
        The protocol and the table of meanings list different fields.
    """
    found, changed = [], private_meanings(privacy)
    for message, meanings in MEANINGS.items():
        names = [field.name for field in fields(message)]
        if strangers := set(names) ^ set(meanings):
            raise ConsentError(f"{message.__name__}: {', '.join(sorted(strangers))}: fields and meanings differ")
        found += [Field(message.__name__, name, changed.get(name, meanings[name])) for name in names]
    return found


def digest_of_fields() -> str:
    """Return the SHA-256 of the list of fields; an approval covers only versions that send this list."""
    listed = [(field.message, field.name) for field in fields_that_leave()]
    return hashlib.sha256(json.dumps(sorted(listed)).encode()).hexdigest()


@dataclass(frozen=True)
class Request:
    """What a kit asks for: the kit, its federation, the plan that follows from it, and what was chosen for it."""

    kit: Kit
    federation: FederationConfig
    plan: Plan
    chosen: Chosen | None = None


def read_request(kit: Path) -> Request:
    """Read a kit and check that its files agree.

    Raises
    ------
    ConfigError
        A file is missing, cannot be read, or contradicts another.
    """
    described = read_kit(kit, "site")
    federation = load_federation(kit / "federation.yaml")
    if described.digest != federation.digest():
        raise ConsentError(f"{kit / 'federation.yaml'}: is not the federation named in kit.yaml; ask for a new kit")
    chosen = read_chosen(kit) if CHOSEN_FILE in described.files else None
    return Request(described, federation, read_plan(kit / "plan.json", federation), chosen)


def read_plan(file: Path, federation: FederationConfig) -> Plan:
    """Read a kit's plan and check that it follows from the federation file.

    Raises
    ------
    ConsentError
        The file is missing or damaged, or it does not follow.
    """
    # Imported late: it loads SciPy, which not every command needs.
    from common.planning.resolve import check_plan

    try:
        plan = Plan.model_validate_json(file.read_bytes())
    except (OSError, ValueError):
        raise ConsentError(f"{file}: is missing or damaged; ask for a new kit") from None
    try:
        check_plan(plan, federation)
    except ConfigError as error:
        raise ConsentError(f"{file}: does not follow from federation.yaml ({error}); ask for a new kit") from None
    return plan


def document(request: Request) -> dict[str, Any]:
    """Return the document as plain values; ``as_text`` renders it for people."""
    federation, plan = request.federation, request.plan
    weights, upload = weight_count(plan.model), federation.transport.upload
    return {
        "format": 1,
        "federation": federation.name,
        "description": federation.description,
        "digest": federation.digest(),
        "site": request.kit.site,
        "server": request.kit.endpoint,
        "software": {"fedvox": common.__version__},
        "data": plan.model_dump(mode="json", include={"channels", "labels", "label_codes"})
        | {"modality": federation.modality},
        "work": {
            "rounds": federation.rounds,
            "local_steps": federation.training.local_steps,
            "local_epochs": federation.training.local_epochs,
            "batch_size": federation.training.patches_per_step(plan),
            "trainable": federation.training.trainable,
            "optimizer": federation.training.optimizer,
            "loss": federation.training.loss,
            "algorithm": federation.strategy.name,
            "algorithm_options": federation.strategy.options,
            "min_sites": federation.strategy.min_sites,
            "min_fraction": federation.strategy.min_fraction,
            "early_stop": federation.early_stop is not None,
            "validate_local": federation.training.validate_local,
            "personal": personal_terms(federation),
        },
        "model": {
            "kind": "3D U-Net with GroupNorm",
            "parameters": weights,
            "stages": list(plan.model.channels),
            "patch_size": list(plan.patch_size),
            "spacing_mm": list(plan.preprocessing.spacing) if plan.preprocessing.spacing else None,
            "starts_from": federation.initial_model_sha256,
        },
        "privacy": privacy_terms(federation, plan),
        "fingerprint": fingerprint_terms(request.chosen, federation),
        "sent_back": {
            "update": {
                "meaning": "the change in the model's weights from training at your site, as a file of plain numbers",
                "values": weights,
                "encoding": upload,
                "bytes_per_round": sum(piece.size for piece in pieces_of(weights, upload)),
            },
            "fields": [vars(field) for field in fields_that_leave(federation.privacy)],
            "errors": [code.name.lower().replace("_", "-") for code in ErrorCode],
        },
        "never_sent": list(NEVER_SENT),
        "configuration": federation.model_dump(mode="json"),
    }


@dataclass(frozen=True)
class Section:
    """A part of the document: sentences, or rows of a name and its meaning."""

    title: str
    sentences: Sequence[str] = ()
    rows: Sequence[tuple[str, str]] = ()


def sections(content: Mapping[str, Any]) -> list[Section]:
    """Return the document's parts, in order."""
    work, sent, privacy = content["work"], content["sent_back"], content["privacy"]
    update = sent["update"]
    parts = [
        Section("What is learned", _learned(content["data"], content["model"])),
        Section("What your site does", _work(work, content["configuration"]["privacy"])),
        Section("Privacy", [privacy["meaning"], *privacy["details"], *privacy["not_covered"], privacy["lasting"]]),
    ]
    if content["fingerprint"]:
        parts.append(Section("What your site has shared already", fingerprint_lines(content["fingerprint"])))
    meaning = f"{update['meaning'][0].upper()}{update['meaning'][1:]}"
    size = f"{update['values']:,} numbers as {update['encoding']}, {readable_size(update['bytes_per_round'])} a round"
    parts.append(Section("What is sent back after every round: the model update", [f"{meaning}: {size}."]))
    for message, occasion in OCCASIONS.items():
        rows = [(field["name"], field["meaning"]) for field in sent["fields"] if field["message"] == message.__name__]
        parts.append(Section(f"What is sent {occasion} ({message.__name__})", rows=rows))
    return [
        *parts,
        Section("Error codes", [f"{', '.join(sent['errors'])}."]),
        Section("What is never sent", content["never_sent"]),
        Section(
            "Where it goes",
            [
                f"To {content['server']}, as site {content['site']}. The server also sees your site's network address, "
                "its public key, and when it is connected.",
                "Whoever runs the server may pass on the finished model with a model card. It names your site, in how "
                "many rounds it took part, how many scans or patients it trained on and was scored on, its mean Dice, "
                f"and its privacy cost if there is one; numbers and scores of fewer than {FEWEST} are left out.",
            ],
        ),
        Section(
            "Software",
            [
                f"Fedvox {content['software']['fedvox']}, as installed at your site. "
                "Nothing received from the server is run as a program."
            ],
        ),
    ]


def as_text(content: Mapping[str, Any], width: int = 100) -> str:
    """Render the document as text, wrapped to ``width`` columns."""
    parts = [f"WHAT THE FEDERATION {content['federation']!r} ASKS OF YOUR HOSPITAL"]
    if content["description"]:
        parts.append(_wrapped(content["description"], width))
    parts += [_text_of(section, width) for section in sections(content)]
    parts.append(f"Digest: {content['digest']}")
    return visible("\n\n".join(parts), keep="\n")


def _learned(data: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
    codes = {value: ", " + " ".join(code.values()) for value, code in data["label_codes"].items()}
    labels = ", ".join(f"{name} (label {value}{codes.get(value, '')})" for value, name in data["labels"].items())
    spacing = model["spacing_mm"]
    start = f", starting from a given model (SHA-256 {model['starts_from']})" if model["starts_from"] else ""
    grid = f"resampled to {_by(spacing)} mm" if spacing else "on their own grids"
    many = "channel" if len(data["channels"]) == 1 else "channels"
    return [
        f"To segment {labels}.",
        f"From {data['modality']} volumes with the {many} {', '.join(data['channels'])}, {grid}, in patches of "
        f"{_by(model['patch_size'])} voxels.",
        f"With a {model['kind']}: {model['parameters']:,} weights, stages of {', '.join(map(str, model['stages']))} "
        f"channels{start}.",
    ]


def _work(work: Mapping[str, Any], privacy: Mapping[str, Any] | None) -> list[str]:
    least = f", and at least {work['min_fraction']:.0%} of the participating sites do" if work["min_fraction"] else ""
    ending = "; it may end earlier" if work["early_stop"] else ""
    batch = f"{counted(work['batch_size'], 'patch', 'patches')} each"
    steps = counted(work["local_steps"], "step")
    if work["local_epochs"] is not None:
        steps = f"as many steps as draw {work['local_epochs']:g} patches for every scan, at most {work['local_steps']},"
    if privacy is not None:
        patches = privacy["patches_per_patient"]
        views = f"{patches} patches" if patches > 1 else "one patch"
        batch = f"{views} of each patient drawn ({100 * privacy['sample_rate']:.3g} % of your patients on average)"
    return [
        f"{counted(work['rounds'], 'round')}{ending}. In each round, your site scores the model on its validation "
        f"patients and trains {_trained(work['trainable'])} for {steps} with {batch} "
        f"({work['optimizer']}, loss {work['loss']}). {_own_model(work['validate_local'])}A final task only scores the "
        "finished model.",
        f"Your approval covers that and no more: {counted(work['rounds'], 'training')} and "
        f"{counted(work['rounds'] + 1, 'scoring')}, whatever the server calls its runs. You can allow more later.",
        f"A round counts if {counted(work['min_sites'], 'site')} or more answer with an update{least}."
        f"{_consequence(work['min_sites'])}",
        algorithm_sentence(work["algorithm"], work["algorithm_options"]),
        *work["personal"],
    ]


def _own_model(every: int) -> str:
    if every == 0:
        return ""
    rounds = "every round" if every == 1 else f"rounds {every}, {2 * every}, {3 * every} and so on"
    return f"After training in {rounds}, it also scores its own model, as part of the training. "


def _consequence(min_sites: int) -> str:
    if min_sites >= SITES_OVER_A_NETWORK:
        return ""
    if min_sites == 1:
        return (
            " A round may count with your update alone: every other site can then read it off the next model. With two "
            "updates, the other site only has to subtract its own."
        )
    return (
        " A round may count with two updates: the other site can then work out yours from the next model and its own, "
        "and when the two disagree nobody can tell which of them is wrong."
    )


def _trained(trainable: str) -> str:
    return "it" if trainable == "all" else f"part of it ({trainable.replace('_', ' ')})"


def _by(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def readable_size(size: int) -> str:
    """Return a number of bytes in kB or MB."""
    return f"{size / 1e6:,.1f} MB" if size >= 1_000_000 else f"{size / 1e3:,.1f} kB"


def _text_of(section: Section, width: int) -> str:
    column = max((len(name) for name, _ in section.rows), default=0) + 2
    items = [_wrapped(sentence, width, "  - ") for sentence in section.sentences]
    items += [_wrapped(meaning, width, f"  {name:<{column}}") for name, meaning in section.rows]
    return "\n".join([_wrapped(section.title, width), *items])


def _wrapped(text: str, width: int, start: str = "") -> str:
    return textwrap.fill(
        text, max(width, 40), initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False
    )
