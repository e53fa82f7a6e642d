"""What a phase left, in the words of a job's status."""

from pathlib import Path

from llamero.phases.data import describe_data, list_parts
from llamero.phases.evaluation import describe_evaluation
from llamero.phases.training import read_micro_batch
from llamero.spec.results import (
    Answer,
    DataResult,
    EvaluationResult,
    GateResult,
    PerplexityPair,
    Sample,
    SplitCounts,
)
from llamero.spec.status import MAX_MESSAGE


def make_data(rejected: dict[str, int]) -> DataResult:
    side = SplitCounts(records=5, examples=6, tokens=70, target_tokens=30)
    return DataResult(
        digest="d",
        files=[],
        read=10 + sum(rejected.values()),
        kept=10,
        rejected=rejected,
        train=side,
        evaluation=side,
        sources=[],
        statistics=[],
        histograms=[],
        recommended_sequence_length=128,
        length_choices=[],
        rejected_samples=[],
        template="base",
        seconds=1,
        shards=1,
    )


def test_a_status_names_the_twelve_most_frequent_reasons_and_counts_all() -> None:
    status = describe_data(make_data({f"reason-{n}": n for n in range(1, 21)}), "/data")
    assert status.rejected == sum(range(1, 21)) and status.read == status.kept + status.rejected
    assert list(status.reasons) == [f"reason-{n}" for n in range(20, 8, -1)]
    assert (status.train_examples, status.evaluation_examples, status.tokens) == (6, 6, 70)


def test_figures_are_text_and_a_long_reason_is_cut() -> None:
    samples = [
        Sample(prompt_set="p", prompt="?", base=answer, tuned=answer)
        for answer in (Answer(text="", finished=True, tokens=1), Answer(text="", finished=False, tokens=1))
    ]
    pair = PerplexityPair(base=12.3456789, tuned=None)
    result = EvaluationResult(
        records=2, target_tokens=9, perplexity=pair, token_perplexity=pair, samples=samples, seconds=1
    )
    status = describe_evaluation(result, GateResult(passed=False, reason="x" * 2000), "/evaluation")
    assert (status.base_token_perplexity, status.tuned_token_perplexity) == ("12.3457", None)
    assert (status.answers, status.unfinished_answers, status.passed) == (2, 1, False)
    assert len(status.reason) == MAX_MESSAGE


def test_what_is_not_there_has_no_parts_and_no_bins(tmp_path: Path) -> None:
    assert list_parts(tmp_path / "nowhere") == []
    assert read_micro_batch(tmp_path / "config.json") == 0
    (tmp_path / "config.json").write_text('{"microBatchTokens": 256}')
    assert read_micro_batch(tmp_path / "config.json") == 256
