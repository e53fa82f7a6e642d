"""An Asker over a real server that misbehaves: what is tried again, what concerns one question, what ends the step, what nobody may read."""

import logging
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from services.data.model_server import ModelServer

from llamero.data.asking.addresses import check_url
from llamero.data.asking.answers import parse_score
from llamero.data.asking.asker import Asker, Stopped
from llamero.data.asking.questions import Answer, Question, Unanswered
from llamero.data.errors import DataError
from llamero.spec.records import Message
from llamero.spec.steps import LanguageModel

from .asking import read_texts, say
from .conftest import MakeAsker

TRANSIENT = [
    *("408", "409", "425", "429", "429:0.1", "500", "502", "503:0.1", "504", "529"),
    *("cut", "cut:reset", "drop", "nonsense", "html", "list", "empty", "truncated", "empty-choices", "null-content"),
    *("endless",),
]


# -- tried again ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", TRANSIENT)
def test_trouble_that_passes_is_waited_out(server: ModelServer, make_asker: MakeAsker, trouble: str) -> None:
    server.misbehave(trouble, trouble)
    with make_asker() as asker:
        assert read_texts(asker.ask(say("a", "b", "c"))) == ["echo a", "echo b", "echo c"]
        assert (asker.account.requests, asker.account.retries, asker.account.answered) == (5, 2, 3)


def test_a_hanging_endpoint_is_left_and_asked_again(server: ModelServer, make_asker: MakeAsker) -> None:
    server.misbehave("hang", "hang")
    with make_asker(timeout_seconds=0.3) as asker:
        assert read_texts(asker.ask(say("a", "b"))) == ["echo a", "echo b"]
        assert asker.account.retries == 2


@pytest.mark.parametrize(("trouble", "least"), [("429:0.5", 0.5), ("503:date:2", 0.9)])
def test_retry_after_is_kept_to_by_all_requests(
    server: ModelServer, make_asker: MakeAsker, trouble: str, least: float
) -> None:
    server.misbehave(trouble)
    server.latency = 0.05
    with make_asker(concurrency=2) as asker:
        read_texts(asker.ask(say(*range(6))))
    refused, *later = [seen.at for seen in server.requests]
    # One was under way when the refusal came; all others wait.
    assert sorted(later)[1] - refused >= least


def test_who_waits_for_an_endpoint_can_be_stopped(server: ModelServer, make_asker: MakeAsker) -> None:
    server.trouble = lambda body: "429:200"
    with make_asker(retries=3) as asker:
        stopping = threading.Timer(0.2, asker.stop)
        stopping.start()
        started = time.monotonic()
        with pytest.raises(Stopped, match="judge: asking `m` was stopped"):
            asker.ask(say(*range(50)))
        assert time.monotonic() - started < 60  # not the 200 seconds that were asked for
        stopping.join()
    assert len(server.requests) <= 4


def test_an_unreadable_answer_counts_as_spent(server: ModelServer, make_asker: MakeAsker) -> None:
    server.misbehave("truncated")
    with make_asker() as asker:
        asker.ask(say("x" * 400))
        assert (
            asker.account.input_tokens == 104 + 1
        )  # a quarter of the characters and a turn's marks; then what the server reported


# -- one question ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        ("400", "HTTP 400, some_error"),
        ("413", "HTTP 413"),
        ("422", "HTTP 422"),
        ("content-filter", "content filter"),
        ("length", "cut off at maxTokens (1024): raise it"),
    ],
)
def test_what_is_refused_concerns_that_question_alone(
    server: ModelServer, make_asker: MakeAsker, trouble: str, why: str
) -> None:
    server.trouble = lambda body: trouble if "bad" in body["messages"][-1]["content"] else None
    with make_asker() as asker:
        first, second, third = asker.ask(say("one", "bad", "three"))
        assert isinstance(second, Unanswered) and why in second.reason
        assert read_texts([first, third]) == ["echo one", "echo three"]
        assert (asker.account.asked, asker.account.unanswered, asker.account.requests) == (3, 1, 3)


