"""`llamero servers`: the servers of this machine or of a cluster, as `llamero get` shows jobs."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from llamero.cli.connection import clean_object, print_objects, run_on_cluster
from llamero.cli.servedmodels import SeenServer, choose_servers, see_local
from llamero.cli.serverplaces import SERVERS_LISTING, WORKDIR, Where, see_cluster, where_options
from llamero.cli.servertables import format_server, format_servers
from llamero.spec.names import SERVER_PLURAL

if TYPE_CHECKING:
    from llamero.kube import Kube


@click.command()
@click.argument("name", required=False)
@click.option(
    "-o", "--output", type=click.Choice(["wide", "json", "yaml"]), help="More columns, or the objects themselves."
)
@click.option("-A", "--all-namespaces", is_flag=True, help="The servers of all namespaces.")
@where_options
def servers(name: str | None, output: str | None, all_namespaces: bool, where: Where) -> None:
    """Show the servers; with NAME its public names, adapters, pods and conditions."""
    if name and all_namespaces:
        raise click.UsageError("NAME is looked for in one namespace: leave out --all-namespaces.")
    local = None if all_namespaces else where.local_servers()
    if local is not None:
        _show_servers([see_local(s) for s in local], name or where.server, output, False, f"{where.workdir or WORKDIR}")
        return
    run_on_cluster(
        where.place,
        lambda kube: _servers_on_cluster(kube, where, name, output, all_namespaces),
        SERVER_PLURAL,
        SERVERS_LISTING,
    )


async def _servers_on_cluster(
    kube: "Kube", where: Where, name: str | None, output: str | None, everywhere: bool
) -> None:
    namespace = where.place.namespace or kube.namespace
    seen = await see_cluster(kube, None if everywhere else namespace)
    place = "the cluster" if everywhere else f"namespace {namespace}"
    _show_servers(seen, name or where.server, output, everywhere, place)


def _show_servers(seen: list[SeenServer], name: str | None, output: str | None, everywhere: bool, place: str) -> None:
    chosen = choose_servers(seen, name)
    if output in ("json", "yaml"):
        items = [clean_object(s.raw) for s in chosen]
        print_objects(items[0] if name else {"apiVersion": "v1", "kind": "List", "items": items}, output)
    elif not chosen:
        click.echo(f"No servers in {place}.", err=True)
    elif name is not None and output is None:
        click.echo(format_server(chosen[0], _now()))
    else:
        click.echo(format_servers(chosen, _now(), wide=output == "wide", with_namespace=everywhere))


def _now() -> datetime:
    return datetime.now(UTC)
