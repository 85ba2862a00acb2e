"""The pages of both sides: how soon they are there, how soon news is on them, what they cost.

``python -m tests.benchmarks.pages [paint] [large] [day] [site]``, all by default, in Chromium and with real servers:

- ``paint``: first contentful paint of every page, with an empty cache, and of a page of one word, which tells what the
  browser itself needs at the moment; then the time from a status that is written to the change on the page.
- ``large``: a run of 32 sites and 500 rounds, by a server that has not read it yet: time until the page is ready and
  its curves are drawn, bytes with all that it loads, and time until a finished round is on it.
- ``day``: as many news as eight hours have at one in two seconds, and a round in five minutes. Accelerated: the server
  looks for news a hundred times as often, and each is told by the open stream and fetched. Memory of the server's
  process after the warm-up and at the end.
- ``site``: two sites that train side by side, one of them with a page that somebody looks at; then with changed roles.
  What the process with the page needs beyond the other's, as a share of all that a site needs.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from client.runner.progress import RunnerStatus
from client.state_folder import AUDIT_FILE, StateFolder, write_json
from common.audit import AuditLog
from common.system.supervisor import free_port
from server.run_store.live_status import write_network_status
from server.run_store.locks import only_start
from tests.benchmarks._page_processes import (
    Visitor,
    bare_page,
    followed,
    memory,
    page_of,
    processor_seconds,
    signed_in,
    window,
)
from tests.browser import launched
from tests.client.web.hospital import make_place
from tests.e2e.network_federation import Federation, federation, wait_for
from tests.server.run_folder import SITES, round_line, write_json_lines, write_run_folder
from tests.server.web.runs import network_status, write_live_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

REPEATS = 5
COORDINATOR = ("/", "/runs/0", "/runs/0/rounds", "/runs/1")
HOSPITAL = ("/", "/sent", "/privacy", "/live", "/data", "/scans")
LARGE_SITES, LARGE_ROUNDS = [f"site-{number:02d}" for number in range(32)], 500
NEWS, NEWS_OF_A_ROUND, WARM_UP = 14_400, 150, 400
LOOK_SECONDS = 0.005
TRAINING = (
    "rounds=4",
    "strategy={min_sites: 2, min_fraction: 1.0}",
    "model={channels: [16, 32, 64], groups: 4, patch_size: [32, 32, 32]}",
    "training.local_steps=120",
)
PAINT = """() => new Promise(done => new PerformanceObserver(list => {
  for (const entry of list.getEntriesByName("first-contentful-paint")) done(entry.startTime / 1000);
}).observe({type: "paint", buffered: true}))"""
AWAIT = """text => { window.seen = new Promise(done => {
  const look = () => { if (document.body.textContent.includes(text)) { watch.disconnect(); done(Date.now() / 1000); } };
  const watch = new MutationObserver(look);
  watch.observe(document.body, {childList: true, subtree: true, characterData: true, attributes: true});
}); }"""
OPENED = """() => {
  const page = performance.getEntriesByType("navigation")[0], parts = performance.getEntriesByType("resource");
  const bytes = [page, ...parts].reduce((sum, part) => sum + part.transferSize, 0);
  return [page.domContentLoadedEventEnd / 1000, bytes];
}"""


class TrainingSite:
    """The files of a site that trains, as its processes write them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.place = make_place(folder)
        state = StateFolder(self.place.state)
        self._runner = state.runner
        self._log = AuditLog(state.path / AUDIT_FILE)
        status = RunnerStatus(state.runner)
        status.state("working")
        process = {"state": "ready", "pid": os.getpid(), "since": time.time(), "restarts": 0}
        write_json(state.status, {"role": "site", "processes": {"courier": process, "runner": process}})
        (state.logs / "runner.log").write_text("10:00:00 INFO a line of a log\n" * 200, encoding="utf-8")

    @contextmanager
    def served(self, look_seconds: float | None = None) -> Iterator[Visitor]:
        options = ("--kit", self.place.kit, "--state", self.place.state, "--ledger", self.place.ledger)
        with StateFolder(self.place.state).locked(), page_of("client", *options, look_seconds=look_seconds) as visitor:
            yield visitor

    def step(self, number: int) -> None:
        about = {"pid": os.getpid(), "state": "working", "round": 7, "step": number, "steps": 100_000, "loss": 0.5}
        write_json(self._runner, about)

    def finish_round(self, number: int) -> None:
        self._log.append("sent", kind="train", round=number, fields={"train_loss": 0.5, "dice": {"1": 0.5, "2": 0.7}})


