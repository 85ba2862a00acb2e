"""The model card: what a model is, what it was trained on, how well it does, and what it must not be used for.

Markdown with the front matter that the Hugging Face Hub reads. It says only what the run folder holds; counts by site
are all that it says of the data, and small ones are withheld.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.config.yaml_file import dump_yaml
from common.formatting import counted, fixed, visible
from common.models.bundle_file import FEWEST
from common.plan.plan import IntensityPlan, Plan
from server.export.card_scores import Scores, mean_over_sites, site_scores
from server.formatting import NOTHING, escaped
from server.run_store.record import RunRecord, as_number

LONGEST_NAME, LONGEST_TEXT = 80, 1000
_USE = """## Intended use

Research on the segmentation of these structures in scans like those that it was trained on, with every result checked
by a person who is qualified to read such scans. Nothing here certifies it: without a certificate
it is not a medical device, and not for diagnosis, treatment or triage.

```
fedvox-client verify --model DIR
fedvox-client predict --model DIR --input scan.nii.gz --output segmentation.nii.gz
```"""
_LIMITS = (
    "The scores above are of the sites above. Other scanners, protocols, ages and diseases may give worse results; "
    "`fedvox-client evaluate` measures them.",
    "The federation counts scans or patients. It learns nothing of their age, sex, origin or disease, so this card "
    "cannot tell how results differ between groups.",
    "It labels any scan, also one of another body part or modality, and does not say that it does not know it.",
)
_TRAINING = ("local_steps", "local_epochs", "batch_size", "optimizer", "learning_rate", "loss", "trainable")


@dataclass(frozen=True)
class CardFacts:
    """What a card is made from.

    Attributes
    ----------
    run
        The run folder's content.
    plan, provenance, weights
        Of the released model's bundle; ``weights`` is the SHA-256.
    audited
        Whether the run has an audit log that names the model.
    formats
        Other formats that come with the model.
    """

    run: RunRecord
    plan: Plan
    provenance: Mapping[str, Any]
    weights: str
    audited: bool
    formats: tuple[str, ...] = ()

    @property
    def round(self) -> int:
        """The round after which the model was released."""
        return int(as_number(self.provenance.get("round")) or 0)

    @property
    def name(self) -> str:
        """Name of the federation."""
        return str(self.provenance.get("federation") or "model")

    @property
    def privacy(self) -> Mapping[str, Any] | None:
        """The federation file's section on privacy; None without."""
        found = self.run.configuration.get("privacy")
        return found if isinstance(found, Mapping) else None

    @property
    def unit(self) -> str:
        """What sites count: patients under differential privacy over a network, else scans."""
        return "patients" if self.audited and self.privacy is not None else "scans"

    @property
    def started_from(self) -> str | None:
        """SHA-256 of the model that the first round started from; None if weights were drawn."""
        found = self.run.configuration.get("initial_model_sha256")
        return None if found is None else str(found)

    def rounds_of(self, site: str) -> int:
        """Count the rounds up to the release with an accepted update of a site."""
        lines = (line.sites.get(site) for line in self.run.training_rounds if line.number <= self.round)
        return sum(part is not None and part.status == "ok" for part in lines)


def model_card(facts: CardFacts) -> str:
    """Return the card as Markdown with front matter."""
    scores = site_scores(facts.run, facts.round)
    sections = [
        f"---\n{dump_yaml(_front_matter(facts, scores))}---",
        f"# {markdown(facts.name)}",
        _summary(facts),
        _USE,
        _data(facts),
        _scores(facts, scores),
        _privacy(facts),
        _plan(facts.plan),
        _training(facts),
        _limits(facts),
        _provenance(facts),
    ]
    return "\n\n".join(sections) + "\n"


def markdown(text: str, longest: int = LONGEST_NAME) -> str:
    """Return a text that Markdown shows as it is, in a line, cut to a length; no part of it is a tag or a link."""
    return escaped(text if len(text) <= longest else f"{text[:longest]}…")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; cells are Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _front_matter(facts: CardFacts, scores: Scores) -> dict[str, Any]:
    tags = ["medical-imaging", "3d-segmentation", "federated-learning"]
    tags += ["differential-privacy"] if facts.privacy is not None else []
    tags += [name for name in ("onnx", "torchscript", "monai") if any(form.startswith(name) for form in facts.formats)]
    results = [
        {
            "task": {"type": "image-segmentation", "name": "3D segmentation"},
            "dataset": {"type": "federated", "name": f"{visible(facts.name)}: {visible(score.site)}"},
            "metrics": [{"type": "dice", "name": "mean Dice", "value": round(score.dice, 4)}],
        }
        for score in scores.sites
        if score.dice is not None
    ]
    about: dict[str, Any] = {
        "license": "unknown",
        "library_name": "fedvox",
        "pipeline_tag": "image-segmentation",
        "tags": tags,
    }
    return about | ({"model-index": [{"name": visible(facts.name), "results": results}]} if results else {})


