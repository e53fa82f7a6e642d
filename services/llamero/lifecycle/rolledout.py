"""What a job says of its adapter's rollout, read from the Adapter: the job's own work is done once it is published."""

from typing import Literal

from llamero.lifecycle.world import World
from llamero.spec.status import ConditionType, JobStatus

Truth = Literal["True", "False", "Unknown"]

PROMOTED = "Promoted"
STILL_SERVES = frozenset({"Serving", "NoPod", "DeletionWaits"})
"""Reasons of an Adapter's `Serving` by which it is the one that its public name asks for."""


def describe_rollout(world: World, status: JobStatus) -> tuple[Truth, str, str] | None:
    """Status, reason and message of `RolledOut`, which speaks of the newest published adapter; None where there is nothing to say.

    That is so before an adapter is published, and where the operator's settings serve none.
    """
    adapter = status.adapter
    if adapter is None or world.servers is None:
        return None
    spec, found = world.adapters.get(adapter.name), world.adapter_statuses.get(adapter.name)
    if spec is None or found is None:
        return "Unknown", "AdapterGone", f"There is no Adapter {adapter.name} any more."
    serving = found.condition(ConditionType.SERVING)
    verified, rolled_back = found.condition(ConditionType.VERIFIED), found.condition(ConditionType.ROLLED_BACK)
    if rolled_back is not None and rolled_back.status == "True":
        return "False", "RolledBack", f"{adapter.name}: {rolled_back.message}"
    if verified is not None and verified.status == "False":
        return "False", verified.reason, f"{adapter.name}: {verified.message}"
    if serving is None:
        return "Unknown", *_describe_wait(world, adapter.name, spec.server)
    said = f"{adapter.name}: {serving.message}"
    if serving.status == "True":
        return ("Unknown", "Canary", said) if serving.reason == "Canary" else ("True", PROMOTED, said)
    was_promoted = rolled_back is not None and rolled_back.reason == PROMOTED
    if serving.reason in STILL_SERVES and was_promoted:
        return "True", PROMOTED, said
    if serving.reason == "OtherServes":
        return "False", "Superseded", said
    return "Unknown", "Waiting", said


def _describe_wait(world: World, adapter: str, server: str) -> tuple[str, str]:
    if not server:
        return "NotServed", f"{adapter} is not served: rollout.enabled is false."
    if world.servers is not None and server not in world.servers:
        refusal = world.refused.get(server)
        why = f": the API server refuses it: {refusal}" if refusal else ", and nobody has made it"
        return "Waiting", f"{adapter} waits for the ModelServer {server}, which is not there{why}."
    return "Waiting", f"{adapter} waits for the ModelServer {server}."
