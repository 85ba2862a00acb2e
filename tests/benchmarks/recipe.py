"""Training recipes for the three natural hippocampus sites, federated, pooled and alone, at equal gradient steps.

``python -m tests.benchmarks.recipe [DATASET] [--arms fedavg,pooled] [--seeds 1,2] [--rounds 12] [--steps 25] [--full]
[--set KEY=VALUE] [--out FILE] [--cache DIR]`` trains the sites of ``deploy/examples/hippocampus.yaml`` with the
product's trainer and strategies, without messages between them, and with the recipe of the arm in place of the file's.
By default on a coarse copy, at 2 mm with half the channels and one stage less, which takes a twentieth of the time;
with ``--full`` on the file's grid and with the default network. The patients of training and validation
stay the same; a seed changes the first weights and all that training draws.

``pooled`` makes as many steps a round as all sites together, ``alone`` trains every site by itself, and with
``epochs`` the sites share the same number of steps in proportion to their scans, instead of each making as many. No arm
chooses its best round: what counts is the model after the last round, and beside it the means of the last 2, 3, 4 and 6
rounds' models. With ``--out``, a line an arm and seed is added to the file, and what the file has is not done again.
Last line: mean Dice of the first arm, of the last one, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.config.federation import FederationConfig, load_federation
from common.config.strategy import StrategyConfig
from common.protocol.codec import Result, Vector
from server.rounds.aggregation import StoredUpdates
from server.rounds.initial_weights import first_weights
from server.rounds.strategies.registry import make_strategy
from server.rounds.strategies.strategy import StrategyState
from server.simulation.data_setup import examine
from server.simulation.simulated_sites import SimulatedSites
from server.site_weights import site_weights
from tests.benchmarks._hippocampus import PLAIN
from tests.conftest import REPOSITORY

COARSE = ("preprocessing.spacing=[2, 2, 2]", "model.channels=[8, 16, 32]")
ARMS: Mapping[str, Sequence[str]] = {
    "fedavg": (),
    "pooled": (),
    "alone": (),
    "uniform": ("strategy.weights=uniform",),
    "momentum": ("strategy.name=fedavgm", "strategy.server_momentum=0.5"),
    "more-momentum": ("strategy.name=fedavgm", "strategy.server_momentum=0.8"),
    "epochs": ("training.local_epochs={epochs:.3f}", "training.local_steps=1000"),
    "epochs-momentum": (
        "training.local_epochs={epochs:.3f}",
        "training.local_steps=1000",
        "strategy.name=fedavgm",
        "strategy.server_momentum=0.5",
    ),
    "high-rate": ("training.learning_rate=0.004",),
    "supervised": ("model.deep_supervision=true",),
    "residual": ("model.residual=true",),
    "one-block": ("model.blocks=1", "model.decoder_blocks=1"),
}
SITES, SCANS, BATCH = 3, 177, 2
"""Of training, in the example federation."""
AVERAGES = (1, 2, 3, 4, 6)
Line = dict[str, Any]
"""Arm, seed, settings, seconds of training on one core, and Dice: number of averaged rounds -> site -> mean Dice."""


def models(sites: SimulatedSites, weights: Vector) -> Iterator[Vector]:
    """The global model after every round, from the first weights."""
    config = sites.config
    opened = {name: sites.open(name) for name in sites.names}
    strategy = make_strategy(config, len(opened))
    counts = site_weights(config.strategy.weights, {name: len(site.train_cases) for name, site in opened.items()})
    state = StrategyState({name: np.zeros_like(weights) for name in strategy.state_vectors})
    for number in range(1, config.rounds + 1):
        contents, results = {}, {}
        for name, site in opened.items():
            done = sites.trainer.train(weights, site.train_cases, number, site.seed)
            contents[name] = done.update.view(np.uint8)
            results[name] = Result(name, "", number, 1, 1, done.steps, done.loss, 0.0, {}, 0.0, 0.0, 0.0, 0.0)
        updates = StoredUpdates(results, counts, contents, weights.size, "float32")
        made = list(strategy.aggregate(updates, weights, state))
        vectors = {name: np.concatenate([part.state[name] for part in made]) for name in strategy.state_vectors}
        weights, state = np.concatenate([part.weights for part in made]), StrategyState(vectors, state.numbers)
        yield weights


def federations(arm: str, sites: SimulatedSites) -> list[SimulatedSites]:
    """What an arm trains: a federation of all sites, one of a single site with all patients, or one of each site."""
    config = sites.config
    if arm == "pooled":
        steps = config.training.local_steps * len(sites.names)
        training = config.training.model_copy(update={"local_steps": steps})
        return [sites.pooled(config.model_copy(update={"training": training, "strategy": StrategyConfig()}))]
    if arm == "alone":
        each = [{name: cases} for name, cases in sites.partition.sites.items()]
        parts = [sites.partition.model_copy(update={"sites": one}) for one in each]
        return [SimulatedSites(config, sites.plan, part, sites.data, sites.cache, sites.device) for part in parts]
    return [sites]


def measure(arm: str, config: FederationConfig, seed: int, data: Path, cache: Path | None) -> Line:
    """Train an arm and score its models at every site."""
    _, plan, partition = examine(config, data, cache, lambda event: None)
    config = config.model_copy(update={"seed": seed})
    sites = SimulatedSites(config, plan, partition, data, cache, "cpu")
    first, _ = first_weights(config, plan)
    dice: dict[str, dict[str, float]] = {str(count): {} for count in AVERAGES if count <= config.rounds}
    seconds = 0.0
    for trained in federations(arm, sites):
        started = time.process_time()
        made = list(models(trained, first))
        seconds += time.process_time() - started
        for count, scores in dice.items():
            mean = np.stack(made[-int(count) :]).mean(axis=0, dtype=np.float64).astype(np.float32)
            for name in trained.names if arm == "alone" else sites.names:
                found = sites.trainer.validate(mean, sites.open(name).validation_cases).dice
                scores[name] = round(statistics.fmean(found.values()), 5)
    return {"arm": arm, "seed": seed, "seconds": round(seconds), "dice": dice}


def mean_dice(lines: Sequence[Line], arm: str, count: int = 1) -> list[float]:
    """The mean over sites of every seed of an arm."""
    scores = [line["dice"].get(str(count)) for line in lines if line["arm"] == arm]
    return [statistics.fmean(sites.values()) for sites in scores if sites]


def show(lines: Sequence[Line], arms: Sequence[str]) -> None:
    """Print a row an arm: mean over sites and seeds, with the least and the most of the seeds."""
    for arm in arms:
        mine = [line for line in lines if line["arm"] == arm]
        seconds = statistics.fmean(line["seconds"] for line in mine)
        print(f"{arm}: {len(mine)} seeds, {seconds:.0f} s on one core")
        for count in AVERAGES:
            if means := mean_dice(lines, arm, count):
                by_site = {site: [line["dice"][str(count)][site] for line in mine] for site in mine[0]["dice"]["1"]}
                sites = ", ".join(f"{site} {statistics.fmean(values):.4f}" for site, values in by_site.items())
                print(
                    f"  mean of the last {count}: Dice {statistics.fmean(means):.4f} "
                    f"({min(means):.4f} to {max(means):.4f}); {sites}"
                )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("FEDVOX_TEST_DATA", REPOSITORY.parent / "shared" / "data")) / "Task04_Hippocampus"
    parser.add_argument("dataset", type=Path, nargs="?", default=data)
    parser.add_argument("--arms", type=lambda text: text.split(","), default=["fedavg", "epochs-momentum", "pooled"])
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[1, 2])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=25, help="local steps")
    parser.add_argument("--full", action="store_true", help="not the coarse copy")
    parser.add_argument("--set", action="append", default=[], help="replaces a value of the file, for all arms")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args(arguments)
    common = [f"rounds={options.rounds}", f"training.local_steps={options.steps}", *options.set]
    common = [*PLAIN, *(() if options.full else COARSE), *common]
    lines = [] if not options.out or not options.out.exists() else list(map(json.loads, options.out.open()))
    lines = [line for line in lines if line["settings"] == common]
    for seed in options.seeds:
        for arm in options.arms:
            if any((line["arm"], line["seed"]) == (arm, seed) for line in lines):
                continue
            federation = REPOSITORY / "deploy" / "examples" / "hippocampus.yaml"
            epochs = options.steps * SITES * BATCH / SCANS
            config = load_federation(federation, [*common, *(text.format(epochs=epochs) for text in ARMS[arm])])
            line = measure(arm, config, seed, options.dataset, options.cache) | {"settings": common}
            lines.append(line)
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    show(lines, options.arms)
    first, last = (statistics.fmean(mean_dice(lines, options.arms[place])) for place in (0, -1))
    print(f"recipe: {first:.4f} {last:.4f} {first / last:.4f}")


if __name__ == "__main__":
    main()
