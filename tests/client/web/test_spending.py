"""The ledger's page has the ledger's numbers, and says when the ledger cannot be trusted."""

from __future__ import annotations

from client.consent.site_config import SITE_FILE
from client.ledger.ledger import Ledger, Witness
from client.web.place import Place
from tests.client.ledger.test_ledger import ROUND, TRAINING, VALIDATION, budget, of, patients
from tests.client.web.hospital import visitor, words


def test_nothing_spent_is_said(place: Place) -> None:
    assert "Nothing was spent yet." in words(visitor(place).get("/privacy"))


def test_what_is_spent_and_left_and_where_the_limit_is(place: Place) -> None:
    (place.state / SITE_FILE).write_text("privacy: {max_epsilon: 8}\n", encoding="utf-8")
    for number in (1, 2):
        budget(place.ledger, patients("a", "b"), state=place.state).spend("r1", number, ROUND)
    client = visitor(place)
    answer = client.get("/privacy")
    shown = words(answer)
    spent = of(TRAINING, TRAINING)
    assert f"epsilon {spent:.2f}. Left: {8 - spent:.2f}." in shown
    assert f"epsilon {of(VALIDATION, VALIDATION):.2f}. Left" in shown
    assert "no patient may spend more than epsilon 8 at delta 1e-05" in shown
    assert "first for training 2 20" in shown
    assert f'class="used" x="0" y="6" width="{round(640 * spent / 8)}"' in answer.text
    assert 'class="over"' not in answer.text
    (place.state / SITE_FILE).write_text("privacy: {max_epsilon: 0.01}\n", encoding="utf-8")
    assert 'class="over"' in client.get("/privacy").text, "a new limit is seen"


def test_a_ledger_that_was_lost_is_an_error_and_not_an_empty_page(place: Place) -> None:
    budget(place.ledger, patients("a"), state=place.state).spend("r1", 1, ROUND)
    assert Ledger(place.ledger, Witness(place.state)).read().rounds
    for file in place.ledger.parent.glob("ledger.jsonl*"):
        file.unlink()
    answer = visitor(place).get("/privacy")
    assert answer.status_code == 503
    assert "is missing, but this site has written" in words(answer)
