"""The Secret that pods read Redis' address from, so that no manifest shows it. One a namespace, shared by its jobs."""

import base64
from typing import Any

from llamero.spec import names
from llamero_operator.resources.environment import REDIS_KEY, REDIS_SECRET

Manifest = dict[str, Any]


def build_redis_secret(namespace: str, redis_url: str) -> Manifest:
    """The Secret `llamero-redis` with the address under `url`."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {
            "name": REDIS_SECRET,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/name": "llamero", "app.kubernetes.io/managed-by": names.FIELD_MANAGER},
        },
        "data": {REDIS_KEY: base64.b64encode(redis_url.encode()).decode()},
    }
