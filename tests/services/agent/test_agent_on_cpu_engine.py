"""An agent beside the real CPU engine: bring, check, load, prove, unload, and again after what may happen in between."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from services.agent.conftest import Publish, edit_config, find, running, until, until_stage, wish

from llamero.agent.agent import Agent
from llamero.agent.engines import EngineClient, build_client
from llamero.spec.golden import GoldenSet
from llamero.spec.names import engine_adapter_path, golden_name

WEIGHTS = "adapter_model.safetensors"


async def test_adapters_are_brought_loaded_and_proven(
    client: EngineClient,
    tmp_path: Path,
    store: Path,
    random_base: Path,
    publish_named: Publish,
    golden_sets: dict[str, GoldenSet],
) -> None:
    one, two = publish_named("plain-a").wanted("one-r1"), publish_named("plain-b").wanted("two-r1")
    async with running(client, tmp_path / "scratch", store) as agent:
        assert agent.report().adapters == []
        assert not agent.is_ready
        assert agent.want(wish(random_base, one, two, serial=3))
        assert [a.stage for a in agent.report().adapters] == ["fetching", "fetching"]
        await until(lambda: agent.is_ready, agent.report)
        report = agent.report()
        assert (report.pod, report.serial, report.engine_ready, report.engine_message) == ("pod-0", 3, True, "")
        assert report.ready_ids == {one.id, two.id}
        counts = [len(golden_sets[name].prompts) for name in ("plain-a", "plain-b")]
        assert [(a.nearer, a.golden, a.message) for a in report.adapters] == [(n, n, "") for n in counts]
        assert all(a.seconds > 0 for a in report.adapters)
        assert await client.loaded() == {one.id, two.id}
        folder = Path(engine_adapter_path(str(tmp_path / "scratch"), one.id))
        assert [p.name for p in folder.glob("*.safetensors")] == [WEIGHTS]

        assert not agent.want(wish(random_base, serial=2)), "an older list is passed over"
        assert agent.want(wish(random_base, two, serial=4))
        await until(lambda: find(agent, one.id) is None, agent.report)
        assert await client.loaded() == {two.id}
        assert not folder.exists()
        assert find(agent, two.id).stage == "ready"  # type: ignore[union-attr]
        agent.want(wish(random_base, serial=5))
        await until(lambda: not agent.report().adapters, agent.report)
        assert await client.loaded() == frozenset()


def set_not_a_number(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights[max(weights)][:] = np.nan
    save_file(weights, folder / WEIGHTS)


def to_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def cut_off(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:3000])


SPOILT: dict[str, tuple[dict[str, Any], str]] = {
    "wrong rank": ({"spoil": lambda f: edit_config(f, r=64)}, "where adapter_config.json says 64"),
    "corrupt weights": ({"spoil": cut_off}, "can't be read as safetensors"),
    "not a number": ({"spoil": set_not_a_number}, "not finite"),
    "a pickle": ({"spoil": to_pickle}, "adapter_model.bin, a pickle"),
    "another base": ({"base_sha256": "0" * 64}, "trained on another base (herd/tiny)"),
    "a config that breaks the checks": ({"spoil": lambda f: edit_config(f, r="many")}, "gives no rank"),
}


@pytest.mark.parametrize("case", SPOILT)
async def test_an_adapter_that_no_engine_can_serve_is_refused_for_good(
    client: EngineClient, tmp_path: Path, store: Path, random_base: Path, publish_named: Publish, case: str
) -> None:
    options, words = SPOILT[case]
    bad = publish_named("plain-a", **options).wanted("bad-r1")
    good = publish_named("narrow").wanted("good-r1")
    async with running(client, tmp_path / "scratch", store) as agent:
        agent.want(wish(random_base, bad, good))
        report = await until_stage(agent, bad.id, "refused")
        assert words in report.message
        await until_stage(agent, good.id, "ready")
        assert agent.is_ready, "what is refused keeps nobody waiting"
        assert await client.loaded() == {good.id}
        agent.want(wish(random_base, serial=2))
        await until(lambda: not agent.report().adapters, agent.report)


async def test_files_that_changed_since_they_were_published_are_refused(
    client: EngineClient, tmp_path: Path, store: Path, random_base: Path, publish_named: Publish
) -> None:
    swapped = publish_named("plain-a")
    other = publish_named("plain-b")
    wanted = swapped.wanted()
    torn = publish_named("narrow")
    (torn.folder / WEIGHTS).write_bytes(b"x" * (torn.folder / WEIGHTS).stat().st_size)
    shutil.rmtree(swapped.folder)
    shutil.copytree(other.folder, swapped.folder)
    async with running(client, tmp_path / "scratch", store) as agent:
        agent.want(wish(random_base, wanted, torn.wanted("torn-r1")))
        # Its own golden prompts are not there any more either: whichever is seen first.
        assert "publish it again" in (await until_stage(agent, wanted.id, "refused")).message
        assert "damaged" in (await until_stage(agent, torn.wanted("torn-r1").id, "refused")).message
        assert await client.loaded() == frozenset()


async def test_golden_prompts_that_are_missing_or_changed_are_no_proof(
    client: EngineClient, tmp_path: Path, store: Path, random_base: Path, publish_named: Publish
) -> None:
    missing, changed = publish_named("plain-a"), publish_named("plain-b")
    (missing.folder / golden_name(str(missing.golden_sha256))).unlink()
    path = changed.folder / golden_name(str(changed.golden_sha256))
    path.write_text(path.read_text().replace(":", ": ", 1))
    async with running(client, tmp_path / "scratch", store) as agent:
        agent.want(wish(random_base, missing.wanted("missing-r1"), changed.wanted("changed-r1")))
        assert "nothing else proves" in (await until_stage(agent, missing.wanted("missing-r1").id, "refused")).message
        assert "other digest" in (await until_stage(agent, changed.wanted("changed-r1").id, "refused")).message


async def test_an_adapter_that_answers_otherwise_than_measured_is_unloaded(
    client: EngineClient,
    tmp_path: Path,
    store: Path,
    random_base: Path,
    publish_named: Publish,
    golden_sets: dict[str, GoldenSet],
) -> None:
    strange = publish_named("plain-a", golden=golden_sets["plain-b"])
    first, *others = golden_sets["narrow"].prompts
    first = first.model_copy(update={"answer": first.answer[:-1]})
    letters = golden_sets["narrow"].model_copy(update={"prompts": [first, *others]})
    other_words = publish_named("narrow", golden=letters)
    async with running(client, tmp_path / "scratch", store) as agent:
        agent.want(wish(random_base, strange.wanted("strange-r1"), other_words.wanted("words-r1")))
        report = await until_stage(agent, strange.wanted("strange-r1").id, "refused")
        assert report.golden == len(golden_sets["plain-b"].prompts)
        assert report.nearer is not None and report.nearer < 0.8 * report.golden
        assert "does not answer in this engine" in report.message
        report = await until_stage(agent, other_words.wanted("words-r1").id, "refused")
        assert f"1 of {len(letters.prompts)} golden prompts otherwise" in report.message
        await until_nothing_is_loaded(client)


async def until_nothing_is_loaded(client: EngineClient) -> None:
    while await client.loaded():
        await asyncio.sleep(0.05)


async def test_without_golden_prompts_an_adapter_must_differ_from_the_base(
    client: EngineClient, tmp_path: Path, store: Path, random_base: Path, publish_named: Publish
) -> None:
    def untrain(folder: Path) -> None:
        weights = {k: v * 0 if "lora_B" in k else v for k, v in load_file(folder / WEIGHTS).items()}
        save_file(weights, folder / WEIGHTS)

    plain = publish_named("plain-a", golden=None).wanted("plain-r1")
    untrained = publish_named("plain-b", untrain, golden=None).wanted("untrained-r1")
    async with running(client, tmp_path / "scratch", store) as agent:
        agent.want(wish(random_base, plain, untrained))
        report = await until_stage(agent, plain.id, "ready")
        assert (report.nearer, report.golden) == (None, None)
        assert "4 of 4 plain texts are as likely" in (await until_stage(agent, untrained.id, "refused")).message
        agent.want(wish(random_base, serial=2))
        await until(lambda: not agent.report().adapters, agent.report)


async def test_a_storage_that_is_away_is_waited_for(
    client: EngineClient, tmp_path: Path, store: Path, random_base: Path, publish_named: Publish
) -> None:
    wanted = publish_named("plain-a").wanted("late-r1")
    away = store.rename(store.with_name("away"))
    async with running(client, tmp_path / "scratch", store) as agent:
        agent.want(wish(random_base, wanted))
        await until(lambda: bool(find(agent, wanted.id).message), agent.report)  # type: ignore[union-attr]
        report = find(agent, wanted.id)
        assert report is not None and report.stage == "fetching"
        assert "is the storage mounted?" in report.message
        away.rename(store)
        await until_stage(agent, wanted.id, "ready")
        agent.want(wish(random_base, serial=2))
        await until(lambda: not agent.report().adapters, agent.report)


async def test_an_engine_that_starts_anew_gets_everything_again(
    launch_engine: Any, tmp_path: Path, store: Path, random_base: Path, publish_named: Publish
) -> None:
    engine = launch_engine(names=())
    port = engine.url.rsplit(":", 1)[1]
    wanted, bad = publish_named("plain-a").wanted("kept-r1"), publish_named("plain-b", cut_off).wanted("bad-r1")
    async with running(build_client("cpu", engine.url), tmp_path / "scratch", store) as agent:
        agent.want(wish(random_base, wanted, bad))
        await until(lambda: agent.is_ready, agent.report)
        engine.process.kill()
        await until(lambda: not agent.report().engine_ready, agent.report, seconds=10)
        assert agent.report().ready_ids == frozenset()
        assert not agent.is_ready
        assert "can't be reached" in agent.report().engine_message
        assert find(agent, wanted.id).stage == "loading"  # type: ignore[union-attr]
        assert find(agent, bad.id).stage == "refused"  # type: ignore[union-attr]
        again = await asyncio.to_thread(launch_engine, "--port", port, names=())
        await until(lambda: agent.is_ready, agent.report)
        assert agent.report().ready_ids == {wanted.id}
        again.stop()


async def test_an_adapter_over_which_the_engine_ends_twice_is_refused_and_the_others_come_back(
    launch_engine: Any, tmp_path: Path, store: Path, random_base: Path, publish_named: Publish
) -> None:
    engine = launch_engine(names=())
    port = engine.url.rsplit(":", 1)[1]
    deadly = publish_named("plain-b").wanted("deadly-r1")
    good = publish_named("plain-a").wanted("good-r1")
    client, engines = build_client("cpu", engine.url), [engine]
    load = client.load

    async def load_or_die(name: str, folder: Path) -> None:
        if name == deadly.id:
            engines[-1].process.kill()
            engines[-1].process.wait()
        await load(name, folder)

    client.load = load_or_die  # type: ignore[method-assign]
    async with running(client, tmp_path / "scratch", store) as agent:
        agent.want(wish(random_base, good))
        await until_stage(agent, good.id, "ready")
        agent.want(wish(random_base, good, deadly, serial=2))
        for _ in range(2):
            await until(lambda: engines[-1].process.poll() is not None, agent.report)
            engines.append(await asyncio.to_thread(launch_engine, "--port", port, names=()))
        refused = await until_stage(agent, deadly.id, "refused")
        assert "ended 2 times" in refused.message
        await until(lambda: agent.report().ready_ids == {good.id}, agent.report)
        assert engines[-1].process.poll() is None


async def test_an_agent_that_starts_anew_finds_what_is_loaded_and_lets_go_what_is_not_wanted(
    client: EngineClient, engine: Any, tmp_path: Path, store: Path, random_base: Path, publish_named: Publish
) -> None:
    kept, gone = publish_named("plain-a").wanted("kept-r1"), publish_named("plain-b").wanted("gone-r1")
    async with running(build_client("cpu", engine.url), tmp_path / "scratch", store) as agent:
        agent.want(wish(random_base, kept, gone))
        await until(lambda: agent.is_ready, agent.report)
    assert await client.loaded() == {kept.id, gone.id}
    second = Agent(client, tmp_path / "scratch", str(store), "pod-0", look_seconds=0.1)
    second.want(wish(random_base, kept, serial=2))
    assert second.is_catching_up, "until it has looked it says nothing"
    task = asyncio.create_task(second.run())
    await until(lambda: second.report().engine_ready, second.report)
    while second.is_catching_up:
        await asyncio.sleep(0.01)
    assert second.report().ready_ids == {kept.id}
    while await client.loaded() != {kept.id}:
        await asyncio.sleep(0.05)
    second.want(wish(random_base, serial=3))
    await until(lambda: not second.report().adapters, second.report)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_adapter_that_somebody_unloads_is_loaded_again(
    client: EngineClient, engine: Any, tmp_path: Path, store: Path, random_base: Path, publish_named: Publish
) -> None:
    wanted = publish_named("plain-a").wanted("lost-r1")
    async with running(build_client("cpu", engine.url), tmp_path / "scratch", store) as agent:
        agent.want(wish(random_base, wanted))
        await until_stage(agent, wanted.id, "ready")
        await client.unload(wanted.id)
        await until(lambda: agent.report().ready_ids == frozenset(), agent.report)
        await until_stage(agent, wanted.id, "ready")
        agent.want(wish(random_base, serial=2))
        await until(lambda: not agent.report().adapters, agent.report)


async def test_a_list_for_another_engine_is_no_list(client: EngineClient, tmp_path: Path, random_base: Path) -> None:
    agent = Agent(client, tmp_path, str(tmp_path), "pod-0")
    with pytest.raises(ValueError, match="runs cpu, and the list is for vllm"):
        agent.want(wish(random_base, engine="vllm"))
