"""Choosing steps as the pipeline runs them: both sides of each threshold, and the same choice however the records are cut and tasks are done."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from services.data.set_runner import Outcome, SetRunner, make_record

from llamero.data.choosing import parts
from llamero.data.errors import DataError
from llamero.data.steps import diversity, k_center, mining, random_part, rank, sample, threshold
from llamero.data.steps.record import Record
from llamero.data.steps.view import SetStep
from llamero.spec.profiles import PROFILES
from llamero.spec.steps import (
    DiversityStep,
    KCenterStep,
    MiningStep,
    RandomStep,
    RankStep,
    SampleStep,
    ThresholdStep,
)

SUBJECTS = ["weather", "cooking", "chess", "music", "law", "rivers", "metals", "birds"]
EMBEDDING = {"dimensions": 16}


def write_text(subject: str, number: int) -> str:
    """A text of some thirty words that shares words with texts of its subject and with no other."""
    rng = np.random.default_rng([sum(map(ord, subject)), number])
    return " ".join(f"{subject}{w}" for w in rng.integers(0, 25, 30))


def write_records(count: int, subjects: Sequence[str] = SUBJECTS, **rest: object) -> list[Record]:
    return [
        make_record(i, f"Question {i}", write_text(subjects[i % len(subjects)], i), **rest)  # type: ignore[arg-type]
        for i in range(count)
    ]


def score_records(values: Sequence[float | None], name: str = "judge") -> list[Record]:
    return [
        make_record(i, f"Prompt {i}", f"Answer {i}", scores={} if v is None else {name: v})
        for i, v in enumerate(values)
    ]


LARGE = write_records(60, scores={"quality": 1.0, "complexity": 1.0})

STEPS: dict[str, SetStep] = {
    "random": random_part.build(RandomStep(records=17)),
    "k-center": k_center.build(KCenterStep.model_validate({"records": 12, "clusters": 4, "embedding": EMBEDDING})),
    "ward": k_center.build(
        KCenterStep.model_validate(
            {"records": 12, "clusters": 4, "clustering": "agglomerative", "embedding": EMBEDDING}
        )
    ),
    "diversity": diversity.build(DiversityStep.model_validate({"maxSimilarity": 0.6, "embedding": EMBEDDING})),
    "rank": rank.build(
        RankStep.model_validate(
            {"weights": {"rarity": 1, "neighbourDistance": 1, "answerWords": 1}, "clusters": 5, "embedding": EMBEDDING}
        )
    ),
    "mining": mining.build(
        MiningStep.model_validate({"coefficients": {"neighbourDistance": -1, "rarity": 0.5}, "embedding": EMBEDDING})
    ),
    "sample": sample.build(SampleStep(records=9, group_by="source")),
    "threshold": threshold.build(ThresholdStep(score="answerCharacters", min=250)),
}


@pytest.mark.parametrize("name", STEPS)
def test_neither_shards_nor_the_tasks_order_nor_doubled_tasks_change_what_is_kept(name: str, tmp_path: Path) -> None:
    step = STEPS[name]
    whole = SetRunner(tmp_path / "a").run(step, LARGE, shards=1)
    cut = SetRunner(tmp_path / "b", order="shuffled", doubled=True).run(step, LARGE, shards=7, workers=3)
    assert 0 < len(whole.kept) < len(LARGE)
    assert cut.kept_lines == whole.kept_lines
    assert cut.dropped_lines == whole.dropped_lines
    shown = {r.line: (d.value, d.threshold) for r, d in whole.dropped}
    assert {r.line: (d.value, d.threshold) for r, d in cut.dropped} == shown


@pytest.mark.parametrize("name", STEPS)
def test_held_out_records_are_left_alone(name: str, tmp_path: Path) -> None:
    runner = SetRunner(tmp_path)
    free = runner.run(random_part.build(RandomStep(records=1)), LARGE, evaluation_fraction=0.3)
    held_out = {r.line for r in free.kept} - {free.kept[0].line} if len(free.kept) == 1 else {r.line for r in free.kept}
    assert len(held_out) > 5
    outcome = runner.run(STEPS[name], LARGE, shards=3, evaluation_fraction=0.3)
    # One training record stays beside the held-out ones in the first run; which one is not known from outside.
    assert len(held_out - {r.line for r in outcome.kept}) <= 1


@pytest.mark.parametrize("name", STEPS)
def test_no_record_and_one_record_are_no_trouble(name: str, tmp_path: Path) -> None:
    runner = SetRunner(tmp_path)
    assert runner.run(STEPS[name], [], shards=2).kept == []
    one = runner.run(STEPS[name], LARGE[:1], shards=2)
    assert len(one.kept) + len(one.dropped) == 1


# -- threshold -------------------------------------------------------------------------------------------------------------------


def test_a_score_on_the_bounds_stays_and_one_beyond_goes_with_its_reason(tmp_path: Path) -> None:
    step = threshold.build(ThresholdStep(score="judge", min=2.0, max=4.5))
    outcome = SetRunner(tmp_path).run(step, score_records([1.9999, 2.0, 3.0, 4.5, 4.5001, None]))
    assert outcome.kept_lines == [2, 3, 4]
    assert outcome.dropped_lines == {1: "min", 5: "max", 6: "unscored"}
    drop = outcome.dropped[0][1]
    assert (drop.value, drop.threshold) == (1.9999, 2.0)


def test_a_score_that_no_record_has_stops_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No training record has the score `judge`.*put a step before it"):
        SetRunner(tmp_path).run(threshold.build(ThresholdStep(score="judge", min=1)), score_records([None, None]))


# -- random ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "kept"), [({"records": 7}, 7), ({"fraction": 0.25}, 15), ({"records": 99}, 60)])
def test_exactly_so_many_are_drawn(options: dict[str, float], kept: int, tmp_path: Path) -> None:
    step = random_part.build(RandomStep.model_validate(options))
    assert len(SetRunner(tmp_path).run(step, LARGE, shards=4).kept) == kept


def test_another_seed_draws_others_and_a_larger_draw_holds_the_smaller(tmp_path: Path) -> None:
    runner = SetRunner(tmp_path)
    few = runner.run(random_part.build(RandomStep(records=10)), LARGE, seed=1)
    more = runner.run(random_part.build(RandomStep(records=25)), LARGE, seed=1)
    other = runner.run(random_part.build(RandomStep(records=10)), LARGE, seed=2)
    assert set(few.kept_lines) < set(more.kept_lines)
    assert few.kept_lines != other.kept_lines


def test_a_random_part_of_unknown_size_is_refused() -> None:
    with pytest.raises(DataError, match="say how many in `records`"):
        random_part.build(RandomStep())


# -- sample ----------------------------------------------------------------------------------------------------------------------


def write_posts(tags: dict[str, int]) -> list[Record]:
    """Posts by tag, scored 1, 2, … within each, answers with 10 votes; each also has the tag that all share."""
    names = [name for name, count in tags.items() for _ in range(count)]
    numbers = [n for count in tags.values() for n in range(1, count + 1)]
    return [
        make_record(
            i,
            f"How do I {name} {n}?",
            f"Like this: {name} {n}",
            tags=("help", name),
            scores={"questionScore": float(n), "sourceScore": 10.0},
        )
        for i, (name, n) in enumerate(zip(names, numbers, strict=True))
    ]


def count_tags(outcome: Outcome) -> Counter[str]:
    return Counter(record.tags[1] for record in outcome.kept)


def test_a_higher_temperature_evens_out_the_groups(tmp_path: Path) -> None:
    posts = write_posts({"python": 512, "sql": 64, "cobol": 8})
    runner = SetRunner(tmp_path)
    even = {t: count_tags(runner.run(sample.build(SampleStep(records=73, temperature=t)), posts)) for t in (1, 3, 100)}
    assert even[1] == {"python": 64, "sql": 8, "cobol": 1}
    # Shares to the power 1/3 are as 8 : 4 : 2, but there are only 8 posts on cobol: the others share what it can't take.
    assert even[3] == {"python": 43, "sql": 22, "cobol": 8}
    assert even[100]["sql"] == pytest.approx(even[100]["python"], abs=2)


def test_of_a_group_the_best_scored_come_first_and_a_record_counts_to_its_rarest_tag(tmp_path: Path) -> None:
    posts = write_posts({"python": 30, "sql": 6})
    outcome = SetRunner(tmp_path).run(sample.build(SampleStep(records=8, temperature=100)), posts, shards=5)
    best = {(r.tags[1], r.scores["questionScore"]) for r in outcome.kept}
    assert best == {("python", n) for n in (27, 28, 29, 30)} | {("sql", n) for n in (3, 4, 5, 6)}
    assert set(outcome.dropped_lines.values()) == {"records"}


def test_answers_below_the_least_score_are_dropped_at_it_kept_and_without_one_not_judged(tmp_path: Path) -> None:
    scores: list[dict[str, float]] = [{"sourceScore": 9.0}, {"sourceScore": 10.0}, {}]
    records = [make_record(i, f"How {i}?", f"So {i}.", scores=s) for i, s in enumerate(scores)]
    outcome = SetRunner(tmp_path).run(sample.build(SampleStep(records=3)), records)
    assert outcome.kept_lines == [2, 3]
    ((_, drop),) = outcome.dropped
    assert (drop.rule, drop.value, drop.threshold) == ("minAnswerScore", 9.0, 10.0)


def test_groups_can_be_sources(tmp_path: Path) -> None:
    records = [make_record(i, f"Do {i}", f"Done {i}", source="large" if i < 90 else "small") for i in range(100)]
    step = sample.build(SampleStep(records=20, group_by="source", temperature=100))
    outcome = SetRunner(tmp_path).run(step, records, shards=3)
    assert Counter(r.source for r in outcome.kept) == {"large": 10, "small": 10}


# -- k-center --------------------------------------------------------------------------------------------------------------------


def find_subject(record: Record) -> str:
    return record.answer.split()[0].rstrip("0123456789")


def test_rare_subjects_are_covered_where_a_random_part_misses_them(tmp_path: Path) -> None:
    records = write_records(200, ["weather"]) + [
        make_record(200 + i, f"Question on {s}", write_text(s, i)) for i, s in enumerate(3 * SUBJECTS[1:])
    ]
    runner = SetRunner(tmp_path)
    step = k_center.build(KCenterStep.model_validate({"records": 24, "clusters": 4, "embedding": EMBEDDING}))
    outcome = runner.run(step, records, shards=4)
    assert len(outcome.kept) == 24
    assert {find_subject(r) for r in outcome.kept} == set(SUBJECTS)
    drawn = runner.run(random_part.build(RandomStep(records=24)), records)
    assert len({find_subject(r) for r in drawn.kept}) < 6
    assert all(d.rule == "records" and d.value <= d.threshold + 1e-3 and d.other for d in outcome.drops.values())  # type: ignore[operator]


def test_the_fraction_is_of_the_training_records(tmp_path: Path) -> None:
    step = k_center.build(KCenterStep.model_validate({"fraction": 0.1, "embedding": EMBEDDING}))
    outcome = SetRunner(tmp_path).run(step, LARGE, shards=2)
    assert len(outcome.kept) == 6
    assert set(outcome.dropped_lines.values()) == {"fraction"}


@pytest.mark.parametrize("name", ["k-center", "diversity", "mining"])
def test_a_set_too_large_for_one_task_is_parted_whatever_its_shards(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SetRunner(tmp_path / "whole").run(STEPS[name], LARGE)
    monkeypatch.setattr(parts, "MOST_BYTES", 4 * 16 * 59)  # of 60 records: parts of 8 in the mean
    few = SetRunner(tmp_path / "few").run(STEPS[name], LARGE, shards=2)
    many = SetRunner(tmp_path / "many", order="reversed", doubled=True).run(STEPS[name], LARGE, shards=9)
    assert few.kept_lines == many.kept_lines
    assert "parting vectors" in [activity for activity, _ in few.rounds]
    if name == "k-center":
        assert len(few.kept) == len(whole.kept)
        assert {find_subject(r) for r in few.kept} == set(SUBJECTS)
    else:
        assert abs(len(few.kept) - len(whole.kept)) <= 3


# -- diversity -------------------------------------------------------------------------------------------------------------------


def test_of_nearly_equal_records_exactly_the_best_is_kept_and_the_others_name_it(tmp_path: Path) -> None:
    records = write_records(24)
    copies = [make_record(24 + i, f"Question {i % 24}", records[i % 24].answer + " again") for i in range(48)]
    scored = [
        Record.from_dict({**r.to_dict(), "scores": {"quality": 1 + i // 24, "complexity": 2}})
        for i, r in enumerate(records + copies)
    ]
    outcome = SetRunner(tmp_path).run(
        diversity.build(DiversityStep.model_validate({"embedding": {}})), scored, shards=5
    )
    assert outcome.kept_lines == list(range(49, 73))  # the last round of copies has the best scores
    assert all(drop.value > 0.9 == drop.threshold for drop in outcome.drops.values())  # type: ignore[operator]
    lines = {(s, r.row): r.line for s, part in enumerate(_cut(scored, 5)) for r in part}
    assert {(line - 1) % 24 for line in (lines[d.other] for d in outcome.drops.values() if d.other)} == set(range(24))


def _cut(records: list[Record], shards: int) -> list[list[Record]]:
    ends = [len(records) * i // shards for i in range(shards + 1)]
    return [
        [Record.from_dict({**r.to_dict(), "row": n}) for n, r in enumerate(records[a:b])] for a, b in pairwise(ends)
    ]


def test_the_product_of_scores_decides_who_is_best_and_so_many_are_kept(tmp_path: Path) -> None:
    scores = [(1.0, 6.0), (4.0, 2.0), (3.0, 3.0), (5.0, 1.0)]
    records = [
        make_record(i, f"Question {i}", write_text(SUBJECTS[i], i), scores={"quality": q, "complexity": c})
        for i, (q, c) in enumerate(scores)
    ] + [make_record(4, "Unscored", write_text("birds", 4), scores={"quality": 6.0})]
    outcome = SetRunner(tmp_path).run(diversity.build(DiversityStep(records=2)), records, shards=2)
    assert outcome.kept_lines == [2, 3]  # 8 and 9; 6 and 5 come too late
    assert outcome.dropped_lines == {1: "records", 4: "records", 5: "unscored"}


# -- rank and mining -------------------------------------------------------------------------------------------------------------


def test_the_best_of_each_cluster_are_kept(tmp_path: Path) -> None:
    records = [
        make_record(i, f"Question {i}", write_text(SUBJECTS[i % 4], i), scores={"judge": float(i // 4)})
        for i in range(80)
    ]
    step = rank.build(
        RankStep.model_validate({"weights": {"judge": 1}, "fraction": 0.2, "clusters": 4, "embedding": EMBEDDING})
    )
    outcome = SetRunner(tmp_path).run(step, records, shards=3)
    assert Counter(find_subject(r) for r in outcome.kept) == dict.fromkeys(SUBJECTS[:4], 4)
    # Above the 95th percentile all are equally good: of the best ones content decides, none below 15 of 0 to 19 is kept.
    assert min(r.scores["judge"] for r in outcome.kept) >= 15


def test_weights_say_how_much_an_indicator_counts_and_outliers_do_not_stretch_the_scale() -> None:
    values = np.array([*range(101), 1e9, np.nan])
    scaled = rank.scale(values)
    low, high = np.percentile(values[:-1], [5, 95])
    assert scaled[0] == 0 and scaled[101] == 1 and np.isnan(scaled[102])
    assert scaled[50] == pytest.approx((50 - low) / (high - low))
    assert rank.scale(np.array([2.0, 2.0, np.nan]))[:2].tolist() == [0, 0]


def test_the_lowest_sums_are_kept_and_the_cut_is_told(tmp_path: Path) -> None:
    records = [
        make_record(i, f"Prompt {i}", f"Answer {i}", scores={"judge": j, "perplexity": p})
        for i, (j, p) in enumerate([(5.0, 1.0), (1.0, 1.0), (3.0, 9.0), (4.0, 2.0)])
    ] + score_records([None])
    step = mining.build(
        MiningStep.model_validate({"coefficients": {"judge": -1, "perplexity": 0.5}, "intercept": 1, "records": 2})
    )
    outcome = SetRunner(tmp_path).run(step, records, shards=2)
    assert outcome.kept_lines == [1, 4]  # -3.5 and -2
    sums = {r.line: (d.rule, d.value, d.threshold) for r, d in outcome.dropped if d.rule != "unscored"}
    assert sums == {2: ("records", 0.5, -2.0), 3: ("records", 2.5, -2.0)}
    assert Counter(d.rule for d in outcome.drops.values())["unscored"] == 1


def test_a_record_far_from_its_neighbours_ranks_first_by_the_published_profile(tmp_path: Path) -> None:
    crowd = [make_record(i, f"Question {i}", write_text("weather", i % 5)) for i in range(30)]
    alone = [make_record(30 + i, f"Question on {s}", write_text(s, i)) for i, s in enumerate(SUBJECTS[1:4])]
    options = {**PROFILES["instruction-mining"][0]["mining"], "fraction": None, "records": 3}
    outcome = SetRunner(tmp_path).run(mining.build(MiningStep.model_validate(options)), crowd + alone, shards=3)
    assert [find_subject(r) for r in outcome.kept] == SUBJECTS[1:4]


def test_only_the_listed_sources_are_chosen_among(tmp_path: Path) -> None:
    records = [make_record(i, f"Question {i}", f"Answer {i}", source="ab"[i % 2]) for i in range(40)]
    outcome = SetRunner(tmp_path).run(random_part.build(RandomStep(records=5)), records, shards=3, sources=["b"])
    assert Counter(r.source for r in outcome.kept) == {"a": 20, "b": 5}
