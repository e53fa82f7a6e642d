"""The stories of a rollout under load: what is done to a server while clients stream, and what must come of it.

Each takes a `Stage` whose load goes on all the while and returns a `Row` of figures; where the story itself goes wrong (a bad adapter
is taken, a rollback does not come) it raises AssertionError. That no request fails and none is answered wrongly is for the caller to ask.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cluster.api import path_of

from llamero.spec.names import engine_name
from llamero.spec.status import Condition
from serving.answers import STREAM_BROKEN, Answer, Tally, Timeline, describe_faults
from serving.fixtures import Tiny
from serving.load import Load
from serving.makers import TinyAdapter, break_rank, corrupt, swap_weights
from serving.world import ADAPTER_KIND, SERVER_KIND, ServingWorld

MODEL, SERVER = "tutor", "tiny"
FIRST = "amber"
REFUSAL_SECONDS = 60.0
CRASH_SECONDS = 120.0
DWELL_SECONDS = 1.5
REVISION = "deployment.kubernetes.io/revision"

# What makes each engine end as soon as it starts, as a person's edit of the ModelServer may.
CRASHING: Mapping[str, Mapping[str, Any]] = {
    "cpu": {"maxTotalTokens": 1_000_000},  # beyond the model's window
    "tgi": {"args": ["--cuda-memory-fraction=0.01"]},
    "vllm": {"args": ["--gpu-memory-utilization=0.01"]},
}
MENDED: Mapping[str, Mapping[str, Any]] = {
    "cpu": {"maxTotalTokens": None},
    "tgi": {"args": []},
    "vllm": {"args": []},
}


@dataclass(frozen=True)
class Row:
    """One story's figures; `seconds` are named."""

    story: str
    engine: str
    tally: Tally
    seconds: Mapping[str, float] = field(default_factory=dict)
    broken: int = 0
    """Streams that ended with a clear error, of those in `tally.failed`."""
    at_risk: int = 0
    """Streams under way on the pod when it was killed."""
    told: str = ""
    """What the resource said of it."""

    @property
    def unexplained(self) -> int:
        """Failed requests that no killed pod excuses."""
        return self.tally.failed - min(self.broken, self.at_risk)


@dataclass
class Stage:
    """A server under load. `serving` is the adapter resource that the name has now."""

    world: ServingWorld
    tiny: Tiny
    engine: str
    replicas: int
    load: Load
    timeline: Timeline
    serving: str
    bad_words: set[str] = field(default_factory=set)

    def opinion(self, text: str) -> str:
        """What people think of an answer."""
        return "down" if set(text.split()) & self.bad_words else "up"

    def word(self, adapter: str) -> str:
        return self.world.words[adapter]

    def row(self, story: str, began: float, **more: Any) -> Row:
        """The figures of all answers since the story began."""
        answers = self.load.since(began)
        row = Row(story, self.engine, Tally.of(answers, self.timeline), **more)
        if row.unexplained or row.tally.wrong:
            print(f"--- {story} ({self.engine})\n{describe_faults(answers, self.timeline)}", flush=True)
        return row

    def settle(self) -> None:
        """Until nothing is under way: what an earlier story left to do (pods to replace, adapters to unload) is none of the next one's."""

        def is_settled() -> bool:
            status = self.world.server_status(SERVER)
            pods = self.world.pods(SERVER)
            return status.phase == "Ready" and len(pods) == len(status.pods) == self.replicas

        self.world.wait(is_settled, "the server to settle")
        self.world.wait_pods(SERVER, self.replicas, adapters=1)

    def dwell(self, seconds: float = DWELL_SECONDS) -> None:
        """Let clients ask on, so that what comes after the last step is seen too."""
        seen, until = len(self.load.answers), time.monotonic() + seconds
        while time.monotonic() < until or len(self.load.answers) < seen + 5:
            time.sleep(0.05)


@contextmanager
def on_stage(
    world: ServingWorld, tiny: Tiny, engine: str, replicas: int = 1, server: str = SERVER, **load: Any
) -> Iterator[Stage]:
    """A server whose name is served by the first adapter, and clients that ask it."""
    timeline = Timeline()
    world.publish(tiny.adapter(FIRST), f"{engine}-first", MODEL, server)
    world.create_server(server, engine, replicas)
    world.wait_served(server, MODEL, f"{engine}-first")
    world.wait_pods(server, replicas, adapters=1)
    timeline.allow(MODEL, FIRST, time.monotonic())
    clients = Load(world.url, [MODEL], **load)
    stage = Stage(world, tiny, engine, replicas, clients, timeline, f"{engine}-first")
    clients.opinion = stage.opinion
    with clients:
        stage.dwell()
        yield stage


