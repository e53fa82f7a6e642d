"""The Adapter resource of a publication. It has no owner: a job's end, TTL or deletion never takes a served adapter away."""

from typing import Any

from llamero.lifecycle.world import Publication
from llamero.spec import names
from llamero.spec.adapter import ADAPTER_KIND
from llamero.spec.job import API_VERSION

Manifest = dict[str, Any]


def build_adapter(publication: Publication, namespace: str) -> Manifest:
    """The Adapter as it is created; its labels say which job and run it came from, also when the job is gone."""
    source = publication.spec.source
    labels = {"app.kubernetes.io/name": "llamero", "app.kubernetes.io/managed-by": names.FIELD_MANAGER}
    if source is not None:
        labels |= {names.LABEL_JOB: source.job, names.LABEL_UID: source.uid, names.LABEL_RUN: str(source.run)}
    return {
        "apiVersion": API_VERSION,
        "kind": ADAPTER_KIND,
        "metadata": {"name": publication.name, "namespace": namespace, "labels": labels},
        "spec": publication.spec.to_json_dict(),
    }
