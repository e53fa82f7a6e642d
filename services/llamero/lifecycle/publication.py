"""The Adapter resource of a run, from the evaluation's answer."""

import json
from typing import Any

from llamero.lifecycle.world import Publication, World
from llamero.spec.adapter import AdapterSpec
from llamero.spec.status import JobStatus
from llamero.spec.tasks import Outcome

MAX_CANDIDATE_BYTES = 2_600


def keep_candidate(world: World, status: JobStatus, outcome: Outcome) -> str | None:
    """What the status keeps of the adapter until it is published: its spec as JSON, less what can be told again."""
    given: dict[str, Any] = dict(outcome.adapter_spec or _describe(world, status, outcome))
    given |= {"uri": outcome.adapter_uri, "source": {"job": world.name, "uid": world.uid, "run": status.run}}
    for dropped in ((), ("terms",), ("terms", "licenses")):
        text = json.dumps(
            {k: v for k, v in given.items() if k not in dropped}, separators=(",", ":"), ensure_ascii=False
        )
        if (
            len(json.dumps(text, ensure_ascii=False).encode()) <= MAX_CANDIDATE_BYTES
        ):  # as it stands in the status, quotes escaped
            return text
    return text[:4096] if len(text) <= 4096 else None


def _describe(world: World, status: JobStatus, outcome: Outcome) -> dict[str, Any]:
    """The spec where the answer was too long to hold it: from what the job and its status say."""
    job, base, training, data = world.job, status.base, status.training, status.data
    if job is None or base is None or training is None:
        return {}
    found = outcome.evaluation
    return {
        "sha256": training.adapter_sha256,
        "base": job.spec.base_model.name or job.spec.base_model.uri,
        "baseRevision": job.spec.base_model.revision,
        "baseSha256": base.digest,
        "template": job.spec.data.template,
        "dataDigest": data.digest if data else "",
        "model": job.public_model_name,
        "figures": {
            "baseTokenPerplexity": found.base_token_perplexity if found else None,
            "tunedTokenPerplexity": found.tuned_token_perplexity if found else None,
            "records": found.records if found else 0,
            "lastLoss": training.last_loss,
        },
    }


def build_publication(world: World, status: JobStatus, name: str) -> Publication | None:
    """The Adapter that must exist; None where what was kept does not describe one. Licences and terms come from the job."""
    if status.candidate is None or world.job is None:
        return None
    try:
        given = json.loads(status.candidate)
        sources = world.job.spec.data.sources
        given.setdefault("licenses", sorted({s.license for s in sources if s.license}))
        given.setdefault("terms", sorted({s.terms for s in sources if s.terms}))
        return Publication(name, AdapterSpec.model_validate(given))
    except ValueError:
        return None


def is_published(world: World, publication: Publication) -> bool:
    """Whether the Adapter of this name is this run's."""
    found = world.adapters.get(publication.name)
    return found is not None and found.sha256 == publication.spec.sha256
