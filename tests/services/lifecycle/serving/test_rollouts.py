"""How adapters take over a public name, told as stories over a simulated server."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from services.lifecycle.serving.simulation import Chat, Cluster, build_server

from llamero.lifecycle.serving.rollout import build_step_id
from llamero.spec.rollout import StrategySpec
from llamero.spec.server import NameStatus
from llamero.spec.status import ConditionType

BAD = (0.5, 0.1, 0.5)
GOOD = (0.0, 0.1, 0.8)


def build_cluster(traffic: int = 20, **spec: Any) -> Cluster:
    """A server with two pods, two chat services and an adapter tutor-r1 that serves."""
    server = build_server(**{"replicas": 2, **spec})
    cluster = Cluster(server=server, traffic=traffic, chats=[Chat("a"), Chat("b")])
    cluster.publish("tutor-r1")
    cluster.run_until(lambda: cluster.shares() == {"tutor-r1": 100} and cluster.status.phase == "Ready")
    return cluster


def make_bad(cluster: Cluster, *marks: str) -> None:
    cluster.quality = lambda i: BAD if i is not None and any(f"-{m}-" in i for m in marks) else GOOD


def truth(cluster: Cluster, adapter: str, kind: ConditionType) -> tuple[str, str]:
    found = cluster.adapters[adapter].status.condition(kind)
    assert found is not None
    return found.status, found.reason


def test_the_first_adapter_takes_all_callers_as_soon_as_a_pod_has_it() -> None:
    cluster = build_cluster()
    assert cluster.name().state == "Serving" and cluster.name().adapter == "tutor-r1"
    assert truth(cluster, "tutor-r1", ConditionType.VERIFIED) == ("True", "Proven")
    assert truth(cluster, "tutor-r1", ConditionType.SERVING) == ("True", "Serving")
    status = cluster.adapters["tutor-r1"].status
    assert (status.server, status.weight) == ("llama", 100) and status.id.startswith("team-tutor-r1-")


def test_a_good_adapter_takes_over_step_by_step() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    weights = []
    while cluster.name().adapter == "tutor-r1":
        cluster.look()
        cluster.tick()
        assert sum(cluster.shares().values()) == 100
        if cluster.shares().get("tutor-r2", 0) not in weights:
            weights.append(cluster.shares().get("tutor-r2", 0))
    assert weights == [0, 5, 25, 50, 100]
    assert cluster.name().previous == "tutor-r1" and cluster.name().state == "Serving"
    assert truth(cluster, "tutor-r2", ConditionType.ROLLED_BACK) == ("False", "Promoted")
    assert truth(cluster, "tutor-r1", ConditionType.SERVING) == ("False", "OtherServes")
    told = [n.reason for n in cluster.notes]
    assert told == ["Promoted", "RolloutStarted", "RolloutStep", "RolloutStep", "RolloutStep", "Promoted"]


def test_the_adapter_before_stays_loaded_for_a_quick_rollback() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r2")
    cluster.run(60)
    assert {a.name: a.state for a in cluster.status.adapters} == {"tutor-r1": "Ready", "tutor-r2": "Ready"}
    cluster.edit_name(rollback=["tutor-r2"])
    cluster.look()
    assert cluster.shares() == {"tutor-r1": 100}, "at once: what must not serve takes no steps"


def test_a_bad_adapter_goes_back_by_itself_and_says_why() -> None:
    cluster = build_cluster()
    make_bad(cluster, "r2")
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.name().state == "RolledBack")
    assert cluster.shares() == {"tutor-r1": 100}
    assert "requests failed" in cluster.name().message and "tutor-r2" in cluster.name().message
    condition = cluster.adapters["tutor-r2"].status.condition(ConditionType.ROLLED_BACK)
    assert condition is not None and (condition.status, condition.reason) == ("True", "AnalysisFailed")
    assert "requests failed" in condition.message
    cluster.run(100)
    assert cluster.shares() == {"tutor-r1": 100}, "and it is not tried again"
    assert cluster.name().state == "RolledBack"
    assert [a.name for a in cluster.status.adapters] == ["tutor-r1"], "and it is unloaded"


def test_a_slow_adapter_and_one_that_is_disliked_go_back() -> None:
    for quality, words in (((0.0, 3.0, 0.8), "first token"), ((0.0, 0.1, 0.1), "votes")):
        cluster = build_cluster()
        cluster.votes = True
        cluster.quality = lambda i, q=quality: q if i is not None and "-r2-" in i else GOOD  # type: ignore[misc]
        cluster.publish("tutor-r2")
        cluster.run_until(lambda c=cluster: c.name().state == "RolledBack")  # type: ignore[misc]
        assert words in cluster.name().message


def test_where_both_fail_alike_the_new_adapter_takes_over_also_when_only_it_is_asked() -> None:
    cluster = build_cluster()
    cluster.quality = lambda _: (0.1, 0.1, 0.8)
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r2", 200)


def test_an_adapter_that_turns_bad_when_all_ask_it_goes_back() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.shares() == {"tutor-r2": 100})
    make_bad(cluster, "r2")
    cluster.run_until(lambda: cluster.shares() == {"tutor-r1": 100})
    assert cluster.name().state == "RolledBack"


def test_after_a_rollback_a_better_adapter_is_tried() -> None:
    cluster = build_cluster()
    make_bad(cluster, "r2")
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.name().state == "RolledBack")
    cluster.publish("tutor-r3")
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r3")
    assert cluster.name().previous == "tutor-r1"


def test_raising_retry_gives_another_try_once() -> None:
    cluster = build_cluster()
    make_bad(cluster, "r2")
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.name().state == "RolledBack")
    cluster.edit_name(retry=1)
    cluster.run_until(lambda: "tutor-r2" in cluster.shares())
    assert truth(cluster, "tutor-r2", ConditionType.ROLLED_BACK) == ("False", "TriedAgain")
    cluster.run_until(lambda: cluster.name().state == "RolledBack")
    cluster.run(100)
    assert cluster.shares() == {"tutor-r1": 100}
    make_bad(cluster, "none")
    cluster.edit_name(retry=2)
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r2")


def test_promote_takes_all_callers_at_once_even_after_a_rollback() -> None:
    cluster = build_cluster()
    make_bad(cluster, "r2")
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.name().state == "RolledBack")
    cluster.edit_name(promote="tutor-r2")
    cluster.run_until(lambda: cluster.shares() == {"tutor-r2": 100}, 20)
    cluster.run(100)
    assert cluster.name().adapter == "tutor-r2", "nobody judges it any more"
    assert truth(cluster, "tutor-r2", ConditionType.ROLLED_BACK)[0] == "False"
    cluster.edit_name()
    cluster.run(20)
    assert cluster.name().adapter == "tutor-r2", "taking `promote` away undoes nothing"


def test_promote_in_the_middle_of_a_rollout_skips_the_rest() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.shares().get("tutor-r2") == 25)
    cluster.edit_name(promote="tutor-r2")
    cluster.look()
    assert cluster.shares() == {"tutor-r2": 100}


def test_promoting_an_older_adapter_does_nothing() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    cluster.edit_name(promote="tutor-r1")
    for percent in (5, 25, 50, 100):
        cluster.run_until(lambda share=percent: cluster.shares().get("tutor-r2") == share)  # type: ignore[misc]
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r2")


def test_a_paused_rollout_holds_its_step_and_goes_on_when_it_may() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.shares().get("tutor-r2") == 25)
    cluster.edit_name(paused=True)
    cluster.run(300)
    assert cluster.shares() == {"tutor-r1": 75, "tutor-r2": 25} and cluster.name().state == "Paused"
    cluster.edit_name()
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r2")


def test_a_paused_rollout_that_turns_bad_goes_back_all_the_same() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.shares().get("tutor-r2") == 25)
    cluster.edit_name(paused=True)
    cluster.run(5)
    make_bad(cluster, "r2")
    cluster.run_until(lambda: cluster.name().state == "RolledBack")


def test_a_paused_name_starts_no_rollout() -> None:
    cluster = build_cluster()
    cluster.edit_name(paused=True)
    cluster.publish("tutor-r2")
    cluster.run(100)
    assert cluster.shares() == {"tutor-r1": 100} and cluster.name().state == "Paused"


def test_without_traffic_it_holds_and_does_not_guess() -> None:
    cluster = build_cluster(traffic=0, strategy={"steps": [50, 100], "maxStepSeconds": 100})
    cluster.publish("tutor-r2")
    cluster.run(90)
    assert cluster.name().state == "Canary"
    cluster.run(200)
    assert cluster.name().state == "Holding" and "waits for 20 requests" in cluster.name().message
    assert cluster.shares() == {"tutor-r1": 50, "tutor-r2": 50}
    cluster.traffic = 20
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r2")


def test_a_strategy_of_a_hundred_has_no_canary() -> None:
    cluster = build_cluster(strategy={"steps": [100]})
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.shares() != {"tutor-r1": 100})
    assert cluster.shares() == {"tutor-r2": 100} and cluster.name().state == "Serving"


def test_the_names_strategy_comes_before_the_jobs_and_the_jobs_before_the_servers() -> None:
    for entry, job, first in (
        ({}, None, 5),
        ({}, StrategySpec(steps=[7, 100]), 7),
        ({"strategy": {"steps": [9, 100]}}, StrategySpec(steps=[7, 100]), 9),
    ):
        cluster = build_cluster()
        cluster.edit_name(**entry)
        cluster.strategies = {"tutor-r2": job} if job is not None else {}
        cluster.publish("tutor-r2")
        cluster.run_until(lambda c=cluster: "tutor-r2" in c.shares())  # type: ignore[misc]
        assert cluster.shares()["tutor-r2"] == first


@pytest.mark.parametrize(
    ("steps", "weight"),
    [
        pytest.param([5, 25, 50, 100], 25, id="the same steps change nothing"),
        pytest.param([25, 100], 25, id="the same weight at another place stays"),
        pytest.param([10, 100], 10, id="a lower step takes callers back"),
        pytest.param([10, 20, 60, 100], 20, id="the last that is not above what was reached"),
        pytest.param([40, 100], 40, id="where all are above, the first"),
    ],
)
def test_a_strategy_edited_in_the_middle_takes_effect_on_the_step_at_hand(steps: list[int], weight: int) -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.shares().get("tutor-r2") == 25)
    before = cluster.name()
    cluster.edit(strategy={"steps": steps})
    cluster.look()
    assert cluster.shares() == {"tutor-r1": 100 - weight, "tutor-r2": weight}
    if weight == 25:
        assert (cluster.name().step_id, cluster.name().step_started_at) == (before.step_id, before.step_started_at)
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r2")


def test_a_newer_adapter_supersedes_a_canary_and_starts_at_the_first_step() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.shares().get("tutor-r2") == 50)
    cluster.publish("tutor-r3")
    cluster.look()
    assert cluster.shares() == {"tutor-r1": 100}, "the stable adapter answers all until the newer is ready"
    cluster.run_until(lambda: cluster.shares().get("tutor-r3", 0) > 0)
    assert cluster.shares() == {"tutor-r1": 95, "tutor-r3": 5}
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r3")
    assert cluster.name().previous == "tutor-r1"


def test_a_pin_to_an_older_adapter_takes_over_by_steps_too() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r2")
    cluster.edit_name(adapter="tutor-r1")
    cluster.run_until(lambda: cluster.shares() != {"tutor-r2": 100})
    assert cluster.shares() == {"tutor-r2": 95, "tutor-r1": 5}
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r1")
    cluster.publish("tutor-r3")
    cluster.run(200)
    assert cluster.shares() == {"tutor-r1": 100}, "the pin holds against newer ones"


def test_a_pin_to_an_adapter_that_is_not_there_leaves_what_serves() -> None:
    cluster = build_cluster()
    cluster.edit_name(adapter="tutor-r9")
    cluster.run(5)
    assert cluster.shares() == {"tutor-r1": 100} and "tutor-r9" in cluster.name().message


def test_a_pinned_adapter_of_another_job_is_served() -> None:
    cluster = build_cluster()
    cluster.publish("imported", server="", model="elsewhere", source=None)
    cluster.edit_name(adapter="imported")
    cluster.run_until(lambda: cluster.name().adapter == "imported")
    assert cluster.adapters["imported"].status.server == "llama" and cluster.adapters["imported"].held
    cluster.edit_name()
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r1")
    assert cluster.adapters["imported"].held, "it is the one before, and stays loaded"
    cluster.edit(models=[], engine={"type": "cpu", "maxAdapters": 1})
    cluster.run_until(lambda: not cluster.adapters["imported"].held)
    cluster.run(3)
    assert cluster.adapters["imported"].status.server == ""


def test_rolling_back_both_canary_and_stable_falls_to_the_one_before() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r2")
    cluster.publish("tutor-r3")
    cluster.run_until(lambda: cluster.shares().get("tutor-r3") == 25)
    cluster.edit_name(rollback=["tutor-r3", "tutor-r2"])
    cluster.look()
    assert cluster.shares() == {"tutor-r1": 100}
    cluster.look()
    assert cluster.name().state == "RolledBack" and "rollback list" in cluster.name().message
    cluster.edit_name()
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r3")


def test_an_adapter_that_must_not_serve_answers_until_the_next_is_ready() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r2")
    cluster.edit(engine={"type": "cpu", "maxAdapters": 2}, models=[{"name": "tutor", "rollback": ["tutor-r1"]}])
    cluster.publish("tutor-r3")
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r3")
    cluster.edit_name(rollback=["tutor-r3", "tutor-r2"])
    seen = []
    for _ in range(30):
        cluster.look()
        cluster.tick()
        seen.append(cluster.shares())
    assert all(sum(s.values()) == 100 for s in seen) and seen[-1] == {"tutor-r1": 100}


def test_a_name_whose_every_adapter_is_rolled_back_is_served_by_none() -> None:
    cluster = build_cluster()
    cluster.edit_name(rollback=["tutor-r1"])
    cluster.run(10)
    assert cluster.shares() == {} and cluster.name().state == "Waiting"
    assert "rollback list" in cluster.name().message
    assert cluster.status.adapters == []


def test_a_name_whose_only_adapter_is_refused_waits_and_says_why() -> None:
    cluster = Cluster(chats=[Chat("a")])
    cluster.bad_files[cluster.publish("tutor-r1").served_id] = "Its rank is 128, the engine takes 64 at most."
    cluster.run(20)
    assert cluster.name().state == "Waiting" and "Its rank is 128" in cluster.name().message
    assert cluster.shares() == {} and truth(cluster, "tutor-r1", ConditionType.VERIFIED) == ("False", "Refused")


def test_a_refused_canary_leaves_the_old_adapter_where_it_is() -> None:
    cluster = build_cluster()
    cluster.bad_files[cluster.publish("tutor-r2").served_id] = "A file is corrupt."
    for _ in range(60):
        cluster.look()
        cluster.tick()
        assert cluster.shares() == {"tutor-r1": 100}
    assert cluster.name().state == "RolledBack" and "A file is corrupt." in cluster.name().message
    assert [a.name for a in cluster.status.adapters] == ["tutor-r1"]
    assert any(n.reason == "AdapterRefused" and n.warning for n in cluster.notes)


def test_a_refused_adapter_is_tried_again_when_retry_is_raised() -> None:
    cluster = build_cluster()
    adapter = cluster.publish("tutor-r2")
    cluster.bad_files[adapter.served_id] = "A file is corrupt."
    cluster.run_until(lambda: cluster.name().state == "RolledBack")
    cluster.run(5)
    cluster.bad_files.clear()
    cluster.edit_name(retry=1)
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r2")
    assert truth(cluster, "tutor-r2", ConditionType.VERIFIED) == ("True", "Proven")


def test_an_adapter_that_never_becomes_ready_is_given_up() -> None:
    cluster = build_cluster()
    cluster.limits = replace(cluster.limits, start_seconds=60)
    cluster.slow = 10_000
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.name().state == "RolledBack", 100)
    assert truth(cluster, "tutor-r2", ConditionType.VERIFIED) == ("False", "NotReady")


def test_an_adapter_of_another_base_is_never_served() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2", base="/models/other")
    cluster.run(20)
    assert cluster.shares() == {"tutor-r1": 100} and cluster.name().state == "Serving"
    assert truth(cluster, "tutor-r2", ConditionType.VERIFIED) == ("False", "BaseMismatch")


@pytest.mark.parametrize(
    ("base", "revision", "fits"),
    [
        ("org/llama", "a" * 40, True),
        ("org/llama", None, True),
        ("org/llama", "b" * 40, False),
        ("org/other", "a" * 40, False),
    ],
)
def test_base_and_revision_must_agree_where_both_tell_it(base: str, revision: str | None, fits: bool) -> None:
    cluster = Cluster(server=build_server(baseModel={"name": "org/llama", "revision": "a" * 40}))
    cluster.publish("tutor-r1", base=base, baseRevision=revision)
    cluster.run(10)
    assert (cluster.shares() == {"tutor-r1": 100}) is fits


def test_a_deleted_adapter_is_replaced_by_another_at_once_and_then_let_go() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r2")
    cluster.delete_adapter("tutor-r2")
    cluster.look()
    assert cluster.shares() == {"tutor-r1": 100}
    cluster.run_until(lambda: "tutor-r2" not in cluster.adapters, 20)


def test_a_deleted_adapter_without_another_serves_on_and_says_so() -> None:
    cluster = build_cluster()
    cluster.delete_adapter("tutor-r1")
    cluster.run(300)
    assert cluster.shares() == {"tutor-r1": 100}
    assert truth(cluster, "tutor-r1", ConditionType.SERVING) == ("True", "DeletionWaits")
    cluster.edit_name(retired=True)
    cluster.run_until(lambda: "tutor-r1" not in cluster.adapters, 20)
    assert cluster.name().state == "Retired" and cluster.shares() == {}


def test_a_deleted_canary_is_taken_back() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.shares().get("tutor-r2") == 25)
    cluster.delete_adapter("tutor-r2")
    cluster.look()
    assert cluster.shares() == {"tutor-r1": 100}
    cluster.run_until(lambda: "tutor-r2" not in cluster.adapters, 20)


def test_the_base_serves_a_name_and_an_adapter_takes_over_from_it_by_steps() -> None:
    cluster = Cluster(traffic=20, chats=[Chat("a")])
    cluster.edit_name(base=True)
    cluster.run(5)
    assert cluster.shares() == {None: 100} and cluster.name().state == "Serving"
    cluster.publish("tutor-r1")
    cluster.run(10)
    assert cluster.shares() == {None: 100}, "the entry says the base"
    cluster.edit_name()
    cluster.run_until(lambda: cluster.shares() != {None: 100})
    assert cluster.shares() == {None: 95, "tutor-r1": 5}
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r1")
    cluster.edit_name(base=True)
    cluster.run(2)
    assert cluster.shares() == {None: 100}


def test_a_name_that_another_server_serves_is_left_to_it() -> None:
    cluster = Cluster(chats=[Chat("a")], taken={"tutor": "team/older"})
    cluster.publish("tutor-r1")
    cluster.run(10)
    assert cluster.shares() == {} and cluster.name().state == "Conflict"
    assert "team/older" in cluster.name().message and cluster.status.phase == "Degraded"


def test_a_step_goes_no_further_than_pods_have_the_adapter() -> None:
    cluster = build_cluster(replicas=4)
    cluster.publish("tutor-r2")
    late = cluster.pods[1:]
    for pod in late:
        pod.silent = False
    cluster.look()
    cluster.tick()
    for pod in late:
        for adapter in pod.loaded:
            if "-r2-" in adapter:
                pod.loaded[adapter] = 400
    for _ in range(300):
        cluster.look()
        cluster.tick()
        assert cluster.shares().get("tutor-r2", 0) <= 25, "one pod of four has it"
    assert cluster.shares().get("tutor-r2") == 25 and "more pods" in cluster.name().message
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r2")


def test_a_clock_that_is_set_back_neither_hurries_nor_stops_a_rollout() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.shares().get("tutor-r2") == 25)
    cluster.now -= timedelta(days=1)
    cluster.look()
    assert cluster.shares().get("tutor-r2") == 25
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r2", 400)


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param(NameStatus(name="tutor", state="Canary", adapter="gone", canary="gone-too", weight=50), id="gone"),
        pytest.param(NameStatus(name="tutor", state="Canary", adapter="tutor-r1", weight=70), id="a weight for nobody"),
        pytest.param(
            NameStatus(name="tutor", state="Canary", adapter="tutor-r1", canary="tutor-r1", weight=70, step=9),
            id="its own canary",
        ),
        pytest.param(NameStatus(name="tutor", state="Serving", previous="gone"), id="nobody"),
    ],
)
def test_a_status_that_was_written_by_hand_is_mended(forged: NameStatus) -> None:
    cluster = build_cluster()
    cluster.status = cluster.status.model_copy(update={"models": [forged, forged]})
    cluster.run(5)
    assert cluster.shares() == {"tutor-r1": 100} and cluster.name().state == "Serving"
    assert len(cluster.status.models) == 1


def test_a_lost_status_is_found_again_in_the_routes() -> None:
    cluster = build_cluster()
    cluster.publish("tutor-r2")
    cluster.run_until(lambda: cluster.shares().get("tutor-r2") == 25)
    serial = cluster.status.wanted_serial
    cluster.status = type(cluster.status)()
    cluster.look()
    assert cluster.name().adapter == "tutor-r1", "whoever answered most callers serves"
    assert cluster.status.wanted_serial > serial
    cluster.run_until(lambda: cluster.name().adapter == "tutor-r2")


def test_the_id_of_a_step_stays_within_its_bounds() -> None:
    assert build_step_id("tutor-r2", 1, 1767614400) == "tutor-r2-1-1767614400"
    assert len(build_step_id("a" * 63, 15, 1767614400)) == 64
