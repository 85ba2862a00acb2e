"""The ``personal`` section: what goes together, and the reasons to refuse the rest."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from common.config.personal import DITTO_LAMBDA, own_steps
from tests import tiny


def test_no_site_has_a_model_of_its_own_unless_the_file_says_so() -> None:
    config = tiny.federation()
    assert config.personal is None and own_steps(config.personal, 40) == 0


def test_dittos_options_have_defaults() -> None:
    plain = tiny.federation(personal={"method": "ditto"}).personal
    assert plain is not None and plain.strength == DITTO_LAMBDA and own_steps(plain, 40) == 40
    alone = tiny.federation(personal={"method": "ditto", "ditto_lambda": 0.0, "steps": 7}).personal
    assert alone is not None and alone.strength == 0 and own_steps(alone, 40) == 7
    norms = tiny.federation(personal={"method": "norms"}).personal
    assert own_steps(norms, 40) == 0


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"personal": {"method": "norms", "ditto_lambda": 1.0}}, "ditto_lambda is an option of ditto"),
        ({"personal": {"method": "norms", "steps": 3}}, "steps is an option of ditto"),
        ({"personal": {"method": "fedper"}}, "'norms' or 'ditto'"),
        ({"personal": {}}, "method"),
        ({"personal": {"method": "ditto", "ditto_lambda": -0.1}}, "ditto_lambda"),
        ({"personal": {"method": "ditto", "steps": 0}}, "steps"),
        ({"personal": {"method": "norms"}, "training": {"trainable": "norms"}}, "no weight would be shared"),
        ({"personal": {"method": "norms"}, "training": {"trainable": "head"}}, "never trains them"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        tiny.federation(**values)


def test_the_digest_covers_it() -> None:
    plain, norms = tiny.federation(), tiny.federation(personal={"method": "norms"})
    assert plain.digest() != norms.digest() != tiny.federation(personal={"method": "ditto"}).digest()