def roll_out(stage: Stage, word: str = "birch") -> Row:
    """(a) A good adapter takes over by its steps."""
    adapter = stage.tiny.adapter(word)
    stage.settle()
    world, began = stage.world, time.monotonic()
    old, new = stage.serving, f"{stage.engine}-{word}"
    stage.timeline.allow(MODEL, word, began)
    world.publish(adapter, new, MODEL, SERVER)
    done = world.wait_served(SERVER, MODEL, new)
    stage.timeline.forbid(MODEL, stage.word(old), done)
    stage.serving = new
    stage.dwell()
    return stage.row("a good adapter", began, seconds={"published to all callers": done - began})


def refuse(stage: Stage, name: str, adapter: TinyAdapter, story: str) -> Row:
    """(b) An adapter that must not serve: refused with a sentence, while the old one goes on."""
    stage.settle()
    world, began = stage.world, time.monotonic()
    world.publish(adapter, name, MODEL, SERVER)

    def is_refused() -> bool:
        verified = world.adapter_status(name).condition("Verified")  # type: ignore[arg-type]
        return verified is not None and verified.status == "False"

    refused = world.wait(is_refused, f"{name} to be refused", REFUSAL_SECONDS)
    told = world.adapter_status(name).condition("Verified")  # type: ignore[arg-type]
    assert told is not None
    world.wait_pods(SERVER, stage.replicas, adapters=1)
    status = world.name_status(SERVER, MODEL)
    assert status is not None and status.adapter == stage.serving, status
    stage.dwell()
    world.delete(ADAPTER_KIND, name)
    path = world.stack.path(name, ADAPTER_KIND)
    world.wait(lambda: world.stack.plane.api.find(path) is None, f"{name} to go")
    return stage.row(
        story, began, seconds={"published to refused": refused - began}, told=f"{told.reason}: {told.message}"
    )


def bad_adapters(stage: Stage) -> list[Row]:
    """(b) A wrong rank, a damaged file, and one that answers otherwise than it was measured."""
    tiny, good = stage.tiny, stage.tiny.adapter("cedar")
    wrong_rank = tiny.variant("wrong-rank", lambda folder: break_rank(tiny.base, good, folder))
    damaged = tiny.variant("damaged", lambda folder: corrupt(good, folder))
    another = tiny.variant("another", lambda folder: swap_weights(tiny.base, good, tiny.adapter("delta"), folder))
    return [
        refuse(stage, f"{stage.engine}-rank", wrong_rank, "an adapter of a wrong rank"),
        refuse(stage, f"{stage.engine}-damaged", damaged, "an adapter with a damaged file"),
        refuse(stage, f"{stage.engine}-another", another, "an adapter that is not the one measured"),
    ]


def crash_loop(stage: Stage) -> Row:
    """(c) A change of the server whose engine ends at every start: the old pods go on, and the server says so."""
    stage.settle()
    world, began = stage.world, time.monotonic()
    before = {pod["metadata"]["uid"] for pod in world.pods(SERVER)}
    world.patch(SERVER_KIND, SERVER, {"engine": dict(CRASHING[stage.engine])})

    def crash_told() -> Condition | None:
        found = world.server_status(SERVER).conditions
        return next((c for c in found if c.type == "Ready" and c.status == "False" and c.reason == "PodsFail"), None)

    told_at = world.wait(crash_told, "the crash loop to be told in a condition", CRASH_SECONDS)
    told = crash_told()
    assert told is not None
    assert before <= {pod["metadata"]["uid"] for pod in world.pods(SERVER)}, "a pod that worked was taken away"
    stage.dwell()
    world.patch(SERVER_KIND, SERVER, {"engine": dict(MENDED[stage.engine])})

    def is_mended() -> bool:
        status = world.server_status(SERVER)
        return status.phase == "Ready" and len(world.pods(SERVER)) == stage.replicas

    mended = world.wait(is_mended, "the server to be well again")
    stage.dwell()
    return stage.row(
        "an engine that crash-loops",
        began,
        seconds={"changed to told": told_at - began, "mended to well": mended - told_at},
        told=f"{told.reason}: {told.message}",
    )


