"""The statistics table: exact, mergeable, and its rows sum to overall."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamero.data.lengths import (
    DomainLengths,
    LengthCounts,
    Statistics,
    build_histograms,
    build_statistics,
    choose_edges,
    choose_sequence_length,
    find_domain,
)

lengths = st.lists(st.integers(0, 5000), max_size=60)


def count(values: list[int]) -> LengthCounts:
    counts = LengthCounts()
    for value in values:
        counts.add(value)
    return counts


@given(lengths, lengths)
def test_merged_counts_give_the_exact_mean_median_and_largest(a, b):
    merged = count(a)
    merged.merge(LengthCounts.from_json(count(b).to_json()))
    summary = merged.summarise()
    everything = a + b
    if not everything:
        assert (summary.mean, summary.median, summary.max) == (0, 0, 0)
        return
    assert summary.mean == pytest.approx(statistics.mean(everything))
    assert summary.median == statistics.median(everything)
    assert summary.max == max(everything)


@given(lengths)
def test_a_histogram_holds_every_record_once(values):
    whole = DomainLengths()
    for value in values:
        whole.add(value, value // 2)
    for histogram in build_histograms(whole, whole):
        assert sum(histogram.counts) == len(values)
        assert len(histogram.edges) == len(histogram.counts) + 1
        assert histogram.edges == sorted(set(histogram.edges))


def test_histogram_edges_are_round_and_the_last_bin_takes_the_tail():
    counts = count([10] * 990 + [480] * 9 + [90_000])
    edges = choose_edges(counts)
    assert edges[1] - edges[0] in (1, 2, 5, 10, 20, 50)
    assert edges[-1] == 90_001


@given(
    st.lists(
        st.tuples(st.sampled_from(["r", "python", "cooking", "x"]), st.integers(0, 900), st.integers(0, 900)),
        max_size=40,
    )
)
def test_the_rows_of_the_table_sum_to_overall(rows):
    domains = {"code": ["r", "Python"], "kitchen": ["cooking", "r"]}
    table = Statistics()
    for tag, input_length, output_length in rows:
        table.of(find_domain([tag], domains)).add(input_length, output_length)
    *parts, overall = build_statistics("read", Statistics.from_json(table.to_json()), list(domains))
    assert [p.domain for p in parts] == ["code", "kitchen", "other"]
    assert overall.domain == "overall"
    for field in ("samples", "tokens", "input_tokens", "output_tokens"):
        assert sum(getattr(p, field) for p in parts) == getattr(overall, field)
    assert overall.tokens == overall.input_tokens + overall.output_tokens


def test_the_first_domain_that_names_a_tag_wins():
    domains = {"a": ["R", "lm"], "b": ["r", "python"]}
    assert find_domain(["python", "r"], domains) == "a"
    assert find_domain(["python"], domains) == "b"
    assert find_domain([], domains) == "other"


@pytest.mark.parametrize(
    "values, recommended",
    [
        ([100] * 100, 128),
        ([129] * 100, 256),
        ([100] * 99 + [5000], 128),
        ([100] * 98 + [5000] * 2, 8192),
        ([9000] * 5, 8192),
    ],
)
def test_the_smallest_sequence_length_that_cuts_at_most_a_hundredth_is_recommended(values, recommended):
    chosen, choices = choose_sequence_length(count(values))
    assert chosen == recommended
    assert [c.sequence_length for c in choices] == [128, 256, 512, 1024, 2048, 4096, 8192]
    for choice in choices:
        assert choice.cut_fraction == pytest.approx(sum(v > choice.sequence_length for v in values) / len(values))