def _summary(facts: CardFacts) -> str:
    labels = ", ".join(_label(facts.plan, value) for value in sorted(facts.plan.labels))
    channels = ", ".join(map(markdown, facts.plan.channels))
    modality = str(facts.provenance.get("modality") or "")
    description = str(facts.provenance.get("description") or "")
    how = "simulated on one machine" if not facts.audited else "over a network whose protocol carries no scans"
    lines = [
        *([markdown(description, LONGEST_TEXT)] if description else []),
        f"A 3D U-Net that segments {labels} in scans with {counted(len(facts.plan.channels), 'channel')} ({channels})"
        + (f" of modality {markdown(modality)}." if modality else "."),
        f"Federation: {counted(len(facts.run.sites), 'site')}, {how}.",
    ]
    return "\n\n".join(lines)


def _label(plan: Plan, value: int) -> str:
    code = plan.label_codes.get(value)
    meant = f", {markdown(code.scheme)} {markdown(code.value)}" if code is not None else ""
    return f"{markdown(plan.labels[value])} ({value}{meant})"


def _data(facts: CardFacts) -> str:
    rounds = {site.name: facts.rounds_of(site.name) for site in facts.run.sites}
    sites = [site for site in facts.run.sites if rounds[site.name]]
    rows = [
        [markdown(site.name), str(rounds[site.name]), _count(site.train), _count(site.validation)]
        for site in facts.run.sites
    ]
    rows.append(["all that trained", "", _sum([s.train for s in sites]), _sum([s.validation for s in sites])])
    head = ["site", "rounds with an accepted update", f"training {facts.unit}", f"validation {facts.unit}"]
    whose = "as each site declared them" if facts.audited else "of the simulated sites"
    return f"## Data\n\n{table(head, rows)}\n\nCounts are {whose}; those below {FEWEST} are not shown."


def _scores(facts: CardFacts, scores: Scores) -> str:
    labels = sorted(facts.plan.labels)
    head = ["site", f"validation {facts.unit}", "mean Dice", "95 % interval"]
    head += [markdown(facts.plan.labels[label]) for label in labels]
    rows = [
        [
            markdown(score.site),
            _count(score.count),
            _dice(score.dice),
            NOTHING if score.low is None or score.high is None else f"{_dice(score.low)} to {_dice(score.high)}",
            *(_dice(score.labels.get(label)) for label in labels),
        ]
        for score in scores.sites
    ]
    mean = mean_over_sites(scores.sites)
    if mean is None:
        return f"## Results\n\n{table(head, rows)}\n\nThere is no score to show. {scores.method}"
    lines = [
        f"Mean over sites with a score: {_dice(mean)}. {scores.method}",
        "Each site scored the model on scans of its own that no site trained on. They had a say in which round was "
        "released, which makes the scores optimistic.",
    ]
    if facts.started_from is not None:
        lines.append("Nothing here says whether the model that training started from had seen them.")
    return f"## Results\n\n{table(head, rows)}\n\n{' '.join(lines)}"


def _privacy(facts: CardFacts) -> str:
    if facts.privacy is None:
        text = (
            "Trained without differential privacy: the model may reveal facts about single patients that it was "
            "trained on."
        )
        return f"## Privacy\n\n{text}"
    budget = f"epsilon {_number(facts.privacy.get('epsilon'))} at delta {_number(facts.privacy.get('delta'))}"
    rows = [[markdown(site.name), _number(facts.run.epsilon_spent(site.name))] for site in facts.run.sites]
    whose = "what each site reported" if facts.audited else "what the simulated sites spent"
    outside = "" if facts.started_from is None else " The model that training started from is outside of it."
    return (
        "## Privacy\n\nTrained under differential privacy, which protects each patient of each site with all their "
        f"scans. Budget: {budget}, for all rounds. Epsilon spent is {whose}.{outside}\n\n"
        f"{table(['site', 'epsilon spent'], rows)}"
    )


