"""Pictures are drawn to scale."""

from __future__ import annotations

from client.web.drawing import HEIGHT, MARGIN, MOST_POINTS, WIDTH, bar_of, chart_of


def test_bars_have_one_scale_and_say_when_a_limit_is_passed() -> None:
    half, over = bar_of(4.0, 8.0, 8.0), bar_of(16.0, 8.0, 16.0)
    assert (half.spent, half.limit, half.is_over) == (WIDTH // 2, WIDTH, False)
    assert (over.spent, over.limit, over.is_over) == (WIDTH, WIDTH // 2, True)
    assert bar_of(2.0, None, 8.0).spent == WIDTH // 4
    unlimited = bar_of(None, 8.0, 0.0)
    assert (unlimited.spent, unlimited.is_over) == (WIDTH, True)
    assert bar_of(0.0, None, 0.0).spent == 0


def test_a_chart_reaches_from_corner_to_corner() -> None:
    chart = chart_of([1, 2, 3], [("loss", [0.0, None, 4.0])], limit=2.0)
    assert chart is not None
    low, high = HEIGHT - MARGIN, MARGIN
    assert chart.lines[0].points == f"{MARGIN},{low} {WIDTH - MARGIN},{high}"
    assert (chart.low, chart.high, chart.limit) == ("0", "4", (low + high) // 2)
    assert chart_of([1], [("loss", [None])]) is None


def test_many_rounds_are_thinned_out_and_the_last_stays() -> None:
    x = list(range(1, 10 * MOST_POINTS + 1))
    chart = chart_of(x, [("loss", [float(value) for value in x])])
    assert chart is not None
    points = chart.lines[0].points.split()
    assert len(points) <= MOST_POINTS + 1
    assert points[-1] == f"{WIDTH - MARGIN},{MARGIN}"