class Run:
    """A run over a network that goes on."""

    def __init__(self, folder: Path, rounds: int, sites: list[str]) -> None:
        self.folder = write_live_run(folder, rounds, sites)
        self._sites = sites

    def step(self, number: int) -> None:
        write_network_status(self.folder, network_status(self._sites, 7, step=number))

    def finish_round(self, number: int) -> None:
        file = self.folder / "rounds.jsonl"
        write_json_lines(self.folder / "next", [round_line(number, 10_000, self._sites)])
        with file.open("a", encoding="utf-8") as stream:
            stream.write((self.folder / "next").read_text(encoding="utf-8"))


def paints(browser: Browser, visitor: Visitor, paths: tuple[str, ...]) -> dict[str, float]:
    """Seconds until each page's first contentful paint, the median of several visits."""
    found = {}
    for path in paths:
        values = []
        for _ in range(REPEATS):
            with window(browser, visitor) as page:
                page.goto(f"{visitor.address}{path}")
                values.append(page.evaluate(PAINT))
        found[path] = statistics.median(values)
    return found


def seconds_of_news(
    browser: Browser, visitor: Visitor, path: str, happen: Callable[[int], None], text: Callable[[int], str]
) -> list[float]:
    """Seconds from something that happens to the text that the page then has, sorted."""
    values = []
    with window(browser, visitor) as page:
        page.goto(f"{visitor.address}{path}")
        page.locator("#news.on").wait_for()
        for number in range(1, 16):
            # At any moment between two looks of the server.
            page.wait_for_timeout(1000 + 1000 * random.random())
            page.evaluate(AWAIT, text(number))
            started = time.time()
            happen(number)
            values.append(page.evaluate("() => window.seen") - started)
    return sorted(values)


def paint(folder: Path) -> str:
    site, run = TrainingSite(folder / "site"), Run(folder / "live", 60, list(SITES))
    done = write_run_folder(folder / "done")
    told = {}
    with launched() as browser, bare_page() as visitor:
        (bare,) = paints(browser, visitor, ("/",)).values()
    with launched() as browser, site.served() as visitor:
        painted = {f"hospital {path}": seconds for path, seconds in paints(browser, visitor, HOSPITAL).items()}
        told["hospital"] = seconds_of_news(browser, visitor, "/live", site.step, lambda n: f"step {n} of")
    with launched() as browser, only_start(run.folder), page_of("server", run.folder, done) as visitor:
        painted |= {f"coordinator {path}": seconds for path, seconds in paints(browser, visitor, COORDINATOR).items()}
        told["coordinator"] = seconds_of_news(browser, visitor, "/runs/0", run.step, lambda n: f"step {n} of")
    print(f"a page of one word: first paint after {bare:.2f} s")
    for page, seconds in painted.items():
        print(f"{page}: first paint after {seconds:.2f} s")
    for side, values in told.items():
        print(f"{side}: news on the page after {statistics.median(values):.2f} s, at most {values[-1]:.2f} s")
    slowest, latest = max(painted.values()), max(values[-1] for values in told.values())
    return f"first paint {slowest:.2f} s at most (a page of one word {bare:.2f} s), news {latest:.2f} s at most"


def large(folder: Path) -> str:
    run = Run(folder / "large", LARGE_ROUNDS, LARGE_SITES)
    with (
        launched() as browser,
        only_start(run.folder),
        page_of("server", run.folder) as visitor,
        window(browser, visitor) as page,
    ):
        page.goto(f"{visitor.address}/runs/0")
        page.locator("#curves-epsilon canvas").wait_for()
        drawn = page.evaluate("() => performance.now() / 1000")
        ready, size = page.evaluate(OPENED)
        told = seconds_of_news(browser, visitor, "/runs/0", run.step, lambda n: f"step {n} of")

        def finish_round(number: int) -> None:
            run.finish_round(LARGE_ROUNDS + number)

        # The page shows ten rounds, and how many more there are.
        rounds = seconds_of_news(browser, visitor, "/runs/0", finish_round, lambda n: f"({LARGE_ROUNDS - 10 + n} more)")
    print(f"32 sites, 500 rounds: ready after {ready:.2f} s, curves drawn after {drawn:.2f} s, {size / 1e6:.2f} MB")
    print(f"news after {statistics.median(told):.2f} s, at most {told[-1]:.2f} s")
    print(f"a finished round after {statistics.median(rounds):.2f} s, at most {rounds[-1]:.2f} s")
    return f"32 sites and 500 rounds {drawn:.2f} s, {size / 1e6:.2f} MB, news {rounds[-1]:.2f} s at most"


