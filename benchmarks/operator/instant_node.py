"""A node whose pods end at once with a good answer, in a process of its own: so that what is measured is the operator and the API server.

The training of a job whose name begins with `long` goes on until it is told to end, and tells a new step each second.
Started by run.py: `python instant_node.py URL AUTHORITY TOKEN FOLDER NAME REDIS`; prints `ready` and runs until it is ended.
"""

import asyncio
import hashlib
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY / "tests")]

from cluster.api import Access  # noqa: E402
from cluster.node import NodeOptions, ProcessNode  # noqa: E402
from cluster.runtimes import SimulatedRuntime  # noqa: E402
from redis.asyncio import Redis  # noqa: E402

from llamero.spec.names import progress_key  # noqa: E402
from llamero.spec.status import BaseStatus, DataStatus, EvaluationStatus, TrainingStatus, WorkKind  # noqa: E402
from llamero.spec.tasks import AttemptId, Outcome, ProgressReport  # noqa: E402

DIGEST = hashlib.sha256(b"data").hexdigest()


async def tell_steps(attempt: AttemptId, pod: str, redis: Redis) -> None:
    """Progress of a training that does not end."""
    key = progress_key(attempt.uid, attempt.run, attempt.kind, attempt.attempt)
    total, started = 100_000, datetime.now(UTC)
    for step in range(1, total):
        report = ProgressReport(
            id=attempt,
            pod=pod,
            at=datetime.now(UTC),
            phase="Training",
            activity="training",
            done=step,
            total=total,
            unit="steps",
            started_at=started,
            step=step,
            loss=2.0 + 1.0 / step,
            tokens_per_second=1000.0 + step % 7,
        )
        await redis.set(key, report.model_dump_json(by_alias=True))
        await asyncio.sleep(1.0)


async def answer(pod: dict[str, Any], container: dict[str, Any], redis: Redis) -> tuple[int, str]:
    """What a finished pod of each kind says."""
    environment = {e["name"]: e.get("value", "") for e in container.get("env", [])}
    attempt = AttemptId.model_validate_json(environment["LLAMERO_ATTEMPT"])
    fields: dict[str, Any] = {}
    uri = f"/bench/{attempt.namespace}/{attempt.job}/{attempt.kind}"
    match attempt.kind:
        case WorkKind.PREPARE:
            fields["data"] = DataStatus(
                uri=uri,
                digest=DIGEST,
                read=100,
                kept=90,
                rejected=10,
                reasons={"empty-answer": 10},
                train_examples=80,
                evaluation_examples=10,
                tokens=8000,
            )
            fields["base"] = BaseStatus(uri="/bench/base", digest="b" * 64)
        case WorkKind.TRAIN:
            if attempt.job.startswith("long"):
                await tell_steps(attempt, pod["metadata"]["uid"], redis)
            fields["training"] = TrainingStatus(
                uri=uri,
                steps=100,
                tokens=80_000,
                first_loss="2.000",
                last_loss="1.000",
                tokens_per_second="1000.0",
                adapter_sha256=hashlib.sha256(attempt.uid.encode()).hexdigest(),
            )
        case WorkKind.EVALUATE:
            fields["evaluation"] = EvaluationStatus(
                uri=uri, records=10, base_token_perplexity="10.000", tuned_token_perplexity="2.500", answers=3
            )
            fields["adapter_uri"] = uri
            fields["adapter_spec"] = {
                "sha256": hashlib.sha256(attempt.uid.encode()).hexdigest(),
                "model": attempt.job,
                "base": "bench",
                "baseSha256": "b" * 64,
                "template": "base",
                "stopTokens": ["</s>"],
                "recipeDigest": "r" * 64,
                "dataDigest": DIGEST,
            }
    outcome = Outcome(id=attempt, pod=pod["metadata"]["uid"], exit_code=0, **fields)
    return 0, outcome.to_termination_message()


async def main(url: str, authority: str, token: str, folder: str, name: str, redis_url: str) -> None:
    options = NodeOptions(cpu="100000", memory="1000Ti", pods=100_000, ephemeral_storage="10000Ti")
    access = Access(url, Path(authority), token)
    redis = Redis.from_url(redis_url, max_connections=64)

    async def script(pod: dict[str, Any], container: dict[str, Any]) -> tuple[int, str]:
        return await answer(pod, container, redis)

    async with ProcessNode(access, Path(folder), name, runtime=SimulatedRuntime(script), options=options):
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:7]))
