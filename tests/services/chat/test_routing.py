"""Where a request goes: pure decisions over a routes table."""

import pytest

from llamero.chat.errors import ChatError
from llamero.chat.routing import Destination, Standing, choose_destination, choose_target
from llamero.spec.routes import Backend, Route, Routes, Target

OLD, NEW = "ns-job-r1-00000000", "ns-job-r2-11111111"
CALLERS = [f"caller-{n}" for n in range(4000)]


def split(old: int, new: int) -> Route:
    targets = [Target(adapter=OLD, weight=old), Target(adapter=NEW, weight=new)]
    return Route(model="tutor", server="s", targets=targets)


def adapter_of(route: Route, caller: str) -> str | None:
    target = choose_target(route, caller)
    assert target is not None
    return target.adapter


@pytest.mark.parametrize("new", [0, 5, 25, 50, 100])
def test_callers_are_shared_out_by_weight(new: int) -> None:
    share = sum(adapter_of(split(100 - new, new), c) == NEW for c in CALLERS) / len(CALLERS)
    assert share == pytest.approx(new / 100, abs=0.02)


def test_a_caller_keeps_its_target_and_moves_at_most_once_while_weight_moves() -> None:
    for caller in CALLERS[:500]:
        seen = [adapter_of(split(100 - new, new), caller) for new in (0, 5, 25, 50, 100)]
        assert seen == sorted(seen), "from old to new, never back"


def follow(routes: Routes, caller: str = "me", standing: Standing | None = None) -> list[Destination]:
    """All that would be asked for a request, one after another, if none of them answered."""
    tried: set[tuple[str, str | None]] = set()
    asked: list[Destination] = []
    options = {"standing": standing} if standing else {}
    while (chosen := choose_destination(routes, "tutor", caller, tried=tried, **options)) is not None:
        tried.add(chosen.ask)
        asked.append(chosen)
    return asked


def busy(**requests: int) -> Standing:
    return Standing(busy=lambda url: (requests.get(url[-1], 0), 0), is_resting=lambda ask: False)


def caller_of(route: Route, adapter: str) -> str:
    return next(c for c in CALLERS if adapter_of(route, c) == adapter)


A, B, C = (f"http://{name}" for name in "abc")


def test_a_backend_that_lacks_the_adapter_is_never_chosen_and_the_idle_one_comes_first() -> None:
    backends = [Backend(url=A, adapters=[OLD]), Backend(url=B, adapters=[OLD, NEW]), Backend(url=C, adapters=[NEW])]
    asked = follow(Routes(servers={"s": backends}, routes=[split(0, 100)]), standing=busy(b=3))
    assert [(d.backend.url, d.upstream_model) for d in asked] == [(C, NEW), (B, NEW)]


def test_of_equally_busy_backends_the_one_that_was_sent_less_comes_first() -> None:
    backends = [Backend(url=A, adapters=[NEW]), Backend(url=B, adapters=[NEW])]
    standing = Standing(busy=lambda url: (1, 5 if url == A else 4), is_resting=lambda ask: False)
    asked = follow(Routes(servers={"s": backends}, routes=[split(0, 100)]), standing=standing)
    assert [d.backend.url for d in asked] == [B, A]


def test_a_backend_that_just_failed_is_asked_last_however_idle_it_is() -> None:
    backends = [Backend(url=A, adapters=[NEW]), Backend(url=B, adapters=[NEW])]
    standing = Standing(busy=lambda url: (0 if url == A else 9, 0), is_resting=lambda ask: ask == (A, NEW))
    asked = follow(Routes(servers={"s": backends}, routes=[split(0, 100)]), standing=standing)
    assert [d.backend.url for d in asked] == [B, A]


@pytest.mark.parametrize(
    ("mine", "backends", "expected"),
    [
        (NEW, {A: [OLD], B: [OLD, NEW]}, [(B, NEW), (A, OLD), (B, OLD)]),
        (NEW, {A: [OLD]}, [(A, OLD)]),
        (OLD, {A: [NEW]}, [(A, NEW)]),
        (OLD, {A: [], B: ["another"]}, []),
        (NEW, {}, []),
    ],
)
def test_where_a_callers_target_has_no_backend_the_routes_other_target_answers(
    mine: str, backends: dict[str, list[str]], expected: list[tuple[str, str]]
) -> None:
    route = split(75, 25)
    servers = {"s": [Backend(url=url, adapters=adapters) for url, adapters in backends.items()]}
    asked = follow(Routes(servers=servers, routes=[route]), caller_of(route, mine), standing=busy(b=1))
    assert [(d.backend.url, d.target.adapter) for d in asked] == expected


def test_a_target_without_weight_stands_in_for_nobody() -> None:
    routes = Routes(servers={"s": [Backend(url=A, adapters=[OLD])]}, routes=[split(0, 100)])
    assert follow(routes) == []


def test_a_target_that_failed_a_request_is_not_asked_again_for_it() -> None:
    route = split(75, 25)
    routes = Routes(servers={"s": [Backend(url=A, adapters=[OLD, NEW])]}, routes=[route])
    chosen = choose_destination(routes, "tutor", caller_of(route, NEW), given_up={NEW})
    assert chosen is not None and chosen.target.adapter == OLD
    assert choose_destination(routes, "tutor", "me", given_up={NEW, OLD}) is None


def test_the_base_is_asked_for_by_the_name_that_every_engine_gives_its_base() -> None:
    backends = [Backend(url=A, engine="tgi"), Backend(url=B, engine="vllm"), Backend(url=C, engine="cpu")]
    route = Route(model="tutor", server="s", targets=[Target()])
    asked = follow(Routes(servers={"s": backends}, routes=[route]))
    assert [d.upstream_model for d in asked] == ["tgi", "tgi", "tgi"]


def test_an_unknown_model_is_refused_and_nothing_stands_in_for_it() -> None:
    with pytest.raises(ChatError) as refused:
        choose_destination(Routes(routes=[split(100, 0)]), OLD, "me")
    assert refused.value.problem.status == 404
    assert refused.value.to_dict()["error"]["code"] == "model_not_found"


def test_a_route_without_weight_has_no_backends() -> None:
    routes = Routes(servers={"s": [Backend(url=A, adapters=[OLD, NEW])]}, routes=[split(0, 0)])
    assert choose_destination(routes, "tutor", "me") is None
