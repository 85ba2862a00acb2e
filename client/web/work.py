"""``python -m client.web.work``: what the page needs voxels or PyTorch for, in a process of its own.

All but preflight is done without a network: what is read there are scans.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.runner.isolation import isolate
from common.errors import DataError, FedvoxError

if TYPE_CHECKING:
    from client.data.dataset_report import DatasetReport
    from common.imaging.datasets.case import Case
    from common.imaging.datasets.comparison import SiteTerms, Wanted

MOST_PICTURES = 24
_NICE = 10
Answer = Callable[[Mapping[str, Any]], None]


def check(request: Mapping[str, Any], answer: Answer) -> Any:
    """Check the dataset as ``fedvox-client check`` does, against the kit, and draw the cases with problems."""
    from client.consent.disclosure import read_request
    from client.consent.site_config import SITE_FILE, load_site_config
    from client.data.dataset_check import check_dataset
    from common.imaging.datasets.comparison import Wanted

    asked, site = read_request(Path(request["kit"])), load_site_config(Path(request["state"]) / SITE_FILE)
    wanted = Wanted.by(asked.plan, asked.federation.modality)

    def progress(done: int, cases: int) -> None:
        answer({"progress": [done, cases]})

    report = check_dataset(Path(request["data"]), wanted, progress, site.data_terms)
    content = json.loads(report.to_json())
    content["pictures"] = list(_pictures(report, _odd_cases(report, wanted, site.data_terms), Path(request["folder"])))
    return content


def _odd_cases(report: DatasetReport, wanted: Wanted, terms: SiteTerms) -> Iterator[tuple[Case, str]]:
    """Yield the cases with problems, read as the check did, each with its worst problem; those with errors first."""
    from common.imaging.datasets.comparison import compare
    from common.imaging.datasets.dataset import scan_dataset

    worst: dict[str, str] = {}
    for problem in sorted(report.problems, key=lambda problem: problem.severity):
        if problem.case is not None:
            worst.setdefault(problem.case, problem.text)
    if not worst:
        return
    dataset = scan_dataset(report.root, terms.dicom, bids=terms.bids)[0]
    # Those that the comparison leaves out are odd too.
    cases = {case.name: case for case in (*dataset.cases, *compare(dataset, wanted, terms)[0].cases)}
    yield from ((cases[name], text) for name, text in worst.items() if name in cases)


def _pictures(report: DatasetReport, odd: Iterable[tuple[Case, str]], folder: Path) -> Iterator[dict[str, Any]]:
    """Draw odd cases, and yield their names, problems and sizes."""
    from client.web.pictures import draw_case

    drawn = 0
    for case, problem in odd:
        if drawn == MOST_PICTURES:
            return
        # What cannot be read, which may be the problem, has no picture.
        with contextlib.suppress(DataError, ValueError):
            size = draw_case(case, folder / f"{drawn}.png", report.labels)
            yield {"case": case.name, "number": drawn, "size": list(size), "problem": problem}
            drawn += 1


def preflight(request: Mapping[str, Any], answer: Answer) -> Any:
    """Run all preflight checks."""
    del answer
    from client.site.start import SiteOptions, run_preflight
    from client.state_folder import StateFolder

    paths = {name: Path(request[name]) for name in ("kit", "data", "state", "ledger")}
    cache = Path(request["cache"]) if request["cache"] else None
    options = SiteOptions(shared=StateFolder(paths["state"]).shared, cache=cache, device=request["device"], **paths)
    return [asdict(item) for item in run_preflight(options)]


def cases(request: Mapping[str, Any], answer: Answer) -> Any:
    """List the names of the validation cases."""
    del answer
    return [case.name for case in _validation_cases(request)]


def _validation_cases(request: Mapping[str, Any]) -> list[Case]:
    from client.consent.disclosure import read_request
    from client.consent.site_config import SITE_FILE, load_site_config
    from client.ledger.identifiers import Identifiers
    from client.ledger.ledger import Ledger
    from client.ledger.patient_identity import PatientIndex
    from client.runner.site_split import labelled_cases, split_site
    from common.imaging.datasets.comparison import Wanted

    asked, state = read_request(Path(request["kit"])), Path(request["state"])
    site, config = load_site_config(state / SITE_FILE), asked.federation
    found = labelled_cases(Path(request["data"]), Wanted.by(asked.plan, config.modality), site.data_terms)
    patients = None
    if config.privacy is not None:
        ledger = Ledger(Path(request["ledger"]))
        patients = PatientIndex(None, Identifiers(ledger, may_make=False).mark).identify(list(found.values()))
    fraction = config.network.validation_fraction if config.network else 0.2
    _, held_out = split_site(config, asked.kit.site or "", found, site.validation_cases or fraction, patients)
    return [found[name] for name in held_out]


def segment(request: Mapping[str, Any], answer: Answer) -> Any:
    """Segment one validation case with the current global model."""
    from client.consent.disclosure import read_request
    from client.consent.site_config import SITE_FILE, load_site_config
    from client.web.segmenting import segment_case

    state = Path(request["state"])
    found = [case for case in _validation_cases(request) if case.name == request["case"]]
    if not found:
        raise DataError(Path(request["data"]), f"has no validation case {request['case']} any more; list them again")

    def progress(done: int, windows: int) -> None:
        answer({"progress": [done, windows]})

    asked, site = read_request(Path(request["kit"])), load_site_config(state / SITE_FILE)
    return segment_case(asked, site, found[0], Path(request["folder"]), (state, request["device"]), progress)


KINDS: Mapping[str, Callable[[Mapping[str, Any], Answer], Any]] = {
    "check": check,
    "preflight": preflight,
    "cases": cases,
    "segment": segment,
}


def main() -> int:
    """Do what standard input asks for, and answer on standard output."""
    request = json.loads(sys.stdin.buffer.readline())
    # What a library prints must not be among the answers.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.nice(_NICE)
    if request["kind"] != "preflight":
        isolate()  # where the kernel does not let it, the page is as far from the network as a command
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def answer(content: Mapping[str, Any]) -> None:
        out.write(json.dumps(content).encode() + b"\n")
        out.flush()

    try:
        answer({"result": KINDS[request["kind"]](request, answer)})
    except FedvoxError as error:
        answer({"problem": str(error)})
    return 0


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
