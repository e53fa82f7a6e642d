"""`llamero adapters …`: the Adapters of this machine or of a cluster, and how one that was made elsewhere becomes one.

What is wrong with a folder, and what is made of it, is `adapterimport`'s business.
"""

import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamero.cli.connection import ClusterError, Place, clean_object, cluster_options, print_objects, run_on_cluster
from llamero.cli.errors import CommandError
from llamero.cli.localserver import LocalServerError
from llamero.cli.run import ExitCode
from llamero.cli.servedmodels import see_local
from llamero.cli.serverplaces import WORKDIR, Where, where_options
from llamero.cli.servertables import format_adapters
from llamero.cli.wishes import require_public_name
from llamero.spec.names import ADAPTER_PLURAL
from llamero.storage import StorageError

if TYPE_CHECKING:
    from llamero.kube import Kube

Object = dict[str, Any]
ADAPTERS_LISTING = "llamero adapters list -A"


@click.group()
def adapters() -> None:
    """Trained adapters that servers may serve: list them, import one that was made elsewhere, delete one."""


@adapters.command("list")
@click.option("-o", "--output", type=click.Choice(["json", "yaml"]), help="The objects themselves.")
@click.option("-A", "--all-namespaces", is_flag=True, help="The adapters of all namespaces.")
@where_options
def list_adapters(output: str | None, all_namespaces: bool, where: Where) -> None:
    """Show the adapters with their public names, whether they are served, and why one is refused."""
    local = None if all_namespaces else where.local_servers()
    if local is not None:
        seen = [see_local(s) for s in local if where.server in (None, s.name)]
        _show([a for s in seen for a in s.adapters], output, False, str(where.workdir or WORKDIR))
        return
    run_on_cluster(
        where.place,
        lambda kube: _list_on_cluster(kube, where, output, all_namespaces),
        ADAPTER_PLURAL,
        ADAPTERS_LISTING,
    )


async def _list_on_cluster(kube: "Kube", where: Where, output: str | None, everywhere: bool) -> None:
    from llamero.kube.objects import ADAPTERS

    namespace = None if everywhere else where.place.namespace or kube.namespace
    answer = await kube.request("GET", ADAPTERS.path(namespace), verb="list", kind=ADAPTERS.kind)
    found = [a for a in answer.get("items") or [] if where.server in (None, a["spec"].get("server"))]
    found.sort(key=lambda a: (a["metadata"]["namespace"], a["metadata"]["creationTimestamp"], a["metadata"]["name"]))
    _show(found, output, everywhere, f"namespace {namespace}" if namespace else "the cluster")


def _show(found: list[Object], output: str | None, everywhere: bool, place: str) -> None:
    if output:
        print_objects({"apiVersion": "v1", "kind": "List", "items": [clean_object(a) for a in found]}, output)
    elif not found:
        click.echo(f"No adapters in {place}.", err=True)
    else:
        click.echo(format_adapters(found, datetime.now(UTC), with_namespace=everywhere))


