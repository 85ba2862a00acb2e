"""Epsilons by Google's dp-accounting, which needs other versions of packages than this project and stands apart.

``python -m venv V && V/bin/pip install dp-accounting==0.6.0 && V/bin/python tests/common/dp_accounting_reference.py``
prints the table that lies beside this file. Its accountant composes discretised distributions of the privacy loss, for
patients added and for patients removed, and takes the larger epsilon.
"""

from __future__ import annotations

import json

DELTAS = (1e-5, 1e-6)
# Each: what is composed, as (noise multiplier, sample rate, steps).
SETTINGS: tuple[tuple[tuple[float, float, int], ...], ...] = (
    ((1.0, 0.1, 200),),
    ((2.0, 0.5, 6),),
    ((0.6, 0.01, 1000),),
    ((4.0, 0.1, 400),),
    ((20.0, 0.1, 400),),
    ((5.0, 1.0, 21),),
    ((100.0, 1.0, 3),),
    ((0.5, 0.05, 10),),
    ((0.4, 0.5, 3),),
    ((1.0, 0.001, 10000),),
    ((6.0, 0.25, 1000),),
    ((10.694, 0.2, 200),),
    ((1.0, 0.1, 100), (2.0, 0.3, 50)),
    ((3.0, 1.0, 4), (1.5, 0.05, 300)),
    ((4.0, 1.0, 4), (8.0, 1.0, 10)),
)


def main() -> None:
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

    rows = []
    for parts in SETTINGS:
        accountant = PLDAccountant(value_discretization_interval=1e-4)
        for noise, rate, steps in parts:
            gaussian = dp_event.GaussianDpEvent(noise)
            accountant.compose(gaussian if rate == 1 else dp_event.PoissonSampledDpEvent(rate, gaussian), steps)
        rows += [{"parts": parts, "delta": delta, "epsilon": accountant.get_epsilon(delta)} for delta in DELTAS]
    print("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]")


if __name__ == "__main__":
    main()
