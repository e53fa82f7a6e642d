"""The ModelServer that is made for a base and an engine where a job's adapters are to be served and there is none. Nobody owns it."""

from typing import Any

from llamero.lifecycle.world import DefaultServer
from llamero.spec import names
from llamero.spec.job import API_VERSION
from llamero.spec.server import SERVER_KIND

Manifest = dict[str, Any]


def build_default_server(server: DefaultServer, namespace: str) -> Manifest:
    """The ModelServer as it is created: base and engine are said, all else is left to the defaults."""
    return {
        "apiVersion": API_VERSION,
        "kind": SERVER_KIND,
        "metadata": {
            "name": server.name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/name": "llamero", "app.kubernetes.io/managed-by": names.FIELD_MANAGER},
        },
        "spec": {"baseModel": server.base.to_json_dict(), "engine": {"type": server.engine}},
    }
