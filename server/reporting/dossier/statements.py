"""Statements that several pages of the dossier share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from common.config.network import format_endpoint
from common.config.privacy import delta_warning
from common.formatting import counted
from common.models.bundle_file import FEWEST
from common.protocol.messages import Failure, Heartbeat, Result, SiteInfo
from server.formatting import format_bytes
from server.reporting.dossier.document import Statement, brief, by_design, declared, left_open, listed, shown
from server.reporting.dossier.facts import EVENTS_FILE, RunFacts
from server.reporting.report import as_time
from server.run_store.damage import SUMMARY_FILE
from server.run_store.folder import FEDERATION_FILE, PARTITION_FILE, PLAN_FILE, ROUNDS_FILE, TRACKING_LOCK
from server.run_store.record import as_number

NO_HOSPITAL = (
    "This run was a simulation. No hospital took part as a site, the program asked nobody for consent, and there was "
    "no hospital's privacy ledger or audit log."
)


def participants(facts: RunFacts) -> Statement:
    """Say who took part."""
    names = listed(facts.sites) or "none yet"
    if facts.is_simulated:
        return shown(f"A simulation, in which no hospital took part. Its sites are simulated: {names}.", EVENTS_FILE)
    ready = {str(event.get("site")) for event in facts.events("site_ready")}
    present = [site for site in facts.sites if site in ready]
    return shown(
        f"The federation lists {counted(len(facts.sites), 'site')}: {names}. Connected with a certificate of the "
        f"federation, and ready to train: {listed(present) or 'none'}. Which hospital holds a site's key, the program "
        "does not know.",
        FEDERATION_FILE,
        EVENTS_FILE,
    )


def purpose(facts: RunFacts) -> Statement:
    """Say what the model is for, as the federation file has it."""
    labels = listed(facts.run.labels.values()) or "labels that no file names"
    description = facts.run.configuration.get("description")
    said = f' The federation file describes it as "{brief(description)}".' if description else ""
    modality = brief(facts.run.configuration.get("modality", "unknown modality"))
    return declared(
        f"Training of a model that segments {labels} in volumes ({modality}), in the federation "
        f"{brief(facts.title)}.{said}",
        FEDERATION_FILE,
        PLAN_FILE,
    )


def patients(facts: RunFacts) -> Iterator[Statement]:
    """Say whose data were used, as far as numbers tell."""
    train = sum(site.train or 0 for site in facts.run.sites)
    validation = sum(site.validation or 0 for site in facts.run.sites)
    what = "cases" if facts.is_simulated else "patients"
    numbers = f"{_patients(train, what)} for training and {_patients(validation)} to score models"
    if facts.is_phantom:
        yield shown(
            f"Synthetic volumes, made by the program: {numbers}. They are of nobody, so there are no data subjects.",
            FEDERATION_FILE,
            PARTITION_FILE,
        )
        return
    if facts.is_simulated:
        yield shown(
            f"Cases of a dataset folder that was read in one place: {numbers}. The run folder holds the names of the "
            "cases and may hold pictures of them (examples/, report.html).",
            PARTITION_FILE,
        )
        yield left_open(
            "Where the dataset comes from, whether it is anonymous, and what its provider allows.",
            "whoever got the dataset",
        )
        return
    yield declared(
        f"As the sites declare: {numbers}, over {counted(len(facts.run.sites), 'site')}. Nobody can check these "
        "numbers from outside a hospital.",
        ROUNDS_FILE,
    )
    yield left_open(
        "Which patients these are: indication, time, age, whether minors or other people who need special protection "
        "are among them.",
        "the physician in charge at each hospital",
    )


def closed_list(facts: RunFacts) -> Iterator[Statement]:
    """Say what may leave a hospital, and how much did."""
    listed_fields = "; ".join(
        f"{message.__name__}: {', '.join(field.name for field in fields(message))}"
        for message in (SiteInfo, Heartbeat, Result, Failure)
    )
    yield by_design(
        "What may leave a site is a closed list of messages, and a file with the change of the model's weights. Both "
        f"sides refuse everything else. The fields are: {listed_fields}. What each means, fedvox-client review says in "
        "plain words before a hospital decides."
    )
    yield by_design(
        "Scans, label maps, predictions, names, dates, identifiers, file names and the text of errors are not on the "
        "list and do not leave.",
    )
    if facts.is_simulated:
        yield by_design(
            "A simulation keeps nothing from the coordinator: it reads all scans on one machine.", "simulate.md"
        )
    up, down = facts.total("bytes_up"), facts.total("bytes_down")
    where = "between the simulated sites and the server, on one machine" if facts.is_simulated else "over the network"
    parameters = as_number(facts.run.summary.get("parameters"))
    size = "" if parameters is None else f" An update has {parameters:,.0f} numbers."
    yield shown(
        f"Model updates of {format_bytes(up)} went from the sites to the server, and models of {format_bytes(down)} to "
        f"the sites, {where}.{size}",
        ROUNDS_FILE,
        SUMMARY_FILE,
    )


def privacy(facts: RunFacts) -> Iterator[Statement]:
    """Say what bounds what updates and models reveal of a patient."""
    if facts.privacy is None:
        yield shown(
            "Without differential privacy. What the updates and the model reveal of a single patient has no proven "
            "bound.",
            FEDERATION_FILE,
        )
        yield left_open(
            "Whether a model without such a bound may be released, and to whom.",
            "the data-protection officer of each controller",
        )
        return
    epsilon, delta = (as_number(facts.privacy.get(key)) for key in ("epsilon", "delta"))
    yield shown(
        f"The federation asks for differential privacy for every patient of a site: a budget of epsilon "
        f"{_plain(epsilon)} at delta {_plain(delta)} over all rounds. Scores of validation patients: "
        f"{brief(facts.privacy.get('validation', 'noised'))}.",
        FEDERATION_FILE,
    )
    spent = facts.run.epsilon_spent()
    if spent is None:
        yield shown("No site has reported that it spent any of the budget.", ROUNDS_FILE)
    else:
        whose = "The simulated sites have" if facts.is_simulated else "The sites report that they have"
        yield declared(f"{whose} spent epsilon {spent:.3f} at most.", ROUNDS_FILE)
    yield by_design(
        "The noise is added at the site, before anything leaves. The coordinator cannot see from an update whether it "
        "was.",
        "privacy.md",
    )
    most = max((part.examples or 0 for line in facts.run.rounds for part in line.sites.values()), default=0)
    if delta is not None and (warning := delta_warning(delta, most)):
        yield shown(f"Warning: {warning}.", FEDERATION_FILE, ROUNDS_FILE)
    yield left_open(
        "Whether this epsilon and delta are enough for these patients, and what they have lost to other federations: "
        "each hospital's own ledger holds that sum (fedvox-client ledger).",
        "the data-protection officer of each hospital",
    )


def onlookers(facts: RunFacts) -> Iterator[Statement]:
    """Say who else may have seen the run: trackers, metrics and pages, none of which the federation file knows."""
    yield by_design(
        "If the coordinator says so, parameters, numbers by site, the report and the model go to a tracking server, "
        "and numbers by site to monitoring (--metrics) and to whoever may open the coordinator's page. "
        + ("The report shows slices of scans and names of cases." if facts.is_simulated else "No scan is among them."),
        "tracking.md",
    )
    if facts.was_tracked:
        yield shown("A tracker was used for this run. Which one, the run folder does not say.", TRACKING_LOCK)
    yield left_open(
        "Whether there was a tracking server, monitoring or a page, where it stands, and who can read it.",
        "the coordinator's IT",
    )


def endpoint(facts: RunFacts) -> str | None:
    """Return the address at which sites reach the server."""
    network = facts.section("network") or {}
    address, port = network.get("address"), network.get("port")
    if not isinstance(address, str) or not isinstance(port, int):
        return None
    return format_endpoint(brief(address), port)


def progress(facts: RunFacts) -> Statement:
    """Say how far the run came, and when."""
    done, planned = len(facts.run.training_rounds), facts.run.rounds_planned
    of = "" if planned is None else f" of {planned}"
    times = [
        f"{word} {brief(as_time(facts.run.summary[key]))}"
        for word, key in (("started", "started"), ("ended", "finished"))
        if facts.run.summary.get(key)
    ]
    if not times and facts.state is not None:
        times = [f"started {brief(as_time(facts.state.started))}"]
    text = f"{facts.status['title']}: {done}{of} rounds are complete"
    reason = facts.run.summary.get("reason")
    why = f" The program stopped because: {brief(reason)}." if reason else ""
    return shown(f"{text}{''.join(f', {time}' for time in times)}.{why}", SUMMARY_FILE, ROUNDS_FILE)


def _patients(count: int, what: str = "") -> str:
    number = f"fewer than {FEWEST}" if 0 < count < FEWEST else f"{count:,}"
    return f"{number} {what}".rstrip()


def _plain(value: float | None) -> str:
    return "(not known)" if value is None else f"{value:g}"
