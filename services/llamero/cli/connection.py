"""Which cluster a verb speaks with, and what can go wrong on the way: every error becomes one sentence that says what to do, and an exit code.

The Kubernetes client is imported when a verb needs it: a laptop does without.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from llamero.cli.run import ExitCode
from llamero.spec.names import GROUP, PLURAL

if TYPE_CHECKING:
    from llamero.kube import Kube

Object = dict[str, Any]
CLUSTER_TROUBLE = 1
RETRY_SECONDS = 5.0
BOOKKEEPING = ("managedFields",)


class ClusterError(Exception):
    """What is wrong with the cluster or with what was asked of it: one sentence that says what to do."""


@dataclass(frozen=True)
class Place:
    """Which cluster, and which of its namespaces; None leaves it to the kubeconfig."""

    namespace: str | None
    context: str | None
    kubeconfig: Path | None


def cluster_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which cluster; the command gets them as `place`."""

    @click.option("-n", "--namespace", help="The namespace. [default: that of the kubeconfig's context]")
    @click.option("--context", help="The kubeconfig's context. [default: its current one]")
    @click.option(
        "--kubeconfig", type=click.Path(path_type=Path), help="The kubeconfig. [default: KUBECONFIG, or ~/.kube/config]"
    )
    @wraps(command)
    def with_place(
        *args: Any, namespace: str | None, context: str | None, kubeconfig: Path | None, **kwargs: Any
    ) -> None:
        command(*args, place=Place(namespace, context, kubeconfig), **kwargs)

    return with_place


def run_on_cluster(
    place: Place, work: Callable[["Kube"], Awaitable[None]], plural: str = PLURAL, listing: str = "llamero get -A"
) -> None:
    """Connects, does the work, and turns everything that can go wrong into a sentence and an exit code.

    `plural` is the kind of object that the verb is about, `listing` the command that shows which there are.
    """
    try:
        asyncio.run(_with_cluster(place, work, plural, listing))
    except KeyboardInterrupt:
        click.echo("Interrupted: what is on the cluster goes on.", err=True)
        sys.exit(ExitCode.INTERRUPTED)
    except ClusterError as error:
        click.echo(str(error), err=True)
        sys.exit(CLUSTER_TROUBLE)


async def _with_cluster(place: Place, work: Callable[["Kube"], Awaitable[None]], plural: str, listing: str) -> None:
    try:
        from llamero import kube
    except ModuleNotFoundError as error:
        raise ClusterError(
            f"Speaking with a cluster needs the package {error.name}: pip install 'llamero[operator]'."
        ) from error
    if place.kubeconfig and not place.kubeconfig.is_file():
        raise ClusterError(f"There is no kubeconfig {place.kubeconfig}.")
    options = kube.ClientOptions(retry_seconds=RETRY_SECONDS, user_agent="llamero-cli")
    kubeconfig = str(place.kubeconfig) if place.kubeconfig else None
    try:
        async with await kube.connect(options, context=place.context, kubeconfig=kubeconfig) as client:
            await work(client)
    except* kube.KubeError as group:
        raise ClusterError(_explain(_first(group), plural, listing)) from group


def _first(group: BaseExceptionGroup[Any]) -> Exception:
    error: Any = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _explain(error: Exception, plural: str, listing: str) -> str:
    """One sentence: what the API server would not do, and what to do about it."""
    from llamero.kube import Away, NotFound, Refused
    from llamero.kube.commands import is_kind_missing

    if isinstance(error, NotFound) and is_kind_missing(error):
        return f"This cluster has no {plural}.{GROUP}: install llamero's chart (its CRDs) first."
    if isinstance(error, NotFound):
        return f"{after_verb(error)}: `{listing}` lists what there is."
    if isinstance(error, Away):
        return f"The cluster does not answer: {error}."
    if isinstance(error, Refused) and error.status == 401:
        return f"The cluster does not know you: {after_verb(error)}: log in again, or mend the kubeconfig."
    if isinstance(error, Refused) and error.status == 403:
        return f"You may not do that: {after_verb(error)}: ask the cluster's admin for the right to it."
    if isinstance(error, Refused) and error.status:
        return f"The API server refused it: {after_verb(error)}"
    return str(error)


def after_verb(error: Exception) -> str:
    """The API server's own words, without what was asked (`get FineTuneJob a: …`)."""
    return str(error).partition(": ")[2].strip() or str(error)


def clean_object(job: Object) -> Object:
    """The object without what only the API server keeps books by."""
    return {**job, "metadata": {k: v for k, v in job["metadata"].items() if k not in BOOKKEEPING}}


def print_objects(value: Object, output: str) -> None:
    """As JSON or YAML."""
    if output == "json":
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip())
