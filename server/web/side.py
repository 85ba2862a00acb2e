"""The coordinator's side for the shell: which pages there are, and what can be done."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.config.kit import KIT_FILE
from common.errors import FedvoxError
from common.web.visits import Action, Answer, Data, Download, GoTo, Notice, NotThereError, Page, Side, Visit
from server.formatting import NOTHING
from server.run_store.folder import REPORT_FILE, RunFolder
from server.run_store.record import as_number
from server.run_store.record_reader import read_training
from server.web.compared import WatchedComparison
from server.web.curves import KINDS, Curves, curves_of_runs
from server.web.tables import last_events, process_rows, round_rows, score, seconds, site_rows, strangers, totals
from server.web.watched_run import Seen, WatchedRun

MOST_ROUNDS_AT_FIRST = 10


def server_side(folders: Sequence[Path]) -> Side:
    """Return the pages of some runs and comparisons.

    Parameters
    ----------
    folders
        Their folders; one that is no run yet is shown as such until it is.
    """
    comparisons = [folder for folder in folders if WatchedComparison.is_one(folder)]
    runs = [folder for folder in folders if folder not in comparisons]
    pages = _Pages([WatchedRun(folder) for folder in runs], [WatchedComparison(folder) for folder in comparisons])
    return Side(
        folder=Path(__file__).parent,
        pages={
            "/": pages.first,
            "/curves": pages.side_by_side,
            "/comparisons/{comparison:int}": pages.comparison,
            "/comparisons/{comparison:int}/report": pages.comparison_report,
            "/runs/{run:int}": pages.run,
            "/runs/{run:int}/rounds": pages.rounds,
            "/runs/{run:int}/curves/{kind}": pages.curves,
            "/runs/{run:int}/report": pages.report,
        },
        actions={
            "/runs/{run:int}/release": Action("release", pages.release, ("site",)),
            "/runs/{run:int}/write-report": Action("write_report", pages.write_report),
        },
        audit=pages.audit,
        watch=pages.watch,
    )


def check_folders(folders: Sequence[Path]) -> None:
    """Refuse folders that are neither runs nor comparisons, and one that is given twice.

    Raises
    ------
    FedvoxError
        A folder is none, or is there twice.
    """
    seen: set[Path] = set()
    for folder in folders:
        if (folder / KIT_FILE).exists():
            raise FedvoxError(f"{folder}: is a kit, not a run; the coordinator's run is in {folder / 'run'} by default")
        if not WatchedComparison.is_one(folder):
            read_training(folder)
        if folder.resolve() in seen:
            raise FedvoxError(f"{folder}: is given twice; name each run once")
        seen.add(folder.resolve())


class _Pages:
    def __init__(self, runs: Sequence[WatchedRun], comparisons: Sequence[WatchedComparison]) -> None:
        self._runs = runs
        self._comparisons = comparisons

    def watch(self) -> Mapping[str, object]:
        runs = {f"run-{number}": run.mark() for number, run in enumerate(self._runs)}
        return runs | {f"comparison-{number}": one.mark() for number, one in enumerate(self._comparisons)}

    def audit(self, visit: Visit, event: str, details: Mapping[str, Any]) -> None:
        """Write into the log of the run, or for what is about no run, of all of them."""
        for run in [self._run(visit)] if "run" in visit.parameters else self._runs:
            run.audit.append(event, **details)

    # Pages

    def first(self, visit: Visit) -> Answer:
        del visit
        if len(self._runs) + len(self._comparisons) == 1:
            return GoTo("/runs/0" if self._runs else "/comparisons/0")
        rows = [self._row(number, name) for number, name in enumerate(self._names())]
        drawing = self._side_by_side().drawing()
        comparisons = [self._comparison_row(number) for number in range(len(self._comparisons))]
        return Page("runs.html.jinja", self._shared() | {"rows": rows, "drawing": drawing, "comparisons": comparisons})

    def side_by_side(self, visit: Visit) -> Answer:
        return Data(self._side_by_side().as_json(visit.t("run.round")))

    def comparison(self, visit: Visit) -> Answer:
        one = self._comparison(visit)
        values = {
            "number": visit.parameters["comparison"],
            "results": one.results(),
            "has_report": one.report.is_file(),
        }
        return Page("comparison.html.jinja", self._shared() | values)

    def comparison_report(self, visit: Visit) -> Answer:
        return _download(self._comparison(visit).report)

    def run(self, visit: Visit) -> Answer:
        seen = self._run(visit).see()
        private = seen.record.configuration.get("privacy")
        kinds = ("dice", "loss", "epsilon") if isinstance(private, Mapping) else ("dice", "loss")
        drawings = {kind: seen.history.drawing(kind, visit.t("run.mean")) for kind in kinds}
        values = {
            "number": visit.parameters["run"],
            "seen_run": seen,
            "headline": _headline(seen),
            "sites": site_rows(seen),
            "strangers": strangers(seen),
            "drawings": drawings,
            "processes": process_rows(seen),
            "rounds": round_rows(seen.record.rounds[-MOST_ROUNDS_AT_FIRST:]),
            "more_rounds": max(len(seen.record.rounds) - MOST_ROUNDS_AT_FIRST, 0),
            "budget": private if isinstance(private, Mapping) else None,
            "events": last_events(seen.record),
            "model": _model(seen),
            "has_report": (seen.record.folder / REPORT_FILE).is_file(),
        }
        return Page("run.html.jinja", self._shared() | values)

    def rounds(self, visit: Visit) -> Answer:
        seen = self._run(visit).see()
        values = {"number": visit.parameters["run"], "seen_run": seen, "rounds": round_rows(seen.record.rounds)}
        return Page("rounds.html.jinja", self._shared() | values)

    def curves(self, visit: Visit) -> Answer:
        kind = KINDS.get(visit.parameters["kind"])
        if kind is None:
            raise NotThereError("no such curves")
        record = self._run(visit).see().record
        return Data(kind(record, visit.t("run.mean")).as_json(visit.t("run.round")))

    def report(self, visit: Visit) -> Answer:
        return _download(self._run(visit).path / REPORT_FILE)

    # Actions

    def release(self, visit: Visit, form: Mapping[str, str]) -> Notice:
        from server.rounds.quarantine import release

        release(RunFolder.open(self._run(visit).path), form["site"])
        return Notice("run.released", {"site": form["site"]})

    def write_report(self, visit: Visit, form: Mapping[str, str]) -> Notice:
        del form
        from server.reporting.report import write_report

        write_report(self._run(visit).path)
        return Notice("run.report_written")

    # What they share

    def _run(self, visit: Visit) -> WatchedRun:
        number = int(visit.parameters["run"])
        if not 0 <= number < len(self._runs):
            raise NotThereError("no such run")
        return self._runs[number]

    def _comparison(self, visit: Visit) -> WatchedComparison:
        number = int(visit.parameters["comparison"])
        if not 0 <= number < len(self._comparisons):
            raise NotThereError("no such comparison")
        return self._comparisons[number]

    def _names(self) -> list[str]:
        """Return the name of each run."""
        return names_apart([_title(run) for run in self._runs], [run.path for run in self._runs])

    def _shared(self) -> dict[str, Any]:
        """Return what every page's navigation needs: path and name of each run and comparison."""
        places = [(f"/runs/{number}", name) for number, name in enumerate(self._names())]
        places += [(f"/comparisons/{number}", one.name()) for number, one in enumerate(self._comparisons)]
        return {"places": places, "topics": [place[1:].replace("s/", "-") for place, _ in places]}

    def _side_by_side(self) -> Curves:
        """Return the mean Dice of every run."""
        records = []
        for name, run in zip(self._names(), self._runs, strict=True):
            with contextlib.suppress(FedvoxError):
                records.append((name, run.see().record))
        return curves_of_runs(records)

    def _row(self, number: int, name: str) -> dict[str, Any]:
        try:
            seen = self._runs[number].see()
        except FedvoxError as error:
            return {"number": number, "name": name, "problem": str(error), "headline": None}
        return {"number": number, "name": name, "problem": seen.problem, "headline": _headline(seen)}

    def _comparison_row(self, number: int) -> dict[str, Any]:
        one = self._comparisons[number]
        try:
            return {"number": number, "name": one.name(), "results": one.results()}
        except FedvoxError as error:
            return {"number": number, "name": one.name(), "results": None, "problem": str(error)}


