"""One simulated federation from its file to its report: prepare, run, release, compare, report."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flwr.serverapp import ServerApp

from common.config.federation import FederationConfig
from common.config.strategy import StrategyConfig
from common.errors import ConfigError, DamagedFileError, FedvoxError
from common.imaging.cache.case_cache import CachedCase
from common.privacy.calibration import check_epsilon
from common.system.devices import choose_device
from common.system.logs import log_to_file
from common.system.state_file import check_digest, put_aside
from server.privacy.forecast import privacy_summary
from server.privacy.forecast_text import verdict_text
from server.progress.events import EventSink, Notice, RunStarted, Stage, interrupted
from server.release import validation
from server.release.model import save_released_model
from server.release.personal import with_bundle_scores
from server.release.summary import save_summary, summary_of
from server.reporting.report import write_report
from server.rounds.initial_weights import first_weights, weight_layout
from server.rounds.round_loop import FederationError, Link, RoundLoop, make_server_app
from server.rounds.terms import Terms
from server.run_store.damage import SUMMARY_FILE, check_files
from server.run_store.folder import FEDERATION_FILE, PARTITION_FILE, PLAN_FILE, RunFolder, RunState
from server.simulation.data_record import DATA_FILE, check_data
from server.simulation.data_setup import Arranged, find_or_make_data, find_simulated_dataset, plan_and_partition
from server.simulation.engines import Engine, engine_ready, run_inline, run_on_ray
from server.simulation.partition import read_partition
from server.simulation.run_opening import open_run
from server.simulation.simulated_sites import SimulatedSites, SiteEvents, folder_name

LOG_FILE = "logs/simulation.log"
SITE_VECTORS = "site-vectors"
"""Folder of what simulated sites keep between rounds."""
PERSONAL_MODELS = "personal-models"
"""Folder of the bundles of simulated sites' personal models."""


@dataclass(frozen=True)
class SimulationOptions:
    """Options from the command line.

    Attributes
    ----------
    data
        Dataset folder; None makes phantoms.
    out
        Run folder.
    engine
        None uses the federation file's.
    cache
        Folder for preprocessed scans; None keeps them in memory.
    resume
        Whether to resume the run in ``out``.
    arranged
        Plan and sites of a comparison; None derives both from the data.
    ray_address
        Of a Ray cluster; None starts Ray on this machine, unless ``$RAY_ADDRESS`` names a cluster.
    keep_updates_gb
        Stands in for ``simulation.keep_updates_gb`` where that is 0, and decides no result.
    """

    data: Path | None
    out: Path
    engine: Engine | None = None
    device: str = "auto"
    cache: Path | None = None
    resume: bool = False
    arranged: Arranged | None = None
    ray_address: str | None = None
    keep_updates_gb: float = 0.0


def simulate(config: FederationConfig, options: SimulationOptions, emit: EventSink) -> Path:
    """Run or resume a simulated federation.

    Returns
    -------
    Path
        The path of the report.

    Raises
    ------
    FedvoxError
        If the configuration, data or output cannot be used.
    KeyboardInterrupt
        If the user stops the run. Finished rounds stay, with a summary and a report.
    """
    if config.simulation is None:
        raise ConfigError("simulation: is missing; a simulation needs simulation.partition (see deploy/examples)")
    engine: Engine = options.engine or config.simulation.engine
    if config.privacy is not None and config.privacy.sample_rate < 1:
        check_epsilon(config.privacy.epsilon, config.privacy.delta)
    # A cluster's machines choose for themselves.
    device = options.device if engine == "ray" else choose_device(options.device).type
    with (
        engine_ready(engine, options.ray_address),
        open_run(options.out, options.resume, config, emit) as folder,
    ):
        data = find_or_make_data(config, options.data, folder, emit)
        complete = _has_plan(folder, emit)
        if not complete:
            dataset = find_simulated_dataset(config, data)
            known = check_data(folder, config, dataset, options.cache, emit)
            plan_and_partition(config, known, folder, options.cache, emit, options.arranged)
        if _is_finished(folder, emit):
            emit(Notice(f"{folder.path} is finished; nothing is left to do"))
            return write_report(folder.path)
        if complete:
            check_data(folder, config, find_simulated_dataset(config, data), options.cache, emit)
        plan = folder.plan()
        partition = read_partition(folder.path / PARTITION_FILE)
        kept, own = (folder.path / SITE_VECTORS).resolve(), (folder.path / PERSONAL_MODELS).resolve()
        sites = SimulatedSites(config, plan, partition, data, options.cache, device, SiteEvents(emit), kept, own)
        if options.arranged is not None and options.arranged.pooled:
            sites = sites.pooled(config)
        if engine == "inline":
            # Before the run begins, so that an unusable scan refuses the start.
            for name in sites.names:
                sites.open(name)
        experiment = _Experiment(sites, folder, engine, emit, options.keep_updates_gb)
        experiment.begin()
        return experiment.run()


