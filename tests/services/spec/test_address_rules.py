"""Addresses in a manifest: told before anything is fetched."""

from typing import Any

import pytest

from llamero.spec.validation import validate_job


def problems(
    base: str = "/base",
    steps: list[Any] | None = None,
    prompts: str = "/p.jsonl",
    source: str = "/a.jsonl",
    **data: Any,
) -> list[str]:
    job = {
        "apiVersion": "llamero.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "job"},
        "spec": {
            "baseModel": {"uri": base},
            "data": {"sources": [{"uri": source, "format": "alpaca"}], "steps": steps or [], **data},
            "evaluation": {"promptSets": [{"name": "own", "uri": prompts}]},
        },
    }
    return [".".join(map(str, p.path)) + ": " + p.message for p in validate_job(job)[1]]


HTTP = "http://files.test/a.jsonl"


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"source": HTTP}, "spec.data.sources.0.uri"),
        ({"prompts": HTTP}, "spec.evaluation.promptSets.0.uri"),
        ({"steps": [{"content": {"wordsUri": HTTP}}]}, "spec.data.steps.0.content.wordsUri"),
        ({"steps": [{"decontaminate": {"against": [{"uri": HTTP}]}}]}, "spec.data.steps.0.decontaminate.against.0.uri"),
    ],
)
def test_http_is_told_where_it_stands_unless_it_is_allowed(given: dict[str, Any], place: str) -> None:
    assert problems(**given) == [
        f"{place}: http is not encrypted: use https, or set `data.allowHttp` for a server of your own"
    ]
    assert problems(**given, allowHttp=True) == []


def test_a_base_model_is_never_fetched_by_http() -> None:
    assert problems(base="http://files.test/base", allowHttp=True) == [
        "spec.baseModel.uri: http is not encrypted: use https"
    ]


@pytest.mark.parametrize(
    "uri", ["https://me:pw@files.test/a.jsonl", "https://token@files.test/a.jsonl", "HTTPS://a@b/c"]
)
def test_credentials_in_an_address_are_told_and_not_repeated(uri: str) -> None:
    [told] = problems(source=uri)
    assert "must not hold a name or password" in told and "pw" not in told and "token@" not in told


@pytest.mark.parametrize(
    "uri", ["https://files.test/a@b.jsonl", "s3://bucket/a.jsonl", "hf://datasets/a/b.jsonl", "/a.jsonl"]
)
def test_other_addresses_are_fine(uri: str) -> None:
    assert problems(source=uri) == []


def test_what_is_no_address_is_told() -> None:
    assert "this is no address" in problems(source="https://[::1/a")[0]
