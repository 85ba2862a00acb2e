"""The hospital's command line: ``fedvox-client``.

Heavy imports are deferred until a command needs them, so that ``--help`` is fast.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from client.cli.archive import add_import_command
from client.cli.consent import add_consent_commands
from client.cli.fingerprint import add_fingerprint_command
from client.cli.ledger import add_ledger_command
from client.cli.network import add_network_commands
from client.cli.node import add_node_command
from client.cli.page import add_page_command
from client.cli.verify import add_verify_command
from common.errors import ConfigError, DataError
from common.formatting import counted, visible
from common.system.cli import Parser, add_command, add_device, add_json, base_parser, run, show

if TYPE_CHECKING:
    from client.inference.predict import Predictor
    from common.imaging.datasets.comparison import SiteTerms

PREDICT_EXAMPLE = "--model runs/first/model --input scans --output segmentations"
EVALUATE_EXAMPLE = "--model runs/first/model --data scans --out metrics.csv"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = base_parser("fedvox-client", "Check data, decide what a hospital takes part in, use a trained model.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    check_text = "check a dataset and list every problem"
    check = add_command(commands, "check", _check, check_text, "--data Task04_Hippocampus")
    check.add_argument("--data", type=Path, required=True, metavar="DIR", help="dataset folder")
    check.add_argument("--federation", type=Path, metavar="FEDERATION.yaml", help="also check against what it wants")
    _add_site_file(check)
    add_json(check)

    predict = add_command(commands, "predict", _predict, "segment scans with a trained model", PREDICT_EXAMPLE)
    _add_model_options(predict)
    predict.add_argument("--input", type=Path, required=True, metavar="FILE_OR_DIR", help="a scan, or a folder of them")
    predict.add_argument("--output", type=Path, required=True, metavar="FILE_OR_DIR", help="where the results go")
    predict.add_argument(
        "--format", choices=["dicom", "nifti", "both"], help="default: dicom for DICOM series, nifti for NIfTI files"
    )
    predict.add_argument(
        "--seg", choices=["binary", "labelmap", "fractional"], default="binary", help="kind of DICOM-SEG (binary)"
    )
    predict.add_argument("--report", choices=["sr"], help="also write sizes as a DICOM structured report")
    predict.add_argument("--probabilities", action="store_true", help="also write NIfTI with every class's probability")
    predict.add_argument("--overwrite", action="store_true", help="replace files that exist")

    evaluate_text = "evaluate a trained model on labelled scans"
    evaluate = add_command(commands, "evaluate", _evaluate, evaluate_text, EVALUATE_EXAMPLE)
    _add_model_options(evaluate)
    evaluate.add_argument("--data", type=Path, required=True, metavar="DIR", help="dataset folder with labels")
    evaluate.add_argument("--out", type=Path, required=True, metavar="metrics.csv", help="one row per case and label")
    evaluate.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    add_verify_command(commands)
    add_import_command(commands)
    add_consent_commands(commands)
    add_ledger_command(commands)
    add_network_commands(commands)
    add_fingerprint_command(commands)
    add_node_command(commands)
    add_page_command(commands)
    return run(parser, arguments)


def _add_model_options(parser: Parser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="MODEL_DIR", help="model.safetensors + model.json")
    add_device(parser)
    parser.add_argument(
        "--precision", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="default: auto"
    )
    parser.add_argument("--overlap", type=float, default=0.5, help="overlap of windows, 0 to 0.9 (default: 0.5)")
    parser.add_argument("--mirror", action="store_true", help="average over flips along the model's mirror axes")
    _add_site_file(parser)


def _add_site_file(parser: Parser) -> None:
    parser.add_argument(
        "--site",
        type=Path,
        metavar="site.yaml",
        help="how the hospital's data is read: ranges, names, patients, DICOM, BIDS",
    )


def _terms(options: argparse.Namespace) -> SiteTerms:
    from common.imaging.datasets.comparison import OWN_TERMS

    if options.site is None:
        return OWN_TERMS
    from client.consent.site_config import load_site_config

    if not options.site.is_file():
        raise ConfigError(f"--site {options.site}: there is no such file")
    return load_site_config(options.site).data_terms


class _ProgressLines:
    """Prints each case to stderr when work on it starts, if stderr is a terminal."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, fraction: float, case: str) -> None:
        if case != self._last and sys.stderr.isatty():
            self._last = case
            show(f"{100 * fraction:3.0f} %  {visible(case)}", file=sys.stderr)


def _check(options: argparse.Namespace) -> int:
    from client.data.dataset_check import check_dataset
    from common.imaging.datasets.comparison import ANYTHING, Wanted

    wanted = ANYTHING
    if options.federation is not None:
        from common.config.federation import load_federation

        config = load_federation(options.federation)
        wanted = Wanted.of(config.label_names, config.label_codes, config.channels, config.modality)
    report = check_dataset(options.data, wanted, terms=_terms(options))
    show(report.to_json() if options.json else report.to_text())
    return 0 if report.usable else 1


def _predict(options: argparse.Namespace) -> int:
    from client.inference.predict import predict_path
    from client.inference.results import ResultForms, counts_of

    report = predict_path(
        _predictor(options),
        options.input,
        options.output,
        forms=ResultForms(options.format, options.seg, options.report == "sr", options.probabilities),
        overwrite=options.overwrite,
        progress=_ProgressLines(),
    )
    for path in report.written:
        show(visible(str(path)))
    _show_warnings("predict", report.warnings)
    if report.done:
        show(f"fedvox-client predict: wrote {counts_of(report.done)}", file=sys.stderr)
    _print_failures("predict", len(report.done), report.failures)
    return report.exit_status


def _evaluate(options: argparse.Namespace) -> int:
    from client.inference.evaluate import evaluate_dataset

    report = evaluate_dataset(
        _predictor(options), options.data, options.out, overwrite=options.overwrite, progress=_ProgressLines()
    )
    show(report.summary)
    _show_warnings("evaluate", report.warnings)
    _print_failures("evaluate", len(report.metrics), report.failures)
    return report.exit_status


def _predictor(options: argparse.Namespace) -> Predictor:
    from client.inference.predict import PredictOptions, Predictor

    applied = PredictOptions(options.overlap, options.mirror, options.device, options.precision, _terms(options))
    return Predictor.open(options.model, applied)


def _show_warnings(command: str, warnings: Sequence[str]) -> None:
    for warning in warnings:
        show(f"fedvox-client {command}: warning: {warning}", file=sys.stderr)


def _print_failures(command: str, done: int, failures: Sequence[DataError]) -> None:
    for failure in failures:
        show(f"fedvox-client {command}: {failure}", file=sys.stderr)
    if failures:
        total = done + len({failure.path for failure in failures})
        show(f"fedvox-client {command}: {done} of {counted(total, 'scan')} done; see the errors above", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