def names_apart(titles: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Return titles; those that several runs have, with as much of the end of each run's path as tells them apart."""
    names = list(titles)
    for title, count in Counter(titles).items():
        if count == 1:
            continue
        same = [(number, paths[number].resolve().parts) for number, other in enumerate(titles) if other == title]
        lengths = range(1, max(len(parts) for _, parts in same) + 1)
        enough = next((length for length in lengths if len({parts[-length:] for _, parts in same}) == count), None)
        for number, parts in same:
            names[number] = f"{title} ({'/'.join(parts[-(enough or 1) :])})"
    return names


def _download(file: Path) -> Download:
    if not file.is_file():
        raise NotThereError("there is no report yet")
    return Download(file, REPORT_FILE)


def _title(run: WatchedRun) -> str:
    try:
        return run.see().name
    except FedvoxError:
        return run.path.resolve().name


def _headline(seen: Seen) -> dict[str, Any]:
    """Return a run's figures; what is not known yet is a dash."""
    record, status = seen.record, seen.status
    planned = record.rounds_planned
    done = status.rounds_done if status else len(record.training_rounds)
    return {
        "status": status.status if status else "unreadable",
        "doing": status.network.doing if status and status.network else "",
        "rounds": str(done) if planned is None else f"{done} / {planned}",
        "dice": score(status.best_mean_dice if status else None),
        "best_round": None if status is None else status.best_round,
        "noised": bool(status and status.noised),
        "sites": len(record.sites) or len(status.network.sites if status and status.network else ()),
        "epsilon": score(seen.history.epsilon),
        "alarms": list(status.alarms) if status else [],
        "usual": seconds(_usual(seen)),
        **totals(record),
    }


def _usual(seen: Seen) -> float | None:
    times = sorted(line.seconds for line in seen.record.training_rounds if line.seconds is not None)
    return times[len(times) // 2] if times else None


def _model(seen: Seen) -> dict[str, Any] | None:
    """Return what is known of the released model; None before there is one."""
    folder = seen.record.folder / "model"
    if not folder.is_dir():
        return None
    digests = seen.state.digests if seen.state else {}
    return {
        "folder": str(folder),
        "round": NOTHING if seen.state is None else str(seen.state.released_round),
        "parameters": as_number(seen.record.summary.get("parameters")),
        "digests": [(name, digest) for name, digest in digests.items() if name.startswith("model/")],
    }
