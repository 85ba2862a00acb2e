"""The runs of a comparison: a model of each arm and seed, for every site where an arm has one for each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch.nn import Module

from common.config.federation import FederationConfig, as_json
from common.errors import DamagedFileError, FedvoxError
from common.imaging.cache.case_cache import CachedCase
from common.models.bundle import load_bundle
from common.plan.plan import Plan
from common.system.files import write_atomically
from server.comparison.arms import Arm, configuration
from server.comparison.folder import RUNS
from server.comparison.scores import ModelScores, Score, read_scores, scores_of, write_scores
from server.comparison.valuing import Valuing, valuing_of
from server.contributions.valuation import Sampling, contributions
from server.progress.events import EventSink, Notice, Stage
from server.release import validation
from server.reporting.report import write_report
from server.rounds.initial_weights import weight_layout
from server.rounds.kept_updates import KEPT, kept_numbers
from server.run_store.damage import SUMMARY_FILE
from server.run_store.folder import RunFolder, RunState
from server.run_store.record_reader import CONTRIBUTIONS_FILE
from server.simulation.data_setup import Arranged
from server.simulation.experiment import PERSONAL_MODELS, SimulationOptions, simulate
from server.simulation.partition import SitePartition, next_fold
from server.simulation.simulated_sites import SimulatedSites, folder_name

Cases = Mapping[str, Sequence[CachedCase]]
"""Site -> its validation cases."""


@dataclass(frozen=True)
class Setting:
    """What all runs of a comparison share.

    Attributes
    ----------
    partition
        Fold 0, as a simulation with the file's own seed has it.
    owners
        Patient of each case.
    options
        Of the command; ``data`` is the dataset, and ``out`` the folder of the comparison.
    valued
        Name of the arm whose sites are valued although the federation file keeps no updates; empty for none.
    """

    config: FederationConfig
    plan: Plan
    partition: SitePartition
    owners: Mapping[str, str]
    options: SimulationOptions
    valued: str = ""

    def fold(self, seed: int) -> SitePartition:
        """Return who trains and who validates with a seed."""
        return next_fold(self.partition, self.owners, seed - self.config.seed)


@dataclass(frozen=True)
class ModelRun:
    """One model of a comparison.

    Attributes
    ----------
    model_site
        The site whose model it is; empty for one that all sites share.
    """

    arm: Arm
    seed: int
    model_site: str
    folder: Path
    config: FederationConfig
    arranged: Arranged

    @property
    def name(self) -> str:
        """Name for people."""
        return f"{self.arm.name}{f' at {self.model_site}' if self.model_site else ''}, seed {self.seed}"


def runs_of(setting: Setting, arm: Arm, seed: int) -> list[ModelRun]:
    """Return the runs of an arm with a seed."""
    partition = setting.fold(seed)
    scans = [len(site.train) for site in partition.sites.values()]
    config = configuration(arm, setting.config, scans, seed)
    folder = setting.options.out / RUNS / f"seed-{seed}"
    if arm.data != "alone":
        arranged = Arranged(setting.plan, partition, pooled=arm.data == "pooled")
        return [ModelRun(arm, seed, "", folder / arm.name, config, arranged)]
    return [
        ModelRun(
            *(arm, seed, site, folder / f"{arm.name}-{site}", config),
            Arranged(setting.plan, partition.model_copy(update={"sites": {site: cases}})),
        )
        for site, cases in partition.sites.items()
    ]


def finish(setting: Setting, run: ModelRun, emit: EventSink) -> None:
    """Train what is left of a run, and score its last model on every site's validation patients.

    Raises
    ------
    FedvoxError
        The run failed.
    """
    valuing = _valuing(setting, run)
    options = replace(
        setting.options,
        keep_updates_gb=valuing.keep_gb if valuing is not None else 0.0,
        out=run.folder,
        resume=True,
        arranged=run.arranged,
        # A baseline has one site, and so nothing to share out.
        engine=setting.options.engine if run.arm.data == "sites" else "inline",
        ray_address=setting.options.ray_address if run.arm.data == "sites" else None,
    )
    simulate(run.config, options, emit)
    folder = RunFolder(run.folder)
    state = _finished_state(folder, run)
    if state is None:
        raise FedvoxError(f"{run.folder}: the run did not finish; repeat the command")
    write_scores(run.folder, _model_of(state), _score(setting, run, folder, state, emit))


def add_contributions(setting: Setting, run: ModelRun, emit: EventSink) -> None:
    """Write what each site contributed to a finished run's model, if it kept updates from which that is known.

    What is there for the kept rounds stays; updates that were kept for this alone go. Damaged updates are told, and the
    run then has no contributions.
    """
    valuing, kept = _valuing(setting, run), kept_numbers(run.folder)
    if valuing is None or not kept:
        return

    def progress(done: int, total: int) -> None:
        emit(Stage(f"contributions to {run.name}", done, total))

    if not _contributed_rounds(run.folder, valuing.sampling) >= set(kept):
        score = partial(_sites(setting, run).score, patients=valuing.sampling.patients)
        try:
            found = contributions(run.folder, score, valuing.sampling, progress)
        except DamagedFileError as error:
            emit(Notice(f"{run.name} has no contributions: {error}"))
            return
        write_atomically(run.folder / CONTRIBUTIONS_FILE, as_json(found.as_dict()))
        write_report(run.folder)
    if valuing.keep_gb:
        shutil.rmtree(run.folder / KEPT, ignore_errors=True)


def _valuing(setting: Setting, run: ModelRun) -> Valuing | None:
    if run.arm.data != "sites":
        return None
    validation = [len(site.validation) for site in setting.fold(run.seed).sites.values()]
    by_default = run.arm.name == setting.valued
    return valuing_of(run.config, by_default, validation, weight_layout(setting.plan).size)


def _contributed_rounds(folder: Path, sampling: Sampling) -> set[int]:
    """Return the rounds of the contributions that are there; none if they are over other scans."""
    try:
        found = json.loads((folder / CONTRIBUTIONS_FILE).read_bytes())
        return set(found["rounds"]) if found["patients"] == sampling.patients else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def scores_of_run(run: ModelRun) -> ModelScores | None:
    """Return the scores of a run's last model; None before they are complete."""
    folder = RunFolder(run.folder)
    state = _finished_state(folder, run)
    scores = None if state is None else read_scores(run.folder, _model_of(state))
    return None if scores is None else ModelScores(run.arm.name, run.seed, run.model_site, scores)