def growth(visitor: Visitor, path: str, topic: str, made: Run | TrainingSite, news: int) -> float:
    """Memory of a page's server after so many news, as a share of what it had after the warm-up."""
    first = 0
    with visitor.client.stream("GET", "/events") as stream:
        lines = stream.iter_lines()
        for number in range(WARM_UP + news):
            if number == WARM_UP:
                first = memory(visitor.pid)
            if number % NEWS_OF_A_ROUND == 0:
                made.finish_round(1000 + number // NEWS_OF_A_ROUND)
            made.step(number)
            while next(lines) != f"event: {topic}":
                pass
            visitor.client.get(path).raise_for_status()
    last = memory(visitor.pid)
    print(f"{path}: {first / 1000:.1f} MB before, {last / 1000:.1f} MB after {news} news")
    return last / first


def day(folder: Path, news: int = NEWS) -> str:
    site, run = TrainingSite(folder / "site"), Run(folder / "live", 6, list(SITES))
    with site.served(LOOK_SECONDS) as visitor:
        hospital = growth(visitor, "/live", "activity", site, news)
    with only_start(run.folder), page_of("server", run.folder, look_seconds=LOOK_SECONDS) as visitor:
        coordinator = growth(visitor, "/runs/0", "run-0", run, news)
    return f"memory after {news} news {coordinator:.3f} x (coordinator), {hospital:.3f} x (hospital)"


def needs(made: Federation, site: str) -> tuple[float, float]:
    """Processor seconds of the process that serves a site's page, if there is one, and of all of the site's."""
    others = [made.site_pid(site, name) for name in ("courier", "runner")]
    first = processor_seconds(made.processes[site].pid)
    return first, first + sum(processor_seconds(pid) for pid in others if pid is not None)


def page_cost(folder: Path, watched: str, other: str) -> tuple[float, float, float]:
    """Processor seconds of a page, of a site without one, and of a round's time, over all rounds but the first."""
    folder.mkdir()
    with federation(folder, ("east", "west"), TRAINING) as made:
        made.start_server()
        wait_for(made.is_up, 120, "a server that waits for sites")
        made.start_site(other)
        made.start_site(watched, options=("--page", f"127.0.0.1:{free_port()}"))
        wait_for(lambda: "/sign-in" in made.log(watched), 120, "the links of a page")
        link = next(line.split()[-1] for line in made.log(watched).splitlines() if "/sign-in" in line)
        with signed_in(made.processes[watched].pid, link) as visitor, followed(visitor, "/live", "activity"):
            wait_for(made.rounds, 300, "the first round")
            before = {site: needs(made, site) for site in (watched, other)}
            began = time.monotonic()
            wait_for(lambda: len(made.rounds()) == made.config.rounds, 600, "the last round")
            took = time.monotonic() - began
            after = {site: needs(made, site) for site in (watched, other)}
        made.finish(200)
    first, whole = ({site: after[site][i] - before[site][i] for site in after} for i in (0, 1))
    return first[watched] - first[other], whole[other], took


def site(folder: Path) -> str:
    costs = [page_cost(folder / watched, watched, other) for watched, other in (("east", "west"), ("west", "east"))]
    for page, whole, took in costs:
        print(f"page {page:.2f} s, a site without it {whole:.2f} s of processor time, in {took:.0f} s")
    page, whole, took = (sum(values) for values in zip(*costs, strict=True))
    return f"page's cost {page / whole:.2%} of a site's processor time, {page / took:.2%} of the rounds' time"


PARTS: dict[str, Callable[[Path], str]] = {"paint": paint, "large": large, "day": day, "site": site}


def main() -> None:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FEDVOX_LEDGER"] = str(Path(folder) / "ledger.jsonl")
        for part in sys.argv[1:] or PARTS:
            place = Path(folder) / part
            place.mkdir()
            found.append(PARTS[part](place))
    print(f"pages: {'; '.join(found)}")


if __name__ == "__main__":
    main()
