"""Exports the released model of a run: a folder that proves itself (``fedvox-client verify``)."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import common
from common.errors import OutputError
from common.formatting import visible
from common.models.bundle import Bundle, load_bundle
from common.models.bundle_file import DESCRIPTION_FILE, WEIGHTS_FILE
from common.models.export_manifest import CARD_FILE, Manifest
from common.system.files import new_folder, write_atomically
from server.export.model_card import CardFacts, model_card
from server.export.monai_bundle import write_monai_bundle
from server.export.network_files import require_packages, write_onnx, write_torchscript
from server.export.signing import audit_part, open_signer, seal
from server.run_store.damage import check_model
from server.run_store.folder import RunError, RunFolder, RunState, now
from server.run_store.record_reader import read_run

Format = Literal["fedvox", "onnx", "torchscript", "monai-bundle", "all"]
_OTHERS: tuple[Format, ...] = ("onnx", "torchscript", "monai-bundle")


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and where to.

    Attributes
    ----------
    out
        A folder that does not exist yet.
    kit
        The server's kit, whose key signs; None leaves the export unsigned.
    kind
        The format that comes beside Fedvox's own bundle, which is always there: it is what the audit log names.
    """

    out: Path
    kit: Path | None = None
    kind: Format = "fedvox"

    @property
    def others(self) -> tuple[Format, ...]:
        """All formats besides Fedvox's own."""
        return _OTHERS if self.kind == "all" else tuple(kind for kind in _OTHERS if kind == self.kind)


def export_model(run: Path, options: ExportOptions) -> list[str]:
    """Check a run's released model and write it as a folder of its own, which appears once it is whole.

    Parameters
    ----------
    run
        The run folder.
    options
        What to write, and where.

    Returns
    -------
    list[str]
        What whoever passes the model on should know, in words.

    Raises
    ------
    RunError
        There is no released model yet.
    DamagedFileError
        The run's model or audit log is not as it was written.
    ConfigError
        The kit is not the run's, or a package that the format needs is not installed.
    OutputError
        The folder exists already, or cannot be written.
    """
    if "onnx" in options.others:
        require_packages(options.kind, "onnx", "onnxruntime", "onnxscript")
    folder = RunFolder.open(run)
    source, state = folder.path / "model", folder.load_state()
    # Only the end of a run notes the digest of its model: until then it may be replaced.
    if state is None or f"model/{WEIGHTS_FILE}" not in state.digests:
        raise RunError(f"{folder.path}: has not released a model yet; finish the run first (fedvox-server status)")
    check_model(folder)
    bundle = load_bundle(source)
    if options.out.exists():
        raise OutputError(f"{options.out}: already exists; choose another --out")
    signer = None if options.kit is None else open_signer(options.kit, folder, state)
    part = audit_part(folder, bundle.sha256)
    about = (bundle.plan, bundle.provenance, bundle.sha256, part is not None, options.others)
    facts = CardFacts(read_run(folder.path), *about)
    with new_folder(options.out) as temporary:
        # By name: whatever else lies there was not released, and is not for the signature.
        for name in (WEIGHTS_FILE, DESCRIPTION_FILE):
            shutil.copyfile(source / name, temporary / name)
        _write_others(temporary, bundle, options.others)
        write_atomically(temporary / CARD_FILE, model_card(facts))
        seal(temporary, _about(bundle, state), signer, part)
    notes = [f"note: {visible(note)}"] if (note := str(bundle.provenance.get("note") or "")) else []
    if signer is None and part is not None:
        notes.append("not signed: --kit with the server's kit signs it with the federation's key")
    return notes


def _write_others(folder: Path, bundle: Bundle, kinds: tuple[Format, ...]) -> None:
    if not kinds:
        return
    model = bundle.build_model()
    if "onnx" in kinds:
        write_onnx(folder, model, bundle.plan)
    if "torchscript" in kinds or "monai-bundle" in kinds:
        write_torchscript(folder, model, bundle.plan)
    if "monai-bundle" in kinds:
        write_monai_bundle(folder, bundle.plan, bundle.provenance)


def _about(bundle: Bundle, state: RunState) -> Manifest:
    return Manifest.model_validate(
        {
            "created": now(),
            "fedvox": common.__version__,
            "federation": str(bundle.provenance.get("federation") or ""),
            "run": state.run,
            "digest": state.digest,
            "round": state.released_round,
            "model": bundle.sha256,
            "signer": None,
            "audit": None,
            "files": {},
        }
    )
