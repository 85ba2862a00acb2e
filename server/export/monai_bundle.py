"""The model as a MONAI bundle, which ``python -m monai.bundle run`` executes without Fedvox and without a network.

Weights are TorchScript. The configuration loads a scan, applies the sliding window and saves with MONAI's own parts;
preprocessing and the way back are copies of the modules that ``fedvox-client predict`` uses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import common
from common.formatting import visible
from common.imaging.sliding_window import GAUSSIAN_SIGMA
from common.plan.plan import Plan
from common.system.files import write_atomically
from server.export.network_files import TORCHSCRIPT_FILE

COPIED = (
    "common/errors.py",
    "common/formatting.py",
    "common/imaging/geometry.py",
    "common/imaging/memory_order.py",
    "common/imaging/preprocessing.py",
    "common/imaging/resampling.py",
    "common/imaging/threads.py",
    "common/imaging/volume.py",
    "common/system/memory.py",
)
"""What ``monai_transforms`` imports, directly and indirectly, when it runs."""
SCHEMA_FILE = "configs/metadata_schema.json"
OVERLAP = 0.5
_MONAI = "1.6.1"
"""The version that bundles were tested with."""
_IMPORT = re.compile(r"^( *)from common\.(?:\w+\.)*(\w+) import", re.MULTILINE)
_SCHEMA_URL = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_SYNTAX = re.compile(r"^(?=[$@%])|(?<=[@%])(?=[#:])")
"""Where MONAI takes a text for an expression, a reference or a file to read, also in ``metadata.json``."""
_LONGEST = 1000
_LOGGING = """[loggers]
keys=root

[handlers]
keys=console

[formatters]
keys=line

[logger_root]
level=INFO
handlers=console

[handler_console]
class=StreamHandler
level=INFO
formatter=line
args=(sys.stdout,)

[formatter_line]
format=%(asctime)s %(name)s %(levelname)s %(message)s
"""


def write_monai_bundle(folder: Path, plan: Plan, provenance: Mapping[str, Any]) -> None:
    """Write ``configs``, ``scripts`` and ``docs``; ``models/model.ts`` is there already.

    Parameters
    ----------
    folder
        The bundle's root.
    plan, provenance
        Of the model's own bundle.
    """
    for name in ("configs", "scripts", "docs"):
        (folder / name).mkdir()
    _write_json(folder / "configs/inference.json", inference_config(plan))
    _write_json(folder / "configs/metadata.json", metadata(plan, provenance))
    _write_json(folder / SCHEMA_FILE, metadata_schema())
    write_atomically(folder / "configs/logging.conf", _LOGGING)
    write_atomically(folder / "docs/README.md", _readme())
    root = Path(common.__file__).parents[1]
    sources = {Path(name).name: root / name for name in COPIED}
    sources["transforms.py"] = Path(__file__).with_name("monai_transforms.py")
    for name, source in sources.items():
        text = source.read_text(encoding="utf-8")
        write_atomically(folder / "scripts" / name, _IMPORT.sub(r"\1from scripts.\2 import", text))
    text = f'"""Modules of Fedvox {common.__version__} (Apache License 2.0), which this bundle needs to run."""\n'
    write_atomically(folder / "scripts/__init__.py", text)


def inference_config(plan: Plan) -> dict[str, Any]:
    """Return ``inference.json``; ``input`` and ``output_dir`` are what its users change."""
    load = {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader", "ensure_channel_first": True}
    preprocess = {"_target_": "scripts.transforms.Preprocess", "plan": plan.preprocessing.model_dump(mode="json")}
    save = {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_postfix": "seg",
        "output_ext": ".nii.gz",
        "output_dtype": "$np.uint8",
        "resample": False,
        "separate_folder": False,
    }
    inferer = {
        "_target_": "SlidingWindowInferer",
        "roi_size": list(plan.patch_size),
        "sw_batch_size": 1,
        "overlap": OVERLAP,
        "mode": "gaussian",
        "sigma_scale": GAUSSIAN_SIGMA,
        "padding_mode": "constant",
        "cval": 0.0,
    }
    return {
        "bundle_root": ".",
        "dataset_dir": ".",
        "input": "$@dataset_dir + '/scan.nii.gz'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "torch.jit.load",
            "f": f"$@bundle_root + '/{TORCHSCRIPT_FILE}'",
            "map_location": "@device",
        },
        "preprocessing": {"_target_": "Compose", "transforms": [load, preprocess]},
        "data": {"_target_": "scripts.transforms.cases", "source": "@input"},
        "dataset": {"_target_": "Dataset", "data": "@data", "transform": "@preprocessing"},
        "inferer": inferer,
        "postprocessing": {"_target_": "Compose", "transforms": [{"_target_": "scripts.transforms.Restore"}, save]},
        "evaluator": {
            "_target_": "scripts.transforms.Segmenter",
            "dataset": "@dataset",
            "network": "$@network_def.eval()",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "device": "@device",
        },
        "run": ["$@evaluator.run()"],
    }


def metadata(plan: Plan, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``metadata.json``, which says what goes into the network and what comes out."""
    patch = list(plan.patch_size)
    modality = _words(provenance.get("modality")) or "n/a"
    inputs = {
        "type": "image",
        "format": "hounsfield" if modality == "CT" else "magnitude",
        "modality": modality,
        "num_channels": len(plan.channels),
        "spatial_shape": patch,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {str(index): _words(name) for index, name in enumerate(plan.channels)},
    }
    outputs = {
        "type": "image",
        "format": "labels",
        "num_channels": plan.model.classes,
        "spatial_shape": patch,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {"0": "background"} | {str(value): _words(name) for value, name in sorted(plan.labels.items())},
    }
    name = _words(provenance.get("federation")) or "model"
    return {
        "schema": _SCHEMA_URL,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by Fedvox {common.__version__}"},
        "monai_version": _version("monai", _MONAI),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": _version("nibabel", "5.4.2"), "fire": _version("fire", "0.7.1")},
        "name": name,
        "task": _words(f"Segmentation of {', '.join(plan.labels.values())}"),
        "description": _words(provenance.get("description")) or "A model of a federation; see README.md",
        "authors": f"The federation {name}",
        "copyright": "See README.md",
        "data_source": "Scans of the federation's sites, which are not published; see README.md",
        "data_type": "nibabel",
        "intended_use": "Research; see README.md",
        "network_data_format": {"inputs": {"image": inputs}, "outputs": {"pred": outputs}},
    }