def answer_badly(stage: Stage, word: str = "ember") -> Row:
    """(d) A sound adapter that people vote down: it goes back by itself and says why."""
    adapter = stage.tiny.adapter(word)
    stage.settle()
    world, began = stage.world, time.monotonic()
    new = f"{stage.engine}-{word}"
    stage.bad_words.add(word)
    stage.timeline.allow(MODEL, word, began)
    world.publish(adapter, new, MODEL, SERVER)

    def is_rolled_back() -> bool:
        found = world.adapter_status(new).condition("RolledBack")  # type: ignore[arg-type]
        return found is not None and found.status == "True"

    world.wait(is_rolled_back, f"{new} to be rolled back")
    done = world.wait_taken_in(SERVER, MODEL, 1)
    stage.timeline.forbid(MODEL, word, done)
    status = world.name_status(SERVER, MODEL)
    assert status is not None and status.adapter == stage.serving, status
    stage.dwell()
    met = [a for a in stage.load.since(began) if word in a.words]
    assert met, "nobody met the bad adapter: the story proves nothing"
    told = world.adapter_status(new).condition("RolledBack")  # type: ignore[arg-type]
    assert told is not None
    first = min(a.started for a in met)
    return stage.row(
        "an adapter that answers badly",
        began,
        seconds={"first bad answer to last": max(a.ended for a in met) - first, "to rolled back": done - first},
        told=f"{told.reason}: {told.message}",
    )


def kill_pod(stage: Stage) -> Row:
    """(e) An engine is killed in the middle of streams: those end with a clear error, and no other."""
    stage.settle()
    world, began = stage.world, time.monotonic()
    pod = max(world.pods(SERVER), key=lambda p: str(p["metadata"]["name"]))
    address = pod["status"]["podIP"]
    node, name = world.node_of(pod), pod["metadata"]["name"]
    restarts = _restarts(pod)
    on_pod, looked = _under_way(world, address)
    killed = time.monotonic()
    node.kill_container(name, world.namespace, "engine", 9)
    dead = time.monotonic()

    def is_back() -> bool:
        now = next((p for p in world.pods(SERVER) if p["metadata"]["name"] == name), None)
        return now is not None and _restarts(now) > restarts and _is_engine_ready(now)

    world.wait(is_back, "the engine to be started again")
    back = world.wait_pods(SERVER, stage.replicas, adapters=1)
    stage.dwell()
    failed = [a for a in stage.load.since(began) if a.fault]
    broken = [a for a in failed if _was_broken_off(a, killed, dead)]
    # Those on the pod at the look, and those that came to any pod between the look and its death: no other may end.
    came_later = [a for a in stage.load.since(began) if looked <= a.started <= dead and a.ended >= killed]
    return stage.row(
        "a pod killed mid-stream",
        began,
        seconds={"killed to all ready": back - killed},
        broken=len(broken),
        at_risk=on_pod + len(came_later),
    )


def drain_node(stage: Stage) -> Row:
    """(f) A node with a replica on it is drained: the pod moves, nobody notices."""
    stage.settle()
    world, began = stage.world, time.monotonic()
    nodes = _spread(stage)
    world.drain(nodes[-1])
    drained = time.monotonic()
    back = world.wait_pods(SERVER, stage.replicas, adapters=1)
    stage.dwell()
    world.uncordon(nodes[-1])
    return stage.row(
        "a node drain", began, seconds={"to drain": drained - began, "to all ready again": max(back, drained) - began}
    )


def _spread(stage: Stage) -> list[str]:
    """The nodes that the pods are on; where rolling restarts have brought all to one, a pod is moved first."""
    world = stage.world
    nodes = sorted({pod["spec"]["nodeName"] for pod in world.pods(SERVER)})
    if len(nodes) == 1:
        world.cordon(nodes[0])
        pod = world.pods(SERVER)[0]["metadata"]["name"]
        world.stack.plane.api.delete(path_of("v1", "Pod", world.namespace, pod))
        world.wait(lambda: len({p["spec"].get("nodeName") for p in world.pods(SERVER)}) > 1, "a pod on another node")
        stage.settle()
        world.uncordon(nodes[0])
        nodes = sorted({pod["spec"]["nodeName"] for pod in world.pods(SERVER)})
    return nodes


