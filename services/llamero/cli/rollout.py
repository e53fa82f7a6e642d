"""`llamero rollout …`: what public names are served by, and what a person wishes of their rollouts.

On a laptop the wishes go into a local server's folder, on a cluster into the ModelServer: the same values by the same functions
(`wishes`). Whether they are carried out is the business of whoever reconciles the server.
"""

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llamero.cli import wishes
from llamero.cli.connection import ClusterError, clean_object, print_objects, run_on_cluster
from llamero.cli.errors import CommandError
from llamero.cli.localserver import LocalServer
from llamero.cli.run import ExitCode
from llamero.cli.servedmodels import SeenServer, choose_servers, find_model, see_local
from llamero.cli.serverplaces import SERVERS_LISTING, WORKDIR, Where, choose_local, see_cluster, where_options
from llamero.cli.servertables import format_name, format_names
from llamero.cli.wishes import KnownName, Wish, WishError, replace_entry, require_public_name
from llamero.spec.names import SERVER_PLURAL
from llamero.storage import StorageError

if TYPE_CHECKING:
    from llamero.kube import Kube

EDIT_TRIES = 5
POLL_SECONDS = 1.0
NOT_DONE = 1

MODEL = click.argument("model")
ADAPTER_OPTION = click.option("--adapter", help="The Adapter that is meant.")


@click.group()
def rollout() -> None:
    """How new adapters take over public names: look at it, hold it, hurry it, undo it."""


@rollout.command()
@click.argument("model", required=False)
@click.option("-o", "--output", type=click.Choice(["json", "yaml"]), help="The servers' objects themselves.")
@click.option(
    "--wait",
    is_flag=True,
    help="Wait until no adapter is taking over MODEL; ends with 1 where it was rolled back or refused.",
)
@click.option("--timeout", type=float, help="With --wait: at most so many seconds.")
@where_options
def status(model: str | None, output: str | None, wait: bool, timeout: float | None, where: Where) -> None:
    """Show what serves each public name and what takes over; with MODEL all about it."""
    if wait and not model:
        raise click.UsageError("--wait needs a MODEL.")
    local = where.local_servers()
    if local is not None:
        _show([see_local(s) for s in local], model, where.server, output)
        if wait and model:
            _wait_locally(local, model, where.server, timeout)
        return
    run_on_cluster(
        where.place,
        lambda kube: _status_on_cluster(kube, where, model, output, wait, timeout),
        SERVER_PLURAL,
        SERVERS_LISTING,
    )


def _show(servers: list[SeenServer], model: str | None, server: str | None, output: str | None) -> None:
    chosen = choose_servers(servers, server) if model is None else [find_model(servers, model, server)]
    if output:
        items = [clean_object(s.raw) for s in chosen]
        print_objects(items[0] if model else {"apiVersion": "v1", "kind": "List", "items": items}, output)
    elif model is not None:
        click.echo(format_name(chosen[0], chosen[0].describe(model), _now()))
    else:
        click.echo(format_names(chosen, _now()))


async def _status_on_cluster(
    kube: "Kube", where: Where, model: str | None, output: str | None, wait: bool, timeout: float | None
) -> None:
    _show(await see_cluster(kube, where.place.namespace or kube.namespace), model, where.server, output)
    deadline = time.monotonic() + timeout if timeout is not None else None
    while wait and model:
        seen = await see_cluster(kube, where.place.namespace or kube.namespace)
        if _is_over(find_model(seen, model, where.server).describe(model), deadline):
            return
        await asyncio.sleep(POLL_SECONDS)


def _wait_locally(servers: list[LocalServer], model: str, server: str | None, timeout: float | None) -> None:
    deadline = time.monotonic() + timeout if timeout is not None else None
    while not _is_over(find_model([see_local(s) for s in servers], model, server).describe(model), deadline):
        time.sleep(POLL_SECONDS)


def _is_over(known: KnownName, deadline: float | None) -> bool:
    """Whether nothing is taking over; ends the command where that is because of a rollback or the like, or where time is up."""
    told = known.status
    wanted = known.foresee(known.entry or None)
    if told is not None and told.canary is None and wanted in (None, told.adapter):
        if told.state == "Serving":
            click.echo(f"{told.adapter or 'The base'} serves all callers of {known.name}.")
            return True
        if told.state != "Waiting" or known.adapters:  # else an adapter may still come
            click.echo(f"{known.name} is {told.state}: {told.message}", err=True)
            sys.exit(NOT_DONE)
    if deadline is not None and time.monotonic() > deadline:
        at = f"{told.state}: {told.message}" if told else "nobody has seen it yet"
        click.echo(f"Not over within the time given: {known.name} is {at}", err=True)
        sys.exit(NOT_DONE)
    return False


@rollout.command()
@click.argument("assignment", metavar="NAME=DIR")
@click.option("--server", help="The local server. [default: the only one]")
@click.option("--workdir", type=click.Path(path_type=Path), default=WORKDIR, show_default=True, help="Its work folder.")
def start(assignment: str, server: str | None, workdir: Path) -> None:
    """Let the adapter in DIR take over the public name NAME of a local server, step by step. (On a cluster: `llamero adapters import`.)

    Ends with 0 done, 2 refused.
    """
    from llamero.cli.localimport import import_locally

    try:
        name, folder = parse_assignment(assignment)
        local = choose_local(workdir, server)
        imported = import_locally(local, name, folder, _now(), lambda text: click.echo(text, err=True))
    except (CommandError, StorageError) as error:
        click.echo(str(error), err=True)
        sys.exit(ExitCode.BAD_MANIFEST)
    adapter = imported.adapter.name
    if not imported.is_new:
        click.echo(
            f"{name} unchanged: {folder} is its adapter {adapter} already (`llamero rollout pin {name} --adapter {adapter}` goes back to it)."
        )
        return
    known = see_local(local).describe(name)
    chosen = known.foresee(known.entry or None)
    if chosen == adapter:
        click.echo(f"{name} gets the adapter {adapter}: it takes over step by step{_or_later(local)}.")
    else:
        click.echo(
            f"{name} gets the adapter {adapter}, but {chosen} goes on: `llamero rollout status {name}` says what is wished."
        )