def _has_plan(folder: RunFolder, emit: EventSink) -> bool:
    """Return whether plan and partition are there; damaged ones are put aside, because the data give the same again."""
    state = folder.load_state()
    digests = {} if state is None else state.digests
    needed = {PLAN_FILE, PARTITION_FILE} | ({DATA_FILE} & set(digests))
    for name in needed & set(digests):
        file = folder.path / name
        try:
            check_digest(file, digests[name], "")
        except DamagedFileError as error:
            put_aside(file)
            emit(Notice(f"{file}: {error.problem}; it is made again from the data"))
    return all((folder.path / name).exists() for name in needed)


def _is_finished(folder: RunFolder, emit: EventSink) -> bool:
    """Return whether there is nothing left to do; damaged results are made again."""
    state = folder.load_state()
    for text in check_files(folder, state) if state is not None else ():
        emit(Notice(text))
    summary = folder.path / SUMMARY_FILE
    return summary.exists() and state is not None and SUMMARY_FILE in state.digests


class _Experiment:
    """A simulation whose data are ready: rounds, release and comparison with pooled training."""

    def __init__(
        self, sites: SimulatedSites, folder: RunFolder, engine: Engine, emit: EventSink, keep_gb: float
    ) -> None:
        self._config, self._plan = sites.config, sites.plan
        self._sites = sites
        self._folder = folder
        self._engine = engine
        self._emit = emit
        self._keep_gb = keep_gb
        self._pooled: dict[str, Any] | None = None
        self._privacy = privacy_summary(
            self._config, self._plan, sites.training_patients(), sites.trainer.trained_parameters
        )

    def begin(self) -> None:
        """Commit the first state of a new run."""
        self._begin(
            self._sites.config, self._folder, self._engine, (FEDERATION_FILE, PLAN_FILE, PARTITION_FILE, DATA_FILE)
        )

    def run(self) -> Path:
        """Run the remaining rounds; write summary and report even if they fail."""
        self._emit(RunStarted(self._config.name, self._config.rounds, tuple(self._sites.names)))
        if self._privacy and self._privacy["verdict"] == "drowned":
            self._emit(Notice(f"{verdict_text(self._privacy)}; see fedvox-server plan-privacy"))
        status = "stopped"
        try:
            self._work()
            status = "finished"
        except KeyboardInterrupt:
            status = "interrupted"
            self._emit(interrupted(self._folder.path))
            raise
        finally:
            self._write_summary(status)
            report = write_report(self._folder.path)
        return report

    def _work(self) -> None:
        """Run the rounds, release the model and compare it; errors at the sites go to a log."""
        file = self._folder.path / LOG_FILE
        file.parent.mkdir(exist_ok=True)
        with log_to_file(file):
            try:
                self._run_rounds(self._sites, self._folder, self._engine)
            except FederationError as error:
                raise FederationError(f"{error}; causes are in {file}" if file.exists() else str(error)) from error
            self._release()
            if self._config.simulation is not None and self._config.simulation.pooled:
                self._pooled = self._run_pooled()

    def _begin(self, config: FederationConfig, folder: RunFolder, engine: Engine, files: Sequence[str]) -> None:
        state = folder.load_state()
        if state is None:
            weights, _ = first_weights(self._config, self._plan)
            folder.save_checkpoint(0, weights, weight_layout(self._plan))
            folder.begin(config.digest(), engine, files)
        elif not state.finished:
            folder.rewind(state)
            folder.event("resumed", round=state.round)
            self._emit(Notice(f"resuming after round {state.round} of {self._config.rounds}"))

    def _run_rounds(self, sites: SimulatedSites, folder: RunFolder, engine: Engine) -> None:
        state = folder.load_state()
        if state is not None and state.finished:
            return
        layout = weight_layout(self._plan)
        config = _keeping_updates(sites.config, self._keep_gb)
        terms, count = Terms.of(config, sites.plan, layout), len(sites.names)

        def app(link: Link) -> ServerApp:
            return make_server_app(lambda: RoundLoop(terms, count, folder, self._emit, link))

        if engine == "ray":
            use = run_on_ray(app, sites, folder.path / "weights", folder.path / LOG_FILE)
            folder.event("ray", **asdict(use))
        else:
            run_inline(app, sites)

    def _release(self) -> None:
        """Write the best checkpoint as the bundle, its validation table and the example cases for the report."""
        state = self._finished_state(self._folder)
        device = self._sites.trainer.device
        best = state.released_round
        save_released_model(self._folder, self._config, self._plan, state, best, self._sites.names)
        model = validation.load_model(self._folder, self._plan, best)
        total = sum(len(site.validation) for site in self._sites.partition.sites.values())
        scored = []
        precision = self._config.training.precision
        for item in validation.score_cases(model, self._plan, self._validation_cases(), device, precision):
            scored.append(item)
            self._emit(Stage("measuring validation cases", len(scored), total))
        validation.write_validation_table(self._folder, self._plan, scored)
        validation.write_examples(self._folder, scored)

    def _run_pooled(self) -> dict[str, Any]:
        """Train with all data in one site, for as many steps per round as all sites take together."""
        pooled_folder = self._folder.path / "pooled"
        training = self._config.training
        steps = sum(training.steps_of(len(site.train)) for site in self._sites.partition.sites.values())
        # One site's update is the next model: there is nothing to weigh, to wait for, or to protect from.
        ours = self._config.strategy
        strategy = StrategyConfig(max_failed_rounds=ours.max_failed_rounds, average_rounds=ours.average_rounds)
        pooled_training = training.model_copy(update={"local_steps": steps, "local_epochs": None})
        changes = {"training": pooled_training, "strategy": strategy, "personal": None}
        config = self._config.model_copy(update=changes)
        folder = RunFolder(pooled_folder)
        if not folder.has_begun():
            shutil.rmtree(pooled_folder, ignore_errors=True)
            folder = RunFolder.create(pooled_folder)
            folder.write_text(FEDERATION_FILE, config.resolved())
        self._emit(Notice("training one model on the pooled data, for comparison"))
        self._emit(RunStarted(f"{config.name}, pooled", config.rounds, ("pooled",)))
        self._begin(config, folder, "inline", (FEDERATION_FILE,))
        self._run_rounds(self._sites.pooled(config), folder, "inline")
        state = self._finished_state(folder)
        best = state.released_round
        model = validation.load_model(folder, self._plan, best)
        device = self._sites.trainer.device
        scored = list(validation.score_cases(model, self._plan, self._validation_cases(), device, training.precision))
        dice = validation.mean_dice_by_label(scored, self._plan.labels)
        return {"mean_dice": validation.mean_of(dice), "dice": dice, "seconds": round(state.seconds, 1), "steps": steps}

    def _validation_cases(self) -> dict[str, list[CachedCase]]:
        return {name: list(self._sites.open(name).validation_cases) for name in self._sites.names}

    def _finished_state(self, folder: RunFolder) -> RunState:
        state = folder.load_state()
        if state is None or not state.finished:
            raise FedvoxError(f"{folder.path}: the rounds did not finish; resume with --resume")
        return state

    def _write_summary(self, status: str) -> None:
        state = self._folder.load_state()
        if state is None:
            return
        about = {
            "engine": self._engine,
            "device": self._sites.trainer.device.type,
            "precision": self._sites.trainer.precision,
            "parameters": self._sites.trainer.layout.size,
            "pooled": self._pooled,
            "privacy": self._privacy,
        }
        summary = summary_of(self._folder, state, self._config, self._plan, status) | about
        bundles = {name: self._folder.path / PERSONAL_MODELS / folder_name(name) for name in self._sites.names}
        summary["personal"] = with_bundle_scores(summary["personal"], bundles)
        save_summary(self._folder, state, summary)


def _keeping_updates(config: FederationConfig, gigabytes: float) -> FederationConfig:
    """Return the configuration with space for kept updates, unless it has some."""
    settings = config.simulation
    if settings is None or settings.keep_updates_gb or not gigabytes:
        return config
    return config.model_copy(update={"simulation": settings.model_copy(update={"keep_updates_gb": gigabytes})})
