"""Charts drawn from numbers: nothing is lost, nothing lies outside, and nothing breaks on odd input."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from llamero.evaluation import charts
from llamero.spec.results import Histogram, LossPoint


def curve(losses: list[float]) -> list[LossPoint]:
    return [LossPoint(step=i, loss=v, learning_rate=0.1, tokens=i, seconds=i) for i, v in enumerate(losses, start=1)]


@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-6, 1e6),
    st.integers(1, 10),
)
def test_ticks_enclose_the_data_in_even_steps(low: float, span: float, count: int) -> None:
    high = low + span
    ticks = charts.choose_ticks(low, high, count)
    tolerance = 1e-6 * max(abs(low), abs(high), span)
    assert ticks[0] <= low + tolerance
    assert ticks[-1] >= high - tolerance
    assert len(ticks) <= count + 3


def test_smoothing_keeps_the_ends_and_does_not_lag() -> None:
    line = [float(i) for i in range(100)]
    assert charts.smooth(line) == pytest.approx(line), "a straight line is its own moving average where there is no lag"
    assert charts.smooth([5.0]) == [5.0]
    assert charts.smooth([]) == []


def test_a_long_curve_is_gathered_without_losing_a_step_or_an_extreme() -> None:
    losses = [1.0] * 5000
    losses[3210] = 9.0
    places = charts.gather_points(list(range(1, 5001)), losses)
    assert len(places) <= charts.MAX_DRAWN_POINTS
    assert (places[0].first_step, places[-1].last_step) == (1, 5000)
    assert max(p.high for p in places) == 9.0
    assert all(b.first_step == a.last_step + 1 for a, b in pairwise(places))


@pytest.mark.parametrize(
    "losses", [[2.0], [1.0, 1.0], [0.0, 0.0, 0.0], [3.0, float("nan"), float("inf"), 1.0], [1e-9, 1e9]]
)
def test_odd_curves_are_drawn_within_the_figure(losses: list[float]) -> None:
    drawn = charts.draw_loss_curve(curve(losses), 600, 300)
    tree = etree.fromstring(str(drawn))
    assert "nan" not in drawn.lower().replace("finance", "")
    for path in tree.iter("path"):
        numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", path.get("d"))]
        assert all(-1 <= x <= 601 for x in numbers[0::2])
        assert all(-1 <= y <= 301 for y in numbers[1::2])


def test_an_empty_curve_draws_nothing() -> None:
    assert charts.draw_loss_curve([], 600, 300) == ""
    assert charts.draw_loss_curve(curve([float("nan")]), 600, 300) == ""


def test_each_place_of_a_curve_tells_its_figures_to_a_pointer() -> None:
    tree = etree.fromstring(str(charts.draw_loss_curve(curve([3.0, 2.0, 1.0]), 600, 300, resumed_from=[2])))
    titles = [t.text for t in tree.iter("title")]
    assert "Step 2: loss 2.000, moving average 2.000" in titles
    assert "Resumed from the checkpoint after step 2" in titles
    assert tree.get("aria-label").startswith("Training loss over 3 optimiser steps: 3.00 at step 1")


def test_histogram_bars_are_as_high_as_their_counts() -> None:
    read = Histogram(name="input-read", edges=[0, 10, 20, 30], counts=[40, 20, 0])
    kept = Histogram(name="input-kept", edges=[0, 10, 20, 30], counts=[20, 20, 0])
    tree = etree.fromstring(str(charts.draw_histogram(read, kept, 20, "tokens")))
    heights = {
        kind: [float(r.get("height")) for r in tree.iter("rect") if r.get("class") == f"bar {kind}"]
        for kind in ("read", "kept")
    }
    assert heights["read"][0] == pytest.approx(2 * heights["read"][1], abs=0.02)
    assert heights["kept"][0] == pytest.approx(heights["read"][1], abs=0.02)
    assert len(heights["read"]) == 2, "an empty bin has no bar"
    assert "0 to 10 tokens: 40 read, 20 kept" in [t.text for t in tree.iter("title")]


def test_a_tail_bin_is_labelled_as_one() -> None:
    kept = Histogram(name="output-kept", edges=[0, 20, 40, 60, 9001], counts=[5, 6, 2, 1])
    tree = etree.fromstring(str(charts.draw_histogram(None, kept, None, "tokens")))
    labels = [t.text for t in tree.iter("text")]
    assert "≥60" in labels
    assert "9,001" not in labels
    doubling = Histogram(name="output-kept", edges=[0, 16, 32, 64, 128], counts=[5, 6, 2, 1])
    assert "≥" not in charts.draw_histogram(None, doubling, None, "tokens")


def test_text_in_a_chart_is_escaped() -> None:
    drawn = charts.draw_shares([("<script>alert(1)</script>", 1.0)])
    assert "<script>" not in drawn
    assert "&lt;script&gt;" in drawn