def metadata_schema() -> dict[str, Any]:
    """Return a JSON schema of ``metadata.json``; whatever keeps to it keeps to MONAI's (``meta_schema_20240725``)."""
    text, texts = {"type": "string", "minLength": 1}, {"type": "object", "additionalProperties": {"type": "string"}}
    number = r"^\d+(\.\d+)*[\w.+-]*$"
    data = {
        "type": "object",
        "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data"],
        "properties": {
            "type": text,
            "format": text,
            "modality": text,
            "num_channels": {"type": "integer", "minimum": 1},
            "spatial_shape": {"type": "array", "items": {"type": ["integer", "string"]}, "minItems": 1},
            "dtype": text,
            "value_range": {"type": "array", "items": {"type": "number"}},
            "is_patch_data": {"type": "boolean"},
            "channel_def": texts,
        },
    }
    formats = {"type": "object", "minProperties": 1, "additionalProperties": data}
    versions = ("version", "monai_version", "pytorch_version", "numpy_version")
    words = ("schema", "task", "description", "authors", "copyright")
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "required": [*versions, *words, "required_packages_version", "network_data_format"],
        "properties": {
            **{name: {"type": "string", "pattern": number} for name in versions},
            **dict.fromkeys(words, text),
            "changelog": texts,
            "required_packages_version": texts,
            "network_data_format": {
                "type": "object",
                "required": ["inputs", "outputs"],
                "properties": {"inputs": formats, "outputs": formats},
            },
        },
    }


def _readme() -> str:
    return (
        "# Run it\n\nIn the bundle's folder, with the packages in `configs/metadata.json` installed:\n\n"
        "```\npython -m monai.bundle run --config_file configs/inference.json --input SCAN.nii.gz --output_dir OUT\n"
        "```\n\n"
        "`--input` is a NIfTI file, a folder of them, or a list of files, one for each channel "
        "(`--input \"['a.nii.gz','b.nii.gz']\"`). `OUT/SCAN_seg.nii.gz` is on the scan's own grid. Nothing is "
        "downloaded. `../README.md` is the model card.\n\n"
        "This runs code of the bundle: `scripts/` and the expressions in `configs/`. Before you do, run "
        "`fedvox-client verify`.\n\n# Check the metadata\n\nWith jsonschema installed:\n\n"
        "```\npython -m monai.bundle verify_metadata --meta_file configs/metadata.json "
        f"--filepath {SCHEMA_FILE}\n```\n"
    )


def _words(text: object) -> str:
    """Return a text for ``metadata.json`` that MONAI takes for words, whatever it holds; empty for None."""
    return "" if text is None else _SYNTAX.sub(" ", visible(str(text)[:_LONGEST]))


def _version(package: str, otherwise: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return otherwise


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2) + "\n")
