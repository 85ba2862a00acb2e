"""The words of the consent document on the federation's algorithm."""

from __future__ import annotations

from collections.abc import Mapping

LOCAL_PARTS = {
    "fedprox": " Your site adds its proximal term to the loss in every step.",
    "feddyn": " Your site corrects its steps by what it remembers of its own gradient: a vector as long as the model, "
    "kept in its state folder. It follows from the updates, and nothing else of it is sent.",
    "scaffold": " Your site corrects its steps by the difference between the mean gradient of all sites, which it "
    "receives with every model, and its own: a vector as long as the model, kept in its state folder. Its own follows "
    "from the updates, and nothing else of it is sent.",
}
"""What an algorithm changes at the sites."""


def algorithm_sentence(algorithm: str, options: Mapping[str, float]) -> str:
    """Return who combines the updates how, and what the algorithm changes at the site."""
    named = f" ({', '.join(f'{option} {value:g}' for option, value in options.items())})" if options else ""
    return f"The server makes the next model from the updates by {algorithm}{named}.{LOCAL_PARTS.get(algorithm, '')}"
