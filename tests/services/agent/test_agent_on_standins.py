"""An agent beside engines that keep TGI's and vLLM's contracts, with their traps: nothing that an engine says of names is proof."""

import asyncio
import subprocess
import sys
from pathlib import Path

from services.agent.conftest import agent_environment, find, running, until, until_stage, wish
from serving.fixtures import Tiny
from serving.makers import TinyAdapter, break_rank, build_adapter, corrupt, swap_weights
from standins.conftest import StandIn, start_stand_in, tiny

from llamero.agent.engines import build_client
from llamero.spec.names import engine_adapter_path, engine_base_path
from llamero.spec.serving import AdapterWanted, AgentRefusal, AgentWanted

__all__ = ["start_stand_in", "tiny"]

TGI, VLLM = "text-generation-launcher", "vllm"
GATE = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}


def want_tiny(adapter: TinyAdapter, name: str) -> AdapterWanted:
    return AdapterWanted(
        id=f"ns-{name}-{adapter.sha256[:8]}",
        name=name,
        uri=str(adapter.folder),
        sha256=adapter.sha256,
        golden_sha256=adapter.golden_sha256,
    )


def fetch(scratch: Path, root: Path, wanted: AgentWanted) -> tuple[int, AgentRefusal | None]:
    """The init container: its exit code, and its termination message."""
    environment = agent_environment(scratch, root, wanted.engine, LLAMERO_WANTED=wanted.model_dump_json(by_alias=True))
    told = Path(environment["LLAMERO_TERMINATION_LOG"])
    told.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "llamero.agent", "fetch"], env=environment, capture_output=True, text=True
    )
    return done.returncode, AgentRefusal.model_validate_json(told.read_text()) if told.is_file() else None


def start_tgi(start_stand_in: StandIn, scratch: Path, ids: list[str], **environment: str) -> str:
    adapters = ",".join(f"{i}={engine_adapter_path(str(scratch), i)}" for i in ids)
    base = engine_base_path(str(scratch))
    more = {"ENABLE_PREFILL_LOGPROBS": "true", **environment}
    return start_stand_in(TGI, MODEL_ID=base, LORA_ADAPTERS=adapters, HOSTNAME="127.0.0.1", **more)[1]