def _finished_state(folder: RunFolder, run: ModelRun) -> RunState | None:
    state = folder.load_state() if folder.path.is_dir() else None
    if state is None or SUMMARY_FILE not in state.digests or state.digest != run.config.digest():
        return None
    return state


def _model_of(state: RunState) -> dict[str, object]:
    """Return what the scores belong to: the model after the last round, which nobody chose by its scores."""
    return {"run": state.run, "round": state.round}


def _sites(setting: Setting, run: ModelRun) -> SimulatedSites:
    """Return all sites, as they train and validate with a run's seed."""
    options, partition = setting.options, setting.fold(run.seed)
    if options.data is None:
        raise FedvoxError(f"{options.out}: has no data")
    return SimulatedSites(setting.config, setting.plan, partition, options.data, options.cache, options.device)


def _score(setting: Setting, run: ModelRun, folder: RunFolder, state: RunState, emit: EventSink) -> list[Score]:
    plan, sites = setting.plan, _sites(setting, run)
    cases = {name: list(sites.open(name).validation_cases) for name in sites.names}
    total = sum(map(len, cases.values()))
    scored: list[Score] = []
    done, precision = 0, run.config.training.precision
    for model, some in _models(run, folder, plan, state, cases):
        for item in validation.score_cases(model, plan, some, sites.trainer.device, precision):
            scored += scores_of([item], setting.owners)
            done += 1
            emit(Stage(f"scoring {run.name}", done, total))
    return scored


def _models(
    run: ModelRun, folder: RunFolder, plan: Plan, state: RunState, cases: Cases
) -> Iterator[tuple[Module, Cases]]:
    """Yield each model of a run with the cases that it is scored on: all, or those of a personal model's own site."""
    if run.arm.personal is None:
        yield validation.load_model(folder, plan, state.round), cases
        return
    for name, own in cases.items():
        bundle = load_bundle(folder.path / PERSONAL_MODELS / folder_name(name))
        yield bundle.build_model(), {name: own}
