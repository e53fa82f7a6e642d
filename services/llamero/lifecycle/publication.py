"""The Adapter resource of a run, from the evaluation's answer, and the ModelServer that it is for."""

import json
from typing import Any

from llamero.lifecycle.world import DefaultServer, Publication, World
from llamero.spec import names
from llamero.spec.adapter import AdapterSpec
from llamero.spec.status import EvaluationStatus, JobStatus
from llamero.spec.tasks import Outcome

MAX_CANDIDATE_BYTES = 2_600
OTHER_FILES = "is there already with other files"
"""In the refusal of an Adapter whose name is taken (`kube.children.ensure_adapter`): no waiting helps."""


def keep_candidate(world: World, status: JobStatus, outcome: Outcome) -> str | None:
    """What the status keeps of the adapter until it is published: its spec as JSON, less what job and status say as well.

    None where even that is too long to be kept.
    """
    known = _describe(world, status, outcome.evaluation)
    given = {k: v for k, v in (outcome.adapter_spec or {}).items() if known.get(k) != v and k != "server"}
    given |= {"uri": outcome.adapter_uri, "source": {"job": world.name, "uid": world.uid, "run": status.run}}
    for dropped in ((), ("terms",), ("terms", "licenses")):
        text = json.dumps(
            {k: v for k, v in given.items() if k not in dropped}, separators=(",", ":"), ensure_ascii=False
        )
        if len(json.dumps(text)) <= MAX_CANDIDATE_BYTES:  # as it stands in the status, quotes escaped
            return text
    return None


def _describe(world: World, status: JobStatus, found: EvaluationStatus | None) -> dict[str, Any]:
    """What the job and its status say of the adapter. None of it changes within a run."""
    job, base, training, data = world.job, status.base, status.training, status.data
    if job is None or base is None or training is None:
        return {}
    sources = job.spec.data.sources
    return {
        "sha256": training.adapter_sha256,
        "base": job.spec.base_model.name or job.spec.base_model.uri,
        "baseRevision": job.spec.base_model.revision,
        "baseSha256": base.digest,
        "template": job.spec.data.template,
        "dataDigest": data.digest if data else "",
        "model": job.public_model_name,
        "licenses": sorted({s.license for s in sources if s.license}),
        "terms": sorted({s.terms for s in sources if s.terms}),
        "figures": {
            "baseTokenPerplexity": found.base_token_perplexity if found else None,
            "tunedTokenPerplexity": found.tuned_token_perplexity if found else None,
            "records": found.records if found else 0,
            "lastLoss": training.last_loss,
        },
    }


def find_server_name(world: World) -> str:
    """The ModelServer that is to serve the job's adapters; empty where none is."""
    job = world.job
    if job is None or world.servers is None or not job.spec.rollout.enabled:
        return ""
    base, rollout = job.spec.base_model, job.spec.rollout
    return rollout.server or names.default_server_name(base.name or base.uri or "", base.revision, rollout.engine)


def build_default_server(world: World) -> DefaultServer | None:
    """The ModelServer that is made where there is none of the name; None where the job's adapters are served by none."""
    name = find_server_name(world)
    if world.job is None or not name:
        return None
    return DefaultServer(name, world.job.spec.base_model, world.job.spec.rollout.engine)


def build_publication(world: World, status: JobStatus, name: str) -> Publication | None:
    """The Adapter that must exist; None where what was kept does not describe one."""
    if status.candidate is None:
        return None
    try:
        known = _describe(world, status, status.evaluation)
        spec = AdapterSpec.model_validate(known | json.loads(status.candidate) | {"server": find_server_name(world)})
        return Publication(name, spec, build_default_server(world))
    except ValueError:
        return None


def is_published(world: World, publication: Publication) -> bool:
    """Whether the Adapter of this name is this run's."""
    found = world.adapters.get(publication.name)
    return found is not None and found.sha256 == publication.spec.sha256


def lacks_server(world: World, publication: Publication) -> bool:
    """Whether the ModelServer is still to be made. One that the API server refuses is no reason to hold the run up."""
    server = publication.server
    if server is None or world.servers is None:
        return False
    return server.name not in world.servers and server.name not in world.refused


def find_conflict(world: World, publication: Publication) -> str | None:
    """Why this name can never be this run's: an Adapter has it that holds other files, and adapters never change."""
    found = world.adapters.get(publication.name)
    if found is not None and found.sha256 != publication.spec.sha256:
        return (
            f"The Adapter {publication.name} {OTHER_FILES} (sha256 {found.sha256[:12]}, not "
            f"{publication.spec.sha256[:12]}), and adapters never change."
        )
    refusal = world.refused.get(publication.name, "")
    return f"The API server refuses the Adapter: {refusal}." if OTHER_FILES in refusal else None