def _plan(plan: Plan) -> str:
    preprocessing, model = plan.preprocessing, plan.model
    spacing = "each scan's own" if preprocessing.spacing is None else f"{_axes(preprocessing.spacing)} mm"
    rows = [
        ["voxel size", spacing],
        ["patch", f"{_axes(plan.patch_size)} voxels"],
        ["crop", "to the box of voxels that are not zero" if preprocessing.crop == "nonzero" else "none"],
        *(
            [f"intensities of {markdown(name)}", _intensity(intensity)]
            for name, intensity in zip(plan.channels, preprocessing.intensity, strict=True)
        ),
        ["resampling", "cubic B-spline" if preprocessing.image_order == 3 else "linear"],
        ["network", f"{'residual ' if model.residual else ''}3D U-Net with GroupNorm, widths {_list(model.channels)}"],
    ]
    return f"## Plan\n\n{table(['setting', 'value'], rows)}\n\n`model.json` holds the whole plan."


def _intensity(plan: IntensityPlan) -> str:
    clip = {
        "window": f"clipped to {plan.lower:g} to {plan.upper:g}",
        "percentile": f"clipped to percentiles {plan.lower:g} to {plan.upper:g}",
        "none": "not clipped",
    }[plan.clip]
    normalise = {
        "volume": "mean 0 and standard deviation 1 in each scan",
        "given": f"minus {plan.mean:g}, divided by {plan.std:g}",
        "none": "not normalised",
    }[plan.normalise]
    return f"{clip}, {normalise}"


def _training(facts: CardFacts) -> str:
    configuration, summary = facts.run.configuration, facts.run.summary
    training = configuration.get("training")
    training = training if isinstance(training, Mapping) else {}
    versions = summary.get("versions")
    versions = versions if isinstance(versions, Mapping) else {}
    strategy = configuration.get("strategy")
    averaged = strategy.get("average_rounds") if isinstance(strategy, Mapping) else None
    start = facts.started_from
    rows = [
        ["started from", "weights drawn at random" if start is None else f"a model, SHA-256 {markdown(start)}"],
        ["released", f"the model after round {facts.round} of {_text(facts.provenance.get('rounds'))}"],
        ["algorithm", _text(facts.provenance.get("strategy"))],
        *([["last model", f"the mean of the last {_text(averaged)} rounds' models"]] if averaged is not None else []),
        ["personal models at sites", _text(facts.provenance.get("personal") or "none")],
        *([key.replace("_", " "), _text(training[key])] for key in _TRAINING if training.get(key) is not None),
        ["parameters", _text(summary.get("parameters"))],
        ["started, finished", f"{_text(facts.provenance.get('started'))}, {_text(summary.get('finished'))}"],
        ["software", ", ".join(f"{markdown(str(name))} {_text(version)}" for name, version in versions.items())],
    ]
    return f"## Training\n\n{table(['setting', 'value'], rows)}"


def _limits(facts: CardFacts) -> str:
    lines = [
        *_LIMITS,
        *([markdown(str(note), LONGEST_TEXT)] if (note := facts.provenance.get("note")) else []),
        *(markdown(note, LONGEST_TEXT) for note in facts.run.notes[:10]),
    ]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _provenance(facts: CardFacts) -> str:
    log = (
        "`release.jsonl` is the end of the run's audit log, from the entry that names these weights on. "
        "`fedvox-client verify` says who signed."
    )
    rows = [
        ["run", _text(facts.provenance.get("run"))],
        ["configuration", _text(facts.provenance.get("digest"))],
        ["weights", f"SHA-256 {facts.weights}"],
    ]
    text = log if facts.audited else "A simulated run has no audit log and no key, so nobody has signed this model."
    return (
        f"## Provenance\n\n{table(['what', 'value'], rows)}\n\n`manifest.json` names every file by its SHA-256. {text} "
        "No licence is stated here: ask the federation before you use the model or pass it on."
    )


def _count(count: int | None) -> str:
    if count is None:
        return NOTHING
    return f"fewer than {FEWEST}" if count < FEWEST else f"{count:,}"


def _sum(counts: Sequence[int | None]) -> str:
    """Sum what is shown, so that no difference tells what is not."""
    shown = [count for count in counts if count is not None and count >= FEWEST]
    if not shown:
        return NOTHING
    return f"{sum(shown):,}" if len(shown) == len(counts) else f"at least {sum(shown):,}"


def _dice(value: float | None) -> str:
    return NOTHING if value is None else fixed(value, 3)


def _number(value: object) -> str:
    number = as_number(value)
    return NOTHING if number is None else f"{number:.4g}"


def _text(value: object) -> str:
    return NOTHING if value is None else markdown(str(value))


def _axes(values: Sequence[float]) -> str:
    return " × ".join(f"{value:g}" for value in values)


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