def test_an_answer_that_was_cut_off_is_given_to_those_who_can_use_it(
    server: ModelServer, make_asker: MakeAsker
) -> None:
    server.misbehave("length")
    for is_cached in (False, True):
        with make_asker() as asker:
            (answer,) = asker.ask(say("a"), allow_cut=True)
        assert isinstance(answer, Answer)
        assert (answer.text, answer.is_cut, answer.is_cached) == ("echo a", True, is_cached)


@pytest.mark.parametrize("trouble", ["500", "drop", "nonsense"])
def test_a_question_that_the_endpoint_can_not_bear_does_not_end_the_step(
    server: ModelServer, make_asker: MakeAsker, trouble: str
) -> None:
    server.trouble = lambda body: trouble if "poison" in body["messages"][-1]["content"] else None
    with make_asker(retries=2) as asker:
        (alone,) = asker.ask(say("poison"))  # nothing else shows that the endpoint is well: it is asked
        assert isinstance(alone, Unanswered) and "3 times of 3" in alone.reason
        assert server.prompts == ["poison"] * 3 + ["Say yes."]
        outcomes = asker.ask(say(1, 2, "poison two", 4))
        assert [isinstance(o, Unanswered) for o in outcomes] == [False, False, True, False]


def test_an_answer_that_can_not_be_parsed_is_asked_for_again(server: ModelServer, make_asker: MakeAsker) -> None:
    texts = iter(["well…", '{"score": 9, "reason": ""}', '{"score": 4, "reason": "good"}'])
    server.answer = lambda body: next(texts)
    parse: Callable[[str], tuple[float, str]] = lambda text: parse_score(text, 5)  # noqa: E731
    with make_asker() as asker:
        assert asker.ask(say("a"), parse) == [(4.0, "good")]
    assert [seen.body["temperature"] for seen in server.requests] == pytest.approx([0.0, 0.3, 0.6])
    with make_asker() as asker:
        assert asker.ask(say("a"), parse) == [(4.0, "good")]
        assert (asker.account.requests, asker.account.cached) == (0, 3)


def test_after_the_last_try_an_unparseable_answer_is_none(server: ModelServer, make_asker: MakeAsker) -> None:
    server.answer = lambda body: "seven"
    with make_asker() as asker:
        (outcome,) = asker.ask(say("a"), lambda text: parse_score(text, 5), tries=2)
    assert outcome == Unanswered("no usable answer in 2 tries: the answer is not one JSON object")
    assert len(server.requests) == 2


def test_equal_questions_are_asked_once_and_samples_are_not_equal(server: ModelServer, make_asker: MakeAsker) -> None:
    one = Question((Message("user", "a"),))
    with make_asker() as asker:
        outcomes = asker.ask([one, Question(one.messages, sample=1), one, Question(one.messages, sample=1)])
    assert read_texts(outcomes) == ["echo a"] * 4
    assert len(server.requests) == 2


def test_wrong_or_missing_usage_is_estimated_and_said(server: ModelServer, make_asker: MakeAsker) -> None:
    server.misbehave("wrong-usage", "no-usage")
    with make_asker(concurrency=1) as asker:
        first, second = asker.ask(say("a" * 40, "b" * 40))
        assert isinstance(first, Answer) and isinstance(second, Answer)
        assert (first.input_tokens, first.output_tokens) == (14, 12)
        assert (second.input_tokens, second.output_tokens) == (14, 12)
        assert asker.account.estimated == 2


def test_the_request_is_what_the_manifest_says(server: ModelServer, make_asker: MakeAsker) -> None:
    turns = (Message("system", "Be brief."), Message("user", "Hello"))
    with make_asker(model="org/name", temperature=0.5, max_tokens=77) as asker:
        asker.ask([Question(turns)])
    (seen,) = server.requests
    assert seen.path == "/v1/chat/completions" and seen.authorization is None
    assert seen.body == {
        "model": "org/name",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        "temperature": 0.5,
        "max_tokens": 77,
    }


