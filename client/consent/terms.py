"""What an approval is bound to: everything in the kit that gives it meaning, and the hospital's limits at that time."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

from client.consent.disclosure import digest_of_fields
from client.consent.site_config import Limits, SiteConfig, SitePrivacy
from common.certificates import AUTHORITY_FILE, fingerprint, load_certificate
from common.config.federation import load_federation
from common.config.kit import KIT_FILE, read_kit
from common.config.network import SiteName
from common.errors import ConfigError
from common.plan.base import Frozen
from common.weights.digest import Digest

PLAN_FILE = "plan.json"


class KitTerms(Frozen):
    """Everything in a kit that gives it meaning.

    Attributes
    ----------
    federation
        Digest of the federation's configuration.
    plan
        SHA-256 of ``plan.json``.
    site
        The site's name.
    authority
        Fingerprint of the authority's key; None in the kit of a runner apart from its courier, which alone needs it.
    fields
        Digest of the list of what leaves the site.
    """

    federation: Digest
    plan: Digest
    site: SiteName
    authority: Digest | None
    fields: Digest

    def differences(self, approved: KitTerms) -> list[str]:
        """List what is no longer as it was approved, one phrase each; the federation itself is compared by digest."""
        files = {"plan": PLAN_FILE, "site": f"site in {KIT_FILE}", "authority": AUTHORITY_FILE}
        return [where for name, where in files.items() if getattr(self, name) != getattr(approved, name)]


def terms_of(kit: Path) -> KitTerms:
    """Return the terms of a site's kit as it is now.

    Raises
    ------
    ConfigError
        A file is missing or cannot be read.
    CertificateError
        The authority's certificate cannot be read.
    """
    try:
        plan = hashlib.sha256((kit / PLAN_FILE).read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{kit / PLAN_FILE}: cannot be read: {error.strerror}; ask for a new kit") from None
    authority = kit / AUTHORITY_FILE
    return KitTerms(
        federation=load_federation(kit / "federation.yaml").digest(),
        plan=plan,
        site=read_kit(kit, "site").site or "",
        authority=fingerprint(load_certificate(authority)) if authority.exists() else None,
        fields=digest_of_fields(),
    )


class HospitalLimits(Frozen):
    """What in a site file limited a federation when it was approved.

    Attributes
    ----------
    limits, privacy
        See ``SiteConfig``.
    patient_from_name
        The rule that says which scans are one patient's, whose privacy is limited; None without one.
    """

    limits: Limits
    privacy: SitePrivacy
    patient_from_name: str | None = None

    @classmethod
    def of(cls, site: SiteConfig) -> HospitalLimits:
        """Return the limits of a site file."""
        return cls(limits=site.limits, privacy=site.privacy, patient_from_name=site.patient_from_name)

    def __str__(self) -> str:
        """Return all keys that are set, with their values, or ``none``."""
        parts = (("limits", self.limits), ("privacy", self.privacy))
        found = [
            f"{part}.{key}: {json.dumps(value)}"
            for part, values in parts
            for key, value in values.model_dump(mode="json", exclude_defaults=True).items()
        ]
        if self.patient_from_name is not None:
            found.append(f"patient_from_name: {json.dumps(self.patient_from_name)}")
        return ", ".join(found) or "none"

    def weaker_than(self, approved: HospitalLimits) -> list[str]:
        """List the keys that allow more than they did, or are gone; stricter ones are not listed.

        Any other rule for patients is listed: to the ledger, those who have another name have spent nothing.
        """
        found = [f"limits.{key}" for key in _weaker_limits(self.limits, approved.limits)]
        found += [f"privacy.{key}" for key in _weaker_privacy(self.privacy, approved.privacy)]
        return found + ["patient_from_name"] * (self.patient_from_name != approved.patient_from_name)


def _weaker_limits(now: Limits, then: Limits) -> Iterator[str]:
    for key in ("max_rounds", "max_local_steps"):
        if _most(getattr(now, key)) > _most(getattr(then, key)):
            yield key
    for key in ("federations", "labels", "channels"):
        allowed, before = getattr(now, key), getattr(then, key)
        if before is not None and (allowed is None or set(allowed) - set(before)):
            yield key


def _weaker_privacy(now: SitePrivacy, then: SitePrivacy) -> Iterator[str]:
    if then.required and not now.required:
        yield "required"
    if _most(now.max_epsilon) > _most(then.max_epsilon):
        yield "max_epsilon"
    # The same epsilon at a larger delta promises less.
    elif then.max_epsilon is not None and now.delta > then.delta:
        yield "delta"
    if now.share_personal_score and not then.share_personal_score:
        yield "share_personal_score"


def _most(limit: float | None) -> float:
    return math.inf if limit is None else limit