def parse_assignment(text: str) -> tuple[str, Path]:
    """NAME=DIR. Raises WishError."""
    name, sign, folder = text.partition("=")
    if not sign or not name or not folder:
        raise WishError(f"{text} is no NAME=DIR: give the public name, an equals sign and the adapter's folder.")
    require_public_name(name)
    return name, Path(folder)


@rollout.command()
@MODEL
@where_options
def pause(model: str, where: Where) -> None:
    """Hold MODEL's rollout at the step where it is."""
    _wish(where, model, wishes.pause)


@rollout.command()
@MODEL
@where_options
def resume(model: str, where: Where) -> None:
    """Let MODEL's held rollout go on."""
    _wish(where, model, wishes.resume)


@rollout.command()
@MODEL
@ADAPTER_OPTION
@where_options
def promote(model: str, adapter: str | None, where: Where) -> None:
    """Give the adapter that takes over MODEL all callers at once, also one that was rolled back by itself."""
    _wish(where, model, lambda known: wishes.promote(known, adapter))


@rollout.command()
@MODEL
@ADAPTER_OPTION
@where_options
def rollback(model: str, adapter: str | None, where: Where) -> None:
    """Take the adapter that takes over MODEL (or serves it) out of use; the one before serves again."""
    _wish(where, model, lambda known: wishes.rollback(known, adapter))


@rollout.command()
@MODEL
@ADAPTER_OPTION
@where_options
def retry(model: str, adapter: str | None, where: Where) -> None:
    """Give what was rolled back of MODEL another try."""
    _wish(where, model, lambda known: wishes.retry(known, adapter))


@rollout.command()
@MODEL
@ADAPTER_OPTION
@where_options
def pin(model: str, adapter: str | None, where: Where) -> None:
    """Let one adapter serve MODEL (by default the one that does), whichever is newest."""
    _wish(where, model, lambda known: wishes.pin(known, adapter))


@rollout.command()
@MODEL
@where_options
def unpin(model: str, where: Where) -> None:
    """Let the newest adapter serve MODEL again."""
    _wish(where, model, wishes.unpin)


MakeWish = Callable[[KnownName], Wish]


def _wish(where: Where, model: str, make: MakeWish) -> None:
    local = where.local_servers()
    if local is not None:
        _wish_locally(local, model, where.server, make)
        return
    run_on_cluster(where.place, lambda kube: _wish_on_cluster(kube, where, model, make), SERVER_PLURAL, SERVERS_LISTING)


def _wish_locally(servers: list[LocalServer], model: str, server: str | None, make: MakeWish) -> None:
    seen = find_model([see_local(s) for s in servers], model, server)
    local = next(s for s in servers if s.name == seen.name)
    with local.edit() as raw:
        current = replace(seen, raw={**raw, "status": seen.raw["status"]})
        models, sentence, is_changed = _apply(current, model, make)
        raw["spec"]["models"] = models
    _tell(model, f"server {local.name}", sentence, is_changed, _or_later(local))


async def _wish_on_cluster(kube: "Kube", where: Where, model: str, make: MakeWish) -> None:
    from llamero.kube import Conflict, objects

    namespace = where.place.namespace or kube.namespace
    for _ in range(EDIT_TRIES):
        seen = find_model(await see_cluster(kube, namespace), model, where.server)
        models, sentence, is_changed = _apply(seen, model, make)
        body = {"metadata": {"resourceVersion": seen.raw["metadata"]["resourceVersion"]}, "spec": {"models": models}}
        try:
            if is_changed:
                await objects.patch(kube, objects.SERVERS, namespace, seen.name, body)
        except Conflict:
            continue  # it has changed meanwhile: look again
        _tell(model, f"ModelServer {namespace}/{seen.name}", sentence, is_changed, "")
        return
    raise ClusterError(f"ModelServer {namespace}/{seen.name} is being changed by others all the time: try again.")


def _apply(server: SeenServer, model: str, make: MakeWish) -> tuple[list[dict[str, Any]], str, bool]:
    """The list `spec.models` as it is to be, the sentence, and whether that changes anything."""
    before = [dict(e) for e in server.raw["spec"].get("models") or []]
    known = server.describe(model)
    wish = make(known)
    has_entry = any(e.get("name") == model for e in before)
    if not has_entry and not wish.entry:
        return before, wish.sentence, False
    models = replace_entry(before, model, wish.entry)
    return models, wish.sentence, models != before


def _tell(model: str, where: str, sentence: str, is_changed: bool, later: str) -> None:
    click.echo(
        f"{model} on {where} {'configured' if is_changed else 'unchanged'}: {sentence}{later and f' ({later[2:]})'}"
    )


def _or_later(server: LocalServer) -> str:
    return "" if server.is_served() else "; nothing serves it now, so that begins when `llamero serve` runs again"


def _now() -> datetime:
    return datetime.now(UTC)
