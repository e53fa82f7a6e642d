"""The verbs that speak with a cluster: submit, get, watch, logs, cancel, resume, delete. Their words and exit codes; requests are `llamero.kube`'s,
the way there is `connection`'s.
"""

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from llamero.cli.connection import (
    ClusterError,
    Place,
    after_verb,
    clean_object,
    cluster_options,
    print_objects,
    run_on_cluster,
)
from llamero.cli.display import make_display
from llamero.cli.following import Ended, follow_job, wait_until_gone
from llamero.cli.joblogs import LogChoice, LogError, print_logs
from llamero.cli.run import ExitCode
from llamero.cli.submission import ReadSubmissions, Submission, describe_change, read_submissions
from llamero.cli.tables import format_job, format_jobs
from llamero.spec.status import WorkKind

if TYPE_CHECKING:
    from llamero.kube import Kube

Object = dict[str, Any]
EXIT_CODES = "Ends with 0 done, 1 cluster trouble, 2 bad manifest, 4 job failed, 5 gate refused, 130 interrupted."


@click.command(epilog=EXIT_CODES)
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--wait", is_flag=True, help="Wait until the job has ended, and end as it did.")
@click.option("--watch", "show", is_flag=True, help="As --wait, with progress bars.")
@click.option(
    "--dry-run",
    type=click.Choice(["none", "server"]),
    default="none",
    help="server: let the API server judge it and say what would change, and change nothing.",
)
@click.option("--force-conflicts", is_flag=True, help="Take over fields that another tool has set.")
@cluster_options
def submit(manifest: Path, wait: bool, show: bool, dry_run: str, force_conflicts: bool, place: Place) -> None:
    """Send MANIFEST (a file, or a folder of them) to the cluster: creates its job, or changes it to what the manifest says."""
    found = read_submissions(manifest)
    for problem in found.problems:
        click.echo(str(problem), err=True)
    if found.has_error:
        click.echo("The manifest has mistakes: nothing was sent.", err=True)
        sys.exit(ExitCode.BAD_MANIFEST)
    for other in found.others:
        click.echo(f"{other}: not a FineTuneJob, left out.", err=True)
    is_trial = dry_run == "server"
    run_on_cluster(place, lambda kube: _submit(kube, place, found, is_trial, force_conflicts, wait or show, show))


async def _submit(
    kube: "Kube", place: Place, found: ReadSubmissions, is_trial: bool, force: bool, is_waited: bool, is_shown: bool
) -> None:
    placed = [(one, _choose_namespace(kube, place, one)) for one in found.submissions]
    sent = [(one, await _send(kube, namespace, one, is_trial, force)) for one, namespace in placed]
    if is_trial or not is_waited:
        return
    ended = await _follow_all([job for _, job in sent], kube, is_shown)
    sys.exit(max(one.code for one in ended))


def _choose_namespace(kube: "Kube", place: Place, one: Submission) -> str:
    if place.namespace and one.namespace and place.namespace != one.namespace:
        raise ClusterError(
            f"{one.file} says namespace {one.namespace} and --namespace says {place.namespace}: leave one of them out."
        )
    return place.namespace or one.namespace or kube.namespace


async def _send(kube: "Kube", namespace: str, one: Submission, is_trial: bool, force: bool) -> Object:
    from llamero.kube import Conflict, NotFound
    from llamero.kube.commands import is_kind_missing, submit_job
    from llamero.kube.jobs import observe_job

    name = one.job.metadata.name
    manifest = {**one.manifest, "metadata": {**one.manifest["metadata"], "namespace": namespace}}
    try:
        before: Object | None = await observe_job(kube, namespace, name)
    except NotFound as error:
        if is_kind_missing(error):
            raise
        before = None
    if before is not None and before["metadata"].get("deletionTimestamp"):
        raise ClusterError(
            f"Job {name} is being deleted: submit it again when it is gone (`llamero delete {name} --wait`)."
        )
    try:
        after = await submit_job(kube, namespace, manifest, force=force, dry_run=is_trial)
    except Conflict as error:
        raise ClusterError(
            f"Another tool has set fields that {one.file} sets: {after_verb(error)}. --force-conflicts takes them over."
        ) from error
    trial = " (server dry run)" if is_trial else ""
    click.echo(f"Job {namespace}/{name} {describe_change(before, after)}{trial}")
    return after


@click.command()
@click.argument("job", required=False)
@click.option(
    "-o", "--output", type=click.Choice(["wide", "json", "yaml"]), help="More columns, or the objects themselves."
)
@click.option("-A", "--all-namespaces", is_flag=True, help="The jobs of all namespaces.")
@cluster_options
def get(job: str | None, output: str | None, all_namespaces: bool, place: Place) -> None:
    """Show the jobs of the namespace; with JOB its figures, conditions, runs and events."""
    if job and all_namespaces:
        raise click.UsageError("JOB is looked for in one namespace: leave out --all-namespaces.")
    run_on_cluster(place, lambda kube: _get(kube, place, job, output, all_namespaces))


async def _get(kube: "Kube", place: Place, name: str | None, output: str | None, everywhere: bool) -> None:
    from llamero.kube.commands import observe_events
    from llamero.kube.jobs import observe_job, observe_jobs

    namespace = place.namespace or kube.namespace
    if name is None:
        jobs = await observe_jobs(kube, None if everywhere else namespace)
        if output in ("json", "yaml"):
            print_objects({"apiVersion": "v1", "kind": "List", "items": [clean_object(job) for job in jobs]}, output)
        elif not jobs:
            click.echo("No jobs in the cluster." if everywhere else f"No jobs in namespace {namespace}.", err=True)
        else:
            click.echo(format_jobs(jobs, _now(), wide=output == "wide", with_namespace=everywhere))
        return
    job = await observe_job(kube, namespace, name)
    if output in ("json", "yaml"):
        print_objects(clean_object(job), output)
    elif output == "wide":
        click.echo(format_jobs([job], _now(), wide=True))
    else:
        click.echo(format_job(job, await observe_events(kube, namespace, job["metadata"]["uid"]), _now()))


