"""Federation files that failed once, where they are at hand (``../shared/cases``, or ``$FEDVOX_TEST_CASES``)."""

import os
from pathlib import Path

import pytest

from common.config.federation import load_federation
from common.errors import ConfigError

ROOT = Path(os.environ.get("FEDVOX_TEST_CASES") or Path(__file__).parents[4] / "shared" / "cases")


def _case(name: str) -> Path:
    if not (ROOT / name).is_dir():
        pytest.skip(f"{ROOT / name} is not there; set FEDVOX_TEST_CASES")
    return ROOT / name


def test_a_merge_key_is_read() -> None:
    training = load_federation(_case("yaml-merge") / "t_merge.yaml").training
    assert (training.local_steps, training.batch_size, training.learning_rate) == (1, 2, 0.004)


def test_a_key_that_is_there_as_number_and_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="line 4: duplicate key '1'"):
        load_federation(_case("yaml-dup-mixed") / "t_labels_dup_mixed.yaml")


def test_no_value_that_cannot_be_computed_with_is_read() -> None:
    overrides = [line.split("  ")[0] for line in (_case("nonfinite-config") / "list.txt").read_text().splitlines()]
    assert len(overrides) == 13
    for override in overrides:
        with pytest.raises(ConfigError, match=override.partition("=")[0].replace(".", r"\.")):
            load_federation(_case("labels-swapped") / "federation.yaml", [override])