def gather(stage: Stage, words: tuple[str, str] = ("cedar", "delta")) -> tuple[Row, int]:
    """Two adapters for two further names come close together; how often the pods were given another template for them."""
    adapters = {f"{word}-fan": stage.tiny.adapter(word) for word in words}
    stage.settle()
    world, began = stage.world, time.monotonic()
    path = path_of("apps/v1", "Deployment", world.namespace, engine_name(SERVER))
    revision = int(world.stack.plane.api.get(path)["metadata"]["annotations"][REVISION])
    for model, adapter in adapters.items():
        world.publish(adapter, f"{stage.engine}-{adapter.word}", model, SERVER)
    for model, adapter in adapters.items():
        served = world.wait_served(SERVER, model, f"{stage.engine}-{adapter.word}")
        stage.timeline.allow(model, adapter.word, began)
        stage.load.models.append(model)
    stage.settle()
    stage.dwell()
    stage.load.models[:] = [MODEL]
    row = stage.row("two adapters at once", began, seconds={"published to both served": served - began})
    return row, int(world.stack.plane.api.get(path)["metadata"]["annotations"][REVISION]) - revision


def restart_operator(stage: Stage, word: str = "fjord") -> Row:
    """(g) The operator is killed while a canary has half the callers, and started again: the rollout goes on where it was."""
    adapter = stage.tiny.adapter(word)
    stage.settle()
    world, began = stage.world, time.monotonic()
    old, new = stage.serving, f"{stage.engine}-{word}"
    stage.timeline.allow(MODEL, word, began)
    world.publish(adapter, new, MODEL, SERVER)
    world.wait_taken_in(SERVER, MODEL, 2)
    begun_at = world.adapter_status(new).attempted_at
    world.stack.operator.kill()
    stage.dwell()
    killed = time.monotonic()
    world.stack.operator.start()
    done = world.wait_served(SERVER, MODEL, new)
    assert begun_at is not None
    assert world.adapter_status(new).attempted_at == begun_at, "the rollout began anew"
    stage.timeline.forbid(MODEL, stage.word(old), done)
    stage.serving = new
    stage.dwell()
    return stage.row("the operator killed in a rollout", began, seconds={"started again to all callers": done - killed})


def delete_serving(stage: Stage, back_to: str) -> Row:
    """(h) The Adapter that serves is deleted: the one before takes over, and the deletion waits until nobody uses it."""
    stage.settle()
    world, began = stage.world, time.monotonic()
    gone = stage.serving
    stage.timeline.allow(MODEL, stage.word(back_to), began)
    world.delete(ADAPTER_KIND, gone)
    done = world.wait_served(SERVER, MODEL, back_to)
    stage.timeline.forbid(MODEL, stage.word(gone), done)
    path = world.stack.path(gone, ADAPTER_KIND)
    released = world.wait(lambda: world.stack.plane.api.find(path) is None, f"{gone} to go")
    stage.serving = back_to
    stage.dwell()
    seconds = {"deleted to the other serving": done - began, "to released": released - began}
    return stage.row("the serving adapter deleted", began, seconds=seconds)


def _restarts(pod: Mapping[str, Any]) -> int:
    statuses = pod["status"].get("containerStatuses") or []
    return sum(s["restartCount"] for s in statuses if s["name"] == "engine")


def _is_engine_ready(pod: Mapping[str, Any]) -> bool:
    return any(s["name"] == "engine" and s["ready"] for s in pod["status"].get("containerStatuses") or [])


def _under_way(world: ServingWorld, address: str) -> tuple[int, float]:
    """Waits until a stream is under way on the pod at an address; how many there are, and when that was asked."""
    for _ in range(400):
        asked = time.monotonic()
        found = sum(f.requests for f in world.chat_report().in_flight if f"//{address}:" in f.backend)
        if found:
            return found, asked
        time.sleep(0.01)
    raise AssertionError("no stream came to the pod: nothing would be proven by its end")


def _was_broken_off(answer: Answer, killed: float, dead: float) -> bool:
    """A stream that was under way at the kill and ended with an error that says what happened."""
    is_clear = answer.fault == STREAM_BROKEN and bool(answer.error_message)
    return is_clear and answer.started <= dead and answer.ended >= killed


Story = Callable[[Stage], Row | list[Row]]
STORIES: Mapping[str, Story] = {
    "a": roll_out,
    "b": bad_adapters,
    "c": crash_loop,
    "d": answer_badly,
    "e": kill_pod,
    "f": drain_node,
    "g": restart_operator,
}


def play(stage: Stage, letters: str) -> list[Row]:
    """The stories in order."""
    rows: list[Row] = []
    for letter in letters:
        found = STORIES[letter](stage)
        rows += found if isinstance(found, list) else [found]
    return rows