@click.command(epilog=EXIT_CODES)
@click.argument("job")
@cluster_options
def watch(job: str, place: Place) -> None:
    """Show the progress of JOB until it ends, and end as it did. Ctrl-C ends the watching; the job goes on."""
    run_on_cluster(place, lambda kube: _watch(kube, place, job))


async def _watch(kube: "Kube", place: Place, name: str) -> None:
    from llamero.kube.jobs import observe_job

    found = await observe_job(kube, place.namespace or kube.namespace, name)
    (ended,) = await _follow_all([found], kube, is_shown=True)
    sys.exit(ended.code)


async def _follow_all(jobs: list[Object], kube: "Kube", is_shown: bool) -> list[Ended]:
    """Follows jobs to their ends, several at once; one alone is shown with bars."""
    console = Console()
    if is_shown and len(jobs) == 1:
        with make_display(console) as display:
            ended = [await follow_job(kube, jobs[0], display)]
    else:
        ended = list(await asyncio.gather(*(follow_job(kube, job, Silent()) for job in jobs)))
    for one in ended:
        click.echo(one.sentence, err=one.code != ExitCode.DONE)
    return ended


class Silent:
    """A display that shows nothing."""

    def show(self, event: object) -> None: ...

    def say(self, text: str) -> None: ...

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *_: object) -> None: ...


@click.command()
@click.argument("job")
@click.option("--run", "run_number", type=click.IntRange(min=1), help="Which run. [default: the newest]")
@click.option(
    "--work", type=click.Choice([k.value for k in WorkKind if k is not WorkKind.LOGS]), help="Which kind of work."
)
@click.option("--attempt", type=click.IntRange(min=1), help="Which attempt at it. [default: the newest]")
@click.option("-f", "--follow", is_flag=True, help="Go on until the pods end.")
@click.option("--previous", is_flag=True, help="The attempt before the newest.")
@cluster_options
def logs(
    job: str, run_number: int | None, work: str | None, attempt: int | None, follow: bool, previous: bool, place: Place
) -> None:
    """Print what the pods of JOB say, or, when they are gone, what was kept of it in the storage."""
    if attempt and previous:
        raise click.UsageError("--previous and --attempt both say which attempt: leave one out.")
    choice = LogChoice(run_number, WorkKind(work) if work else None, attempt, previous)
    run_on_cluster(place, lambda kube: _logs(kube, place, job, choice, follow))


async def _logs(kube: "Kube", place: Place, name: str, choice: LogChoice, follow: bool) -> None:
    from llamero.kube.jobs import observe_job

    job = await observe_job(kube, place.namespace or kube.namespace, name)
    try:
        await print_logs(kube, job, choice, follow, click.echo, lambda text: click.echo(text, err=True))
    except LogError as error:
        raise ClusterError(str(error)) from error


@click.command()
@click.argument("job")
@cluster_options
def cancel(job: str, place: Place) -> None:
    """Stop JOB where it stands: its pods write a checkpoint and end, GPUs are given back. `llamero resume` lets it go on."""
    run_on_cluster(place, lambda kube: _suspend(kube, place, job, True))


@click.command()
@click.argument("job")
@cluster_options
def resume(job: str, place: Place) -> None:
    """Let a stopped JOB go on from its last checkpoint."""
    run_on_cluster(place, lambda kube: _suspend(kube, place, job, False))


async def _suspend(kube: "Kube", place: Place, name: str, is_suspended: bool) -> None:
    from llamero.kube.jobs import observe_job, patch_spec

    namespace = place.namespace or kube.namespace
    job = await observe_job(kube, namespace, name)
    if bool(job["spec"].get("suspend")) is is_suspended:
        click.echo(f"Job {namespace}/{name} unchanged: it is {'' if is_suspended else 'not '}suspended.")
        return
    await patch_spec(kube, namespace, name, {"suspend": is_suspended})
    if is_suspended:
        click.echo(
            f"Job {namespace}/{name} suspended: its pods write a checkpoint and end. `llamero resume {name}` lets it go on."
        )
    else:
        click.echo(f"Job {namespace}/{name} resumed: it goes on from its last checkpoint.")


@click.command()
@click.argument("job")
@click.option("--wait", is_flag=True, help="Wait until it is gone and cleared up.")
@cluster_options
def delete(job: str, wait: bool, place: Place) -> None:
    """Delete JOB with its pods and files. The Adapters that it has published stay."""
    run_on_cluster(place, lambda kube: _delete(kube, place, job, wait))


async def _delete(kube: "Kube", place: Place, name: str, is_waited: bool) -> None:
    from llamero.kube.jobs import delete_job, observe_job

    namespace = place.namespace or kube.namespace
    job = await observe_job(kube, namespace, name)
    await delete_job(kube, namespace, name, job["metadata"]["uid"])
    if is_waited:
        await wait_until_gone(kube, job, lambda text: click.echo(text, err=True))
        click.echo(f"Job {namespace}/{name} deleted.")
    else:
        click.echo(f"Job {namespace}/{name} is being deleted: its pods end, then its files are removed.")


COMMANDS = (submit, get, watch, logs, cancel, resume, delete)


def _now() -> datetime:
    return datetime.now(UTC)