async def test_tgi_is_started_with_what_was_fetched_and_proven_by_golden_prompts(
    start_stand_in: StandIn, tiny: Tiny, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    amber, birch = want_tiny(tiny.adapter("amber"), "amber-r1"), want_tiny(tiny.adapter("birch"), "birch-r1")
    wanted = wish(tiny.base, amber, birch, engine="tgi")
    assert fetch(scratch, tmp_path, wanted) == (0, None)
    url = start_tgi(start_stand_in, scratch, [amber.id, birch.id])
    async with running(build_client("tgi", url), scratch, tmp_path) as agent:
        agent.want(wanted)
        await until(lambda: agent.is_ready, agent.report)
        assert [(a.stage, a.nearer, a.golden) for a in agent.report().adapters] == [("ready", 10, 10)] * 2
        cedar = want_tiny(tiny.adapter("cedar"), "cedar-r1")
        agent.want(wish(tiny.base, birch, cedar, engine="tgi", serial=2))
        await until(lambda: find(agent, amber.id) is None, agent.report)
        await until(lambda: "comes with the pod's next start" in find(agent, cedar.id).message, agent.report)  # type: ignore[union-attr]
        assert agent.is_ready, "what comes later takes no pod out of service"
        assert agent.report().ready_ids == {birch.id}


async def test_an_adapter_that_tgi_was_not_started_with_is_found_out_though_the_base_answers_in_its_name(
    start_stand_in: StandIn, tiny: Tiny, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    amber, birch = want_tiny(tiny.adapter("amber"), "amber-r1"), want_tiny(tiny.adapter("birch"), "birch-r1")
    bare = want_tiny(tiny.adapter("cedar"), "bare-r1").model_copy(update={"golden_sha256": None})
    wanted = wish(tiny.base, amber, birch, bare, engine="tgi")
    assert fetch(scratch, tmp_path, wanted) == (0, None)
    url = start_tgi(start_stand_in, scratch, [birch.id])
    async with running(build_client("tgi", url), scratch, tmp_path) as agent:
        agent.want(wanted)
        assert "does not answer" in (await until_stage(agent, amber.id, "refused")).message
        assert "the engine answers by the base" in (await until_stage(agent, bare.id, "refused")).message
        await until_stage(agent, birch.id, "ready")
        assert not agent.is_ready, "a pod of TGI serves all that it was started for, or nothing"


async def test_tgi_without_log_probabilities_of_prompts_is_told_what_it_lacks(
    start_stand_in: StandIn, tiny: Tiny, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    amber = want_tiny(tiny.adapter("amber"), "amber-r1")
    wanted = wish(tiny.base, amber, engine="tgi")
    assert fetch(scratch, tmp_path, wanted) == (0, None)
    base, path = engine_base_path(str(scratch)), engine_adapter_path(str(scratch), amber.id)
    url = start_stand_in(TGI, MODEL_ID=base, LORA_ADAPTERS=f"{amber.id}={path}", HOSTNAME="127.0.0.1")[1]
    async with running(build_client("tgi", url), scratch, tmp_path) as agent:
        agent.want(wanted)
        await until(lambda: "ENABLE_PREFILL_LOGPROBS=true" in find(agent, amber.id).message, agent.report)  # type: ignore[union-attr]
        assert not agent.is_ready


async def test_a_fetch_for_tgi_refuses_what_is_wrong_and_names_it(tiny: Tiny, tmp_path: Path) -> None:
    good = want_tiny(tiny.adapter("amber"), "good-r1")
    rank = want_tiny(tiny.variant("rank", lambda f: break_rank(tiny.base, tiny.adapter("birch"), f)), "rank-r1")
    damaged = want_tiny(tiny.variant("damaged", lambda f: corrupt(tiny.adapter("birch"), f)), "damaged-r1")
    for bad, words in [(rank, "where adapter_config.json says 8"), (damaged, "damaged")]:
        code, told = fetch(tmp_path / bad.name, tmp_path, wish(tiny.base, good, bad, engine="tgi"))
        assert code == 3
        assert told is not None and told.id == bad.id
        assert words in told.message
    code, told = fetch(tmp_path / "base", tmp_path, wish(tmp_path / "nowhere", good, engine="tgi"))
    assert (code, told.id if told else "") == (3, None)
    assert told is not None and "does not exist" in told.message


async def test_vllm_is_given_its_adapters_again_after_it_died(
    start_stand_in: StandIn, tiny: Tiny, tmp_path: Path
) -> None:
    server, url = start_stand_in(VLLM, *vllm_arguments(tiny), **GATE)
    amber, birch = want_tiny(tiny.adapter("amber"), "amber-r1"), want_tiny(tiny.adapter("birch"), "birch-r1")
    async with running(build_client("vllm", url), tmp_path / "scratch", tmp_path) as agent:
        agent.want(wish(tiny.base, amber, birch, engine="vllm"))
        await until(lambda: agent.report().ready_ids == {amber.id, birch.id}, agent.report)
        server.kill()
        await until(lambda: not agent.report().engine_ready, agent.report)
        assert agent.report().ready_ids == frozenset()
        await asyncio.to_thread(server.start)
        await until(lambda: agent.report().ready_ids == {amber.id, birch.id}, agent.report)
        agent.want(wish(tiny.base, birch, engine="vllm", serial=2))
        await until(lambda: find(agent, amber.id) is None, agent.report)
        client = build_client("vllm", url)
        assert await client.loaded() == {birch.id}
        await client.load(
            birch.id, Path(engine_adapter_path(str(tmp_path / "scratch"), birch.id))
        )  # in already: no error
        await client.unload(amber.id)  # gone already: no error
        await client.close()


async def test_vllm_says_itself_what_it_can_t_serve(start_stand_in: StandIn, tiny: Tiny, tmp_path: Path) -> None:
    url = start_stand_in(VLLM, *vllm_arguments(tiny, rank=8), **GATE)[1]
    wide = tiny.variant("wide", lambda f: build_adapter(tiny.base, f, "delta", rank=16))
    swapped = tiny.variant(
        "swapped", lambda f: swap_weights(tiny.base, tiny.adapter("amber"), tiny.adapter("birch"), f)
    )
    async with running(build_client("vllm", url), tmp_path / "scratch", tmp_path) as agent:
        agent.want(wish(tiny.base, want_tiny(wide, "wide-r1"), want_tiny(swapped, "swapped-r1"), engine="vllm"))
        assert (
            "greater than max_lora_rank" in (await until_stage(agent, want_tiny(wide, "wide-r1").id, "refused")).message
        )
        report = await until_stage(agent, want_tiny(swapped, "swapped-r1").id, "refused")
        assert (report.nearer, report.golden) == (0, 10)
        client = build_client("vllm", url)
        assert await client.loaded() == frozenset(), "what does not answer as measured is not left in the engine"
        await client.close()


async def test_vllm_without_its_gate_is_told_what_it_lacks(start_stand_in: StandIn, tiny: Tiny, tmp_path: Path) -> None:
    url = start_stand_in(VLLM, *vllm_arguments(tiny))[1]
    amber = want_tiny(tiny.adapter("amber"), "amber-r1")
    async with running(build_client("vllm", url), tmp_path / "scratch", tmp_path) as agent:
        agent.want(wish(tiny.base, amber, engine="vllm"))
        await until(lambda: "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" in find(agent, amber.id).message, agent.report)  # type: ignore[union-attr]
        assert find(agent, amber.id).stage == "loading"  # type: ignore[union-attr]


def vllm_arguments(tiny: Tiny, rank: int = 16) -> list[str]:
    served = ["serve", str(tiny.base), "--served-model-name", "base", "--host", "127.0.0.1"]
    return [*served, "--enable-lora", "--max-loras", "2", "--max-cpu-loras", "4", "--max-lora-rank", str(rank)]
