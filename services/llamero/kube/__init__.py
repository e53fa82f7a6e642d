"""The only Kubernetes I/O: an asynchronous client with its own throttle, and functions by verb over what llamero uses.

Used by the operator and by the command line. What to write and when is decided elsewhere; watching for the operator is kopf's part,
on a session made here.
"""

from llamero.kube.client import ClientOptions, Kube, NoWitness, Witness, connect
from llamero.kube.errors import Away, Conflict, KubeError, NotFound, Refused

__all__ = [
    "Away",
    "ClientOptions",
    "Conflict",
    "Kube",
    "KubeError",
    "NoWitness",
    "NotFound",
    "Refused",
    "Witness",
    "connect",
]
