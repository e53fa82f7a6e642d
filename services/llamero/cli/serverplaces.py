"""Where servers are looked for: in this machine's work folders or on a cluster, and the options that say which of them is meant."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamero.cli.connection import Place, cluster_options
from llamero.cli.errors import CommandError
from llamero.cli.localserver import LocalServer, LocalServerError, find_servers
from llamero.cli.run import ExitCode
from llamero.cli.servedmodels import SeenServer

if TYPE_CHECKING:
    from llamero.kube import Kube

WORKDIR = Path("runs")
SERVERS_LISTING = "llamero servers -A"


@dataclass(frozen=True)
class Where:
    """Where servers are looked for: in a work folder of this machine, or on a cluster."""

    server: str | None
    workdir: Path | None
    is_local: bool
    place: Place

    def local_servers(self) -> list[LocalServer] | None:
        """This machine's, where it is meant: when asked for, or when it has any and no cluster is named. Raises LocalServerError."""
        names_cluster = any((self.place.namespace, self.place.context, self.place.kubeconfig))
        if self.workdir or self.is_local:
            if names_cluster:
                raise click.UsageError(
                    "--workdir and --local mean this machine, --namespace and --context a cluster: choose."
                )
            folder = self.workdir or WORKDIR
            if found := find_servers(folder):
                return found
            raise LocalServerError(
                f"{folder} has no local server: start one with `llamero serve --base DIR --adapter NAME=DIR`."
            )
        return None if names_cluster else find_servers(WORKDIR) or None


def where_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which server is meant; the command gets them as `where`."""

    @cluster_options
    @click.option("--server", help="The server. [default: whichever has the model]")
    @click.option("--local", "is_local", is_flag=True, help=f"The servers of this machine, in {WORKDIR}.")
    @click.option(
        "--workdir",
        type=click.Path(path_type=Path),
        help=f"The servers of this machine in that work folder. [default: {WORKDIR}, where it has any and no cluster is named]",
    )
    @wraps(command)
    def with_where(
        *args: Any, place: Place, server: str | None, workdir: Path | None, is_local: bool, **kwargs: Any
    ) -> None:
        try:
            command(*args, where=Where(server, workdir, is_local, place), **kwargs)
        except CommandError as error:
            click.echo(str(error), err=True)
            sys.exit(ExitCode.BAD_MANIFEST)

    return with_where


def choose_local(workdir: Path, server: str | None) -> LocalServer:
    """The local server that is named, or the only one. Raises LocalServerError."""
    found = find_servers(workdir)
    chosen = [s for s in found if server in (None, s.name)]
    if len(chosen) == 1:
        return chosen[0]
    known = ", ".join(s.name for s in found)
    if not found:
        raise LocalServerError(
            f"{workdir} has no local server: start one with `llamero serve --base DIR --adapter NAME=DIR`."
        )
    if server is None:
        raise LocalServerError(f"{workdir} has several local servers ({known}): --server says which is meant.")
    raise LocalServerError(f"There is no local server {server} in {workdir}: known are {known}.")


async def see_cluster(kube: "Kube", namespace: str | None) -> list[SeenServer]:
    """The ModelServers of a namespace (None: of all), each with the Adapters of its own."""
    from llamero.kube.objects import ADAPTERS
    from llamero.kube.servers import observe_servers

    servers = await observe_servers(kube, namespace)
    answer = await kube.request("GET", ADAPTERS.path(namespace), verb="list", kind=ADAPTERS.kind)
    adapters = list(answer.get("items") or [])
    seen = []
    for raw in servers:
        own = raw["metadata"]["namespace"]
        mine = tuple(a for a in adapters if a["metadata"]["namespace"] == own)
        seen.append(SeenServer(raw, mine, f"ModelServer {own}/{raw['metadata']['name']}"))
    return seen