@adapters.command("import", epilog="Ends with 0 done, 1 cluster trouble, 2 refused.")
@click.argument("name")
@click.argument("source", metavar="DIR|URI")
@click.option("--model", required=True, help="The public name that it is to serve.")
@click.option(
    "--base", help="The base model as its server names it: a hub id or a URI. [default: what the folder says]"
)
@click.option("--base-revision", help="The hub revision that the base is pinned to. [default: what the folder says]")
@click.option(
    "--base-folder",
    type=click.Path(path_type=Path),
    help="The base's files on this machine: the adapter is checked against them, and gets golden prompts.",
)
@click.option(
    "--server",
    default="",
    help="The ModelServer that is to serve it, as the newest for its public name. [default: none by itself, only where one pins it]",
)
@click.option(
    "--engine",
    type=click.Choice(["tgi", "vllm", "cpu"]),
    default="tgi",
    show_default=True,
    help="The engine that must be able to serve it.",
)
@click.option(
    "--quantization", type=click.Choice(["nf4"]), help="How the base was held in training; for golden prompts."
)
@click.option(
    "--to", metavar="URI", help="Storage that pods can read: the files are copied below it, and never changed."
)
@click.option(
    "--template", help="The chat template that it was trained with. [default: what the folder says, else base]"
)
@click.option("--stop-token", "stop_tokens", multiple=True, help="A token that ends an answer; may be repeated.")
@click.option(
    "--golden/--no-golden", default=True, help="Make golden prompts where --base-folder is given and there are none."
)
@cluster_options
def import_adapter(
    name: str,
    source: str,
    model: str,
    base: str | None,
    base_revision: str | None,
    base_folder: Path | None,
    server: str,
    engine: Any,
    quantization: Any,
    to: str | None,
    template: str | None,
    stop_tokens: tuple[str, ...],
    golden: bool,
    place: Place,
) -> None:
    """Make the Adapter NAME of an adapter's folder: one on this machine with --to, or what lies at a URI that pods can read."""
    from llamero.cli.adapterfolders import Told
    from llamero.cli.adapterimport import ImportOptions, build_adapter, prepare_import

    told = Told(model, server, base, base_revision, template, stop_tokens, engine, quantization)
    options = ImportOptions(to, base_folder, golden, told)
    try:
        require_public_name(model)
        with tempfile.TemporaryDirectory(prefix="llamero-import-") as work:
            spec = prepare_import(name, source, options, Path(work), lambda text: click.echo(text, err=True))
            manifest = build_adapter(name, spec)
    except (CommandError, StorageError) as error:
        click.echo(str(error), err=True)
        sys.exit(ExitCode.BAD_MANIFEST)
    run_on_cluster(place, lambda kube: _create(kube, place, manifest), ADAPTER_PLURAL, ADAPTERS_LISTING)


@adapters.command("delete", epilog="Ends with 0 done, 1 cluster trouble, 2 refused.")
@click.argument("name")
@where_options
def delete_adapter(name: str, where: Where) -> None:
    """Delete the Adapter NAME. One that serves goes on until another has taken its place, and is removed then."""
    local = where.local_servers()
    if local is None:
        run_on_cluster(where.place, lambda kube: _delete(kube, where.place, name), ADAPTER_PLURAL, ADAPTERS_LISTING)
        return
    found = [s for s in local if where.server in (None, s.name) and s.mark_deleted(name, datetime.now(UTC))]
    if not found:
        known = ", ".join(a.name for s in local if where.server in (None, s.name) for a in s.read_adapters())
        raise LocalServerError(f"There is no adapter {name} here: known are {known or 'none'}.")
    for server in found:
        later = "" if server.is_served() else ", when `llamero serve` runs again"
        click.echo(
            f"Adapter {name} of server {server.name} is being deleted: it goes as soon as no request can go to it{later}."
        )


async def _delete(kube: "Kube", place: Place, name: str) -> None:
    from llamero.kube import objects

    namespace = place.namespace or kube.namespace
    await objects.delete(kube, objects.ADAPTERS, namespace, name)
    click.echo(f"Adapter {namespace}/{name} is being deleted: it goes as soon as no request can go to it.")


async def _create(kube: "Kube", place: Place, manifest: Object) -> None:
    from llamero.kube import Conflict, objects

    namespace, name, spec = place.namespace or kube.namespace, manifest["metadata"]["name"], manifest["spec"]
    wanted = {**manifest, "metadata": {"name": name, "namespace": namespace}}
    try:
        await objects.create(kube, objects.ADAPTERS, namespace, objects.drop_empty_texts(wanted))
    except Conflict as error:
        found = await objects.read(kube, objects.ADAPTERS, namespace, name)
        if found["spec"].get("sha256") != spec["sha256"]:
            raise ClusterError(
                f"There is an Adapter {namespace}/{name} with other files already, and adapters never change: import it under another name."
            ) from error
        click.echo(f"Adapter {namespace}/{name} unchanged: it has these files already.")
        return
    server = spec.get("server")
    follows = (
        f"{server} serves it as {spec['model']}, step by step"
        if server
        else f"a ModelServer that pins it serves it as {spec['model']}"
    )
    click.echo(f"Adapter {namespace}/{name} created: {follows}.")
