"""A comparison from a federation file to its report; it continues wherever an earlier command stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.config.federation import FederationConfig, as_json
from common.errors import ConfigError, FedvoxError, OutputError, was_interrupted
from common.privacy.calibration import check_epsilon
from common.system.devices import choose_device
from common.system.files import write_atomically
from server.comparison.arms import Arm, check_configuration, check_settings
from server.comparison.folder import ComparisonFolder, Question, open_comparison
from server.comparison.report import write_comparison_report
from server.comparison.results import results_of
from server.comparison.runs import ModelRun, Setting, add_contributions, finish, runs_of, scores_of_run
from server.comparison.scores import scores_table
from server.comparison.valuing import valued_arm
from server.progress.events import EventSink, Notice, interrupted
from server.run_store.folder import PARTITION_FILE, RunFolder
from server.simulation.data_record import check_data
from server.simulation.data_setup import find_or_make_data, find_simulated_dataset, plan_and_partition
from server.simulation.engines import check_engine
from server.simulation.experiment import SimulationOptions
from server.simulation.leftovers import RESULTS_FILE
from server.simulation.partition import read_partition

SCORES_TABLE = "scores.csv"


def compare(
    config: FederationConfig,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    options: SimulationOptions,
    emit: EventSink,
    value_sites: bool = True,
) -> tuple[Path, bool]:
    """Train and score every arm with every seed, as far as that is not done, and write the report.

    If one run fails, the problem is recorded and the others still run.

    Parameters
    ----------
    config
        The federation; its arms differ from it by what ``server.comparison.arms`` says.
    arms, seeds
        What to compare.
    options
        ``out`` is the folder of the comparison.
    emit
        Takes notices and progress.
    value_sites
        Whether to find out what each site contributed, if the federation file keeps no updates for that.

    Returns
    -------
    tuple[Path, bool]
        The path of the report, and whether all runs finished.

    Raises
    ------
    FedvoxError
        If the configuration, data or output cannot be used.
    KeyboardInterrupt
        If the user stops the comparison. Finished rounds stay, with a report.
    """
    _check(config, arms, options)
    question = Question(config, tuple(arms), tuple(seeds))
    with open_comparison(options.out, question) as folder:
        setting = _prepare(config, question, folder, options, emit)
        setting = replace(setting, valued=valued_arm(arms) if value_sites else "")
        folder.begin(question)
        return _run_all(setting, question, emit)


def _check(config: FederationConfig, arms: Sequence[Arm], options: SimulationOptions) -> None:
    if config.simulation is None:
        raise ConfigError("simulation: is missing; a comparison needs simulation.partition (see deploy/examples)")
    if config.early_stop is not None:
        raise ConfigError(
            "early_stop: arms would make different numbers of gradient steps; remove it, or add --set early_stop=null"
        )
    check_settings(config, arms)
    check_engine(options.engine or config.simulation.engine, options.ray_address)
    if config.privacy is not None and config.privacy.sample_rate < 1:
        check_epsilon(config.privacy.epsilon, config.privacy.delta)
    choose_device(options.device)


def _prepare(
    config: FederationConfig, question: Question, folder: ComparisonFolder, options: SimulationOptions, emit: EventSink
) -> Setting:
    """Find the data and decide on plan and sites once for all runs; refuse arms that these sites cannot run."""
    files = RunFolder(folder.path)
    data = find_or_make_data(config, options.data, files, emit)
    dataset = check_data(files, config, find_simulated_dataset(config, data), options.cache, emit)
    if not folder.begun:
        plan_and_partition(config, dataset, files, options.cache, emit)
    partition = read_partition(folder.path / PARTITION_FILE)
    scans = {name: len(site.train) for name, site in partition.sites.items()}
    check_configuration(config, question.arms, scans)
    owners = {case.name: case.owner for case in dataset.cases}
    return Setting(config, files.plan(), partition, owners, replace(options, data=data))


def _run_all(setting: Setting, question: Question, emit: EventSink) -> tuple[Path, bool]:
    runs = [run for seed in question.seeds for arm in question.arms for run in runs_of(setting, arm, seed)]
    problems: dict[str, str] = {}
    try:
        for number, run in enumerate(runs, start=1):
            there = scores_of_run(run) is not None
            emit(Notice(f"{run.name} ({number} of {len(runs)}){': is there already' if there else ''}"))
            try:
                if not there:
                    finish(setting, run, emit)
                add_contributions(setting, run, emit)
            except (ConfigError, OutputError):
                raise
            except FedvoxError as error:
                if was_interrupted(error):
                    raise KeyboardInterrupt from error
                problems[run.name] = str(error)
                emit(Notice(f"{run.name} failed: {error}"))
            if number < len(runs) and runs[number].seed != run.seed:
                _write(setting, question, runs, problems)
    except KeyboardInterrupt:
        emit(interrupted(setting.options.out))
        raise
    finally:
        report = _write(setting, question, runs, problems)
    return report, not problems


def _write(setting: Setting, question: Question, runs: Sequence[ModelRun], problems: dict[str, str]) -> Path:
    """Write all scores, the results and the report from what the runs have left."""
    out = setting.options.out
    found = [(run, scores_of_run(run)) for run in runs]
    models = [scores for _, scores in found if scores is not None]
    write_atomically(out / SCORES_TABLE, scores_table(models, setting.plan.labels))
    done = [(run, scores is not None) for run, scores in found]
    results = results_of(setting, question, models, done, problems)
    write_atomically(out / RESULTS_FILE, as_json(results))
    return write_comparison_report(out, results)