def test_an_endpoint_that_wants_a_parameter_otherwise_gets_it_so(server: ModelServer, make_asker: MakeAsker) -> None:
    def want(body: dict[str, Any]) -> str | None:
        return next((f"unsupported:{name}" for name in ("max_tokens", "temperature") if name in body), None)

    server.trouble = want
    with make_asker(max_tokens=9, concurrency=3) as asker:
        assert len(read_texts(asker.ask(say(*range(9))))) == 9
        assert asker.account.unanswered == 0
    last = server.requests[-1].body
    assert last["max_completion_tokens"] == 9 and not {"max_tokens", "temperature"} & set(last)
    assert len(server.requests) <= 9 + 2 * 3


# -- the end of the step -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("401", ["HTTP 401", "it wants a key", "secretRef"]),
        ("403", ["HTTP 403", "secretRef"]),
        ("404", ["HTTP 404", "no such model", "Mend `model` or `url`"]),
        ("402", ["HTTP 402", "quota is spent", "top it up"]),
        ("quota", ["insufficient_quota", "quota is spent"]),
        ("405", ["HTTP 405", "Mend `url`"]),
        ("302", ["HTTP 302", "redirects elsewhere", "final address"]),
    ],
)
def test_what_no_retry_mends_ends_the_step_with_what_to_do(
    server: ModelServer, make_asker: MakeAsker, trouble: str, said: list[str]
) -> None:
    server.trouble = lambda body: trouble
    with make_asker() as asker, pytest.raises(DataError) as caught:
        asker.ask(say(*range(10)))
    assert f"The endpoint {server.url} (model `m`)" in str(caught.value)
    for part in said:
        assert part in str(caught.value)
    assert len(server.requests) <= 4


@pytest.mark.parametrize("trouble", ["500", "429:0", "cut", "html"])
def test_an_endpoint_that_is_down_ends_the_step_and_keeps_what_was_answered(
    server: ModelServer, make_asker: MakeAsker, trouble: str
) -> None:
    with make_asker(retries=2) as asker:
        asker.ask(say("early"))
        server.trouble = lambda body: trouble
        with pytest.raises(DataError, match="see that it is up"):
            asker.ask(say("early", "late", "later"))
    server.trouble = lambda body: None
    with make_asker() as asker:
        read_texts(asker.ask(say("early")))
        assert asker.account.cached == 1


def test_nobody_listening_is_an_endpoint_that_is_down(server: ModelServer, make_asker: MakeAsker) -> None:
    with make_asker(url="http://127.0.0.1:9/v1", retries=1) as asker:
        with pytest.raises(DataError, match=r"broke the connection \(ClientConnectorError\)"):
            asker.ask(say("a"))
        assert asker.account.retries == 1


def test_refusals_from_the_start_are_the_manifests_fault(server: ModelServer, make_asker: MakeAsker) -> None:
    server.trouble = lambda body: "400"
    with make_asker() as asker, pytest.raises(DataError, match="refused the first 20 questions and answered none"):
        asker.ask(say(*range(100)))
    assert len(server.requests) <= 24


