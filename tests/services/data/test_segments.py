"""How a manifest's steps become segments, what a control's threshold means for each, and which files steps name."""

from typing import Any

import pytest
from pydantic import ValidationError

from llamero.data.segments import find_choice, find_named, place_files, rename_files, split_steps, with_threshold
from llamero.pods.inputs import place_job
from llamero.spec.job import FineTuneJob
from llamero.spec.profiles import PlannedStep, plan_steps
from llamero.spec.steps import DataStep

MODEL = {"url": "https://models.example/v1", "model": "m"}


def plan(*steps: dict[str, Any]) -> list[PlannedStep]:
    return plan_steps([DataStep.model_validate(step) for step in steps])


@pytest.mark.parametrize(
    "steps, leading, segments",
    [
        ([], [], []),
        ([{"quality": {}}, {"repetition": {}}], ["quality", "repetition"], []),
        ([{"nearDuplicates": {}}, {"quality": {}}], [], [["nearDuplicates"], ["quality"]]),
        (
            [{"quality": {}}, {"judge": {"models": [MODEL]}}, {"length": {}}, {"random": {}}, {"random": {}}],
            ["quality"],
            [["judge"], ["threshold"], ["length"], ["random"], ["random"]],
        ),
        (
            [{"rewrite": {"model": MODEL}}, {"length": {}}, {"score": {"indicators": ["ifd"]}}, {"rank": {}}],
            [],
            [["rewrite", "length", "score"], ["rank"]],
        ),
        ([{"use": "instruction"}], ["quality", "repetition"], [["nearDuplicates"], ["decontaminate"]]),
    ],
)
def test_cheap_record_steps_at_the_start_are_done_with_cleaning_and_the_rest_in_their_order(steps, leading, segments):
    first, rest = split_steps(plan(*steps))
    assert [step.kind for step in first] == leading
    assert [[step.kind for step in segment.steps] for segment in rest] == segments


def test_the_last_choosing_step_is_what_controls_are_about():
    _, segments = split_steps(
        plan({"threshold": {"score": "judge"}}, {"kCenter": {}}, {"nearDuplicates": {}}, {"length": {}})
    )
    assert find_choice(segments) == 1
    assert find_choice(split_steps(plan({"nearDuplicates": {}}))[1]) is None


@pytest.mark.parametrize(
    "step, threshold, field, value",
    [
        ({"threshold": {"score": "judge", "min": 4.5}}, 4, "min", 4),
        ({"threshold": {"score": "perplexity", "max": 30}}, 20, "max", 20),
        ({"diversity": {}}, 0.8, "max_similarity", 0.8),
        ({"kCenter": {}}, 0.1, "fraction", 0.1),
        ({"kCenter": {"records": 9}}, 0.1, "records", None),
        ({"rank": {}}, 50, "records", 50),
        ({"rank": {}}, 50, "fraction", None),
        ({"mining": {"coefficients": {"answerWords": 1}}}, 0.3, "fraction", 0.3),
        ({"random": {"records": 10}}, 30, "records", 30),
        ({"sample": {}}, 200, "records", 200),
    ],
)
def test_a_threshold_of_the_controls_is_what_the_step_chooses_by(step, threshold, field, value):
    (planned,) = plan(step)
    other = with_threshold(planned, threshold)
    assert getattr(other.options, field) == value
    assert (other.kind, other.number, other.place) == (planned.kind, planned.number, planned.place)


def test_a_threshold_out_of_bounds_is_refused():
    with pytest.raises(ValidationError):
        with_threshold(plan({"diversity": {}})[0], 1.5)


def test_files_that_steps_name_are_found_and_put_elsewhere_and_models_are_left_alone():
    steps = plan(
        {"content": {"wordsUri": "words.txt"}},
        {"decontaminate": {"against": [{"uri": "eval.jsonl"}, {"uri": "s3://b/more.csv"}]}},
        {"kCenter": {"embedding": {"kind": "local", "uri": "model"}}},
        {"judge": {"models": [MODEL], "minScore": None}},
    )
    assert [list(find_named(step)) for step in steps] == [
        ["words.txt"],
        ["eval.jsonl", "s3://b/more.csv"],
        ["model"],
        [],
    ]
    moved = rename_files(steps[1], {"s3://b/more.csv": "/here/more.csv"})
    assert list(find_named(moved)) == ["eval.jsonl", "/here/more.csv"]
    assert [s.kind for s in place_files([DataStep(use="lima")], lambda uri: uri)] == ["use"]


def test_on_a_cluster_relative_files_lie_below_the_storage_s_root():
    job = FineTuneJob.model_validate(
        {
            "apiVersion": "llamero.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": "a"},
            "spec": {
                "baseModel": {"uri": "base"},
                "data": {
                    "sources": [{"uri": "x.json", "format": "alpaca"}],
                    "steps": [{"content": {"wordsUri": "words.txt"}}, {"judge": {"models": [MODEL]}}],
                },
            },
        }
    )
    steps = place_job(job, "s3://bucket/root").spec.data.steps
    assert steps[0].options.words_uri == "s3://bucket/root/words.txt"
    assert steps[1].options.models[0].url == MODEL["url"]
