"""Where a request goes: pure decisions over a routes table."""

import pytest

from llamero.chat.errors import ChatError
from llamero.chat.routing import choose_destination, choose_target
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


def test_a_backend_that_lacks_the_adapter_is_never_chosen_and_the_idle_one_comes_first() -> None:
    backends = [
        Backend(url="http://a", adapters=[OLD]),
        Backend(url="http://b", adapters=[OLD, NEW]),
        Backend(url="http://c", adapters=[NEW]),
    ]
    routes = Routes(servers={"s": backends}, routes=[split(0, 100)])
    chosen = choose_destination(routes, "tutor", "me", {"http://b": 3})
    assert [b.url for b in chosen.backends] == ["http://c", "http://b"]
    assert {chosen.upstream_model(b) for b in chosen.backends} == {NEW}


def test_the_base_is_asked_for_by_the_name_that_its_engine_knows() -> None:
    backends = [Backend(url="http://a"), Backend(url="http://b", engine="vllm")]
    route = Route(model="base", server="s", targets=[Target()])
    chosen = choose_destination(Routes(servers={"s": backends}, routes=[route]), "base", "me", {})
    assert [chosen.upstream_model(b) for b in chosen.backends] == ["tgi", "base"]


def test_an_unknown_model_is_refused_and_nothing_stands_in_for_it() -> None:
    with pytest.raises(ChatError) as refused:
        choose_destination(Routes(routes=[split(100, 0)]), OLD, "me", {})
    assert refused.value.problem.status == 404
    assert refused.value.to_dict()["error"]["code"] == "model_not_found"


def test_a_route_without_weight_has_no_backends() -> None:
    routes = Routes(servers={"s": [Backend(url="http://a", adapters=[OLD, NEW])]}, routes=[split(0, 0)])
    assert choose_destination(routes, "tutor", "me", {}).backends == ()