def test_a_wrong_key_is_told_by_the_name_of_its_variable(
    server: ModelServer, make_asker: MakeAsker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "right"
    reference = {"name": "judge-key", "key": "JUDGE_TOKEN"}
    monkeypatch.delenv("JUDGE_TOKEN", raising=False)
    with pytest.raises(DataError, match="set the environment variable JUDGE_TOKEN"), make_asker(secret_ref=reference):
        pass
    monkeypatch.setenv("JUDGE_TOKEN", "wrong-secret")
    with make_asker(secret_ref=reference) as asker, pytest.raises(DataError) as caught:
        asker.ask(say("a"))
    assert "JUDGE_TOKEN" in str(caught.value) and "wrong-secret" not in str(caught.value)
    monkeypatch.setenv("JUDGE_TOKEN", "right\n")  # as `kubectl create secret --from-file` leaves it
    with make_asker(secret_ref=reference) as asker:
        assert read_texts(asker.ask(say("a"))) == ["echo a"]
    assert server.requests[-1].authorization == "Bearer right"
    monkeypatch.setenv("JUDGE_TOKEN", "two\nlines")
    with pytest.raises(DataError, match="no HTTP header may"), make_asker(secret_ref=reference):
        pass


@pytest.mark.parametrize(
    ("url", "allow_http", "problem"),
    [
        ("https://host/v1", False, None),
        ("https://10.1.2.3:8443/v1", False, None),
        ("http://127.0.0.1:8000/v1", False, None),
        ("http://localhost/v1", False, None),
        ("http://[::1]:80/v1", False, None),
        ("http://models.team-a.svc/v1", True, None),
        ("http://models.team-a.svc/v1", False, "not encrypted"),
        ("http://localhost.example.com/v1", False, "not encrypted"),
        ("https://key@host/v1", False, "name or password"),
        ("https://user:key@host/v1", False, "name or password"),
        ("ftp://host/v1", True, "no http"),
        ("host/v1", True, "no http"),
        ("https:///v1", True, "no http"),
        ("https://host:99999/v1", True, "no readable port"),
        ("http://169.254.169.254/v1", True, "metadata service"),
        ("https://[fe80::1]/v1", True, "metadata service"),
        ("https://[::ffff:169.254.169.254]/v1", True, "metadata service"),
    ],
)
def test_where_an_endpoint_may_be(url: str, allow_http: bool, problem: str | None) -> None:
    if problem is None:
        check_url(url, allow_http)
        return
    with pytest.raises(DataError, match=problem) as caught:
        check_url(url, allow_http)
    assert "key" not in str(caught.value).replace("put the key", "").replace("prompts and key", "")


# -- what nobody may read --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble", [*TRANSIENT[:-1], "400", "401", "403", "404", "302", "quota", "length", "content-filter", "say:{canary"]
)
def test_neither_prompt_nor_answer_nor_key_stands_in_logs_and_errors(
    server: ModelServer,
    make_asker: MakeAsker,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    prompt, answer, key = (f"canary-of-the-{part}" for part in ("prompt", "answer", "key"))
    monkeypatch.setenv("CANARY_TOKEN", key)
    server.trouble = lambda body: trouble
    server.answer = lambda body: answer
    told = ""
    with make_asker(secret_ref={"name": "s", "key": "CANARY_TOKEN"}, retries=1) as asker:
        try:
            told = repr(asker.ask(say(prompt), lambda text: parse_score(text, 5), tries=2))
        except DataError as error:
            told = "".join(traceback.format_exception(error)) + repr(error)
    assert told
    for canary in (prompt, answer, key):
        assert canary not in told and canary not in caplog.text


def test_an_asker_is_checked_before_anything_is_asked(answers: str) -> None:
    with pytest.raises(DataError, match="not encrypted"):
        Asker(LanguageModel(url="http://example.com/v1", model="m"), "judge", answers, 1)
    with pytest.raises(DataError, match="a maxCost, but no price"):
        Asker(LanguageModel(url="https://example.com/v1", model="m", max_cost=1), "judge", answers, 1)


def test_a_name_that_leads_to_a_metadata_service_is_refused(answers: str) -> None:
    # A spelling of 169.254.169.254 that only the resolver understands.
    model = LanguageModel(url="http://0xA9FEA9FE/v1", model="m", timeout_seconds=2, retries=0)
    with (
        Asker(model, "judge", answers, 1, allow_http=True) as asker,
        pytest.raises(DataError, match="metadata service"),
    ):
        asker.ask(say("a"))


def test_a_proxy_of_the_environment_is_used_but_not_for_this_machine(
    server: ModelServer, make_asker: MakeAsker, answers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    model = LanguageModel(url=server.url.replace(f"127.0.0.1:{server.port}", "models.invalid"), model="m", retries=0)
    with Asker(model, "judge", answers, 1, allow_http=True) as asker:
        assert read_texts(asker.ask(say("through the proxy"))) == ["echo through the proxy"]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with make_asker(retries=0) as asker:
        assert read_texts(asker.ask(say("directly"))) == ["echo directly"]
