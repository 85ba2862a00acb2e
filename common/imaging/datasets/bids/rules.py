"""What a hospital says about reading BIDS; without imaging."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from common.plan.base import Frozen


class BidsRules(Frozen):
    """The hospital's choices among label maps.

    Attributes
    ----------
    derivatives
        The folder within ``derivatives/`` that holds the label maps; needed where several do.
    labels
        Pattern of their names without suffix, such as ``*_desc-manual_dseg``; needed where a scan has several.
    """

    derivatives: Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f]{1,100}$")] | None = None
    labels: Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f]{1,200}$")] | None = None


USUAL_BIDS = BidsRules()
