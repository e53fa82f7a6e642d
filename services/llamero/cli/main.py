"""The `llamero` command: its verbs and what they print."""

import json
import socket
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llamero import __version__
from llamero.cli.adapters import adapters
from llamero.cli.cluster import COMMANDS as CLUSTER_COMMANDS
from llamero.cli.data import data
from llamero.cli.display import format_number, format_seconds, make_display
from llamero.cli.errors import CommandError
from llamero.cli.localserver import DEFAULT_SERVER, LocalServer
from llamero.cli.manifest import LoadedManifest, load_manifest
from llamero.cli.processes import ServerError
from llamero.cli.rollout import parse_assignment, rollout
from llamero.cli.run import ExitCode, FinishedRun, RunError, RunOptions, run_job
from llamero.cli.servers import servers
from llamero.cli.serving import ServedModel, serve_model
from llamero.phases.processes import Interrupted, interrupt_on_signals
from llamero.spec.job import FineTuneJob
from llamero.spec.names import RunLayout, parse_run_name
from llamero.spec.results import Report
from llamero.spec.rollout import StrategySpec
from llamero.spec.rules import Severity, find_cluster_only_fields
from llamero.storage import StorageError

if TYPE_CHECKING:
    from llamero.cli.localserving import ServeOptions

DEFAULT_PORT = 8080
QUESTION_TIMEOUT_SECONDS = 120

WORKDIR_OPTION = click.option(
    "--workdir",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where runs keep their files.",
)
HOST_OPTION = click.option("--host", default="127.0.0.1", show_default=True, help="Address of the chat page.")
PORT_OPTION = click.option(
    "--port",
    type=int,
    default=None,
    help=f"Port of the chat page. [default: {DEFAULT_PORT}, or a free one where it is taken]",
)
MANIFEST_ARGUMENT = click.argument("manifest", type=click.Path(path_type=Path))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="llamero %(version)s")
def cli() -> None:
    """From raw data to a measured, served chat model, with one manifest."""


@cli.command()
@MANIFEST_ARGUMENT
@WORKDIR_OPTION
@HOST_OPTION
@PORT_OPTION
@click.option("--serve/--no-serve", default=True, help="Serve the adapter and a chat page at the end, until Ctrl-C.")
@click.option("--fresh", is_flag=True, help="Start a new run even where an unchanged one could go on or be reused.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to train."
)
def run(manifest: Path, workdir: Path, host: str, port: int | None, serve: bool, fresh: bool, device: str) -> None:
    """Prepare the data, train, evaluate, and serve what passes the gate.

    Ends with 0 done, 2 bad manifest, 3 data error, 4 training failed, 5 gate refused, 130 interrupted.
    """
    console = Console()
    job = _require_job(load_manifest(manifest))
    if ignored := find_cluster_only_fields(job):
        _complain(f"On this machine these fields have no effect: {', '.join(ignored)}")
    try:
        with interrupt_on_signals():
            with make_display(console) as display:
                finished = run_job(job, RunOptions(workdir, fresh=fresh, device=device), display)
            _print_results(console, finished)
            if not finished.report.gate.passed:
                _complain(f"The gate refused the adapter: {finished.report.gate.reason}")
                sys.exit(ExitCode.GATE_REFUSED)
            if serve:
                _serve(console, job, finished.layout, finished.report, finished.base_folder, host, port)
    except Interrupted:
        _complain("Interrupted: every process has ended; start again to go on from here.")
        sys.exit(ExitCode.INTERRUPTED)
    except RunError as error:
        _complain(str(error))
        sys.exit(error.code)
    except ServerError as error:
        _complain(str(error))
        sys.exit(1)


@cli.command()
@MANIFEST_ARGUMENT
def validate(manifest: Path) -> None:
    """Say every mistake in a manifest (FineTuneJob or ModelServer): where it stands, what it is and what to do. Ends with 2 where there is one."""
    loaded = load_manifest(manifest)
    _say_problems(loaded)
    found = loaded.job or loaded.server
    assert found is not None, "a manifest without mistakes is one of the two"
    click.echo(f"{manifest}: {found.kind} {found.metadata.name} is valid.")


@cli.command()
def schema() -> None:
    """Print the JSON schema of a FineTuneJob manifest."""
    click.echo(json.dumps(build_schema(), indent=2, ensure_ascii=False))


@cli.command(epilog="Ends with 1 a server failed, 2 refused, 130 interrupted.")
@click.argument("job", required=False)
@click.option("--base", type=click.Path(path_type=Path), help="Without JOB: the base model's folder.")
@click.option(
    "--adapter",
    "assignments",
    multiple=True,
    metavar="NAME=DIR",
    help="Without JOB: an adapter's folder and the public name that it serves; may be repeated, of one name the later is the newer.",
)
@WORKDIR_OPTION
@HOST_OPTION
@PORT_OPTION
@click.option(
    "--run", "run_number", type=int, default=None, help="Of JOB: which run. [default: the newest that passed its gate]"
)
@click.option(
    "--server", default=DEFAULT_SERVER, show_default=True, help="Without JOB: the server's name in the work folder."
)
@click.option(
    "--quantization", type=click.Choice(["nf4"]), help="Without JOB: serve the base in 4 bits, as QLoRA trained on."
)
@click.option("--steps", help="Without JOB: percent of the callers that a new adapter answers, such as 5,25,50,100.")
@click.option("--interval", type=click.IntRange(min=1), help="Without JOB: least seconds at a step.")
@click.option(
    "--min-requests",
    type=click.IntRange(min=0),
    help="Without JOB: requests that a new adapter must have answered at a step.",
)
def serve(
    job: str | None,
    base: Path | None,
    assignments: tuple[str, ...],
    workdir: Path,
    host: str,
    port: int | None,
    run_number: int | None,
    server: str,
    quantization: Literal["nf4"] | None,
    steps: str | None,
    interval: int | None,
    min_requests: int | None,
) -> None:
    """Serve with a chat page, until Ctrl-C: the adapter of a finished run of JOB, or any adapters on a base.

    A server with --base keeps its state in WORKDIR/serve/SERVER: started again it goes on from there, and `llamero rollout` lets new
    adapters take over step by step.
    """
    if job is None:
        local = _require_local(workdir, server)
        if base is None and not local.exists:
            raise click.UsageError("Give a JOB, or --base DIR with --adapter NAME=DIR.")
        from llamero.cli.localserving import ServeOptions

        percents, chosen = _parse_steps(steps), _choose_port(host, port)
        options = ServeOptions(base, (), host, chosen, quantization, percents, interval, min_requests)
        _serve_adapters(local, assignments, options)
        return
    if base is not None or assignments:
        raise click.UsageError("JOB serves its own base and adapter: leave out JOB, or --base and --adapter.")
    _serve_job(job, workdir, host, port, run_number)


def _require_local(workdir: Path, server: str) -> LocalServer:
    try:
        return LocalServer(workdir, server)
    except CommandError as error:
        raise click.BadParameter(str(error), param_hint="--server") from error


def _serve_adapters(server: LocalServer, assignments: tuple[str, ...], options: "ServeOptions") -> None:
    from llamero.cli.localserving import serve_locally

    try:
        with interrupt_on_signals():
            told = replace(options, adapters=tuple(parse_assignment(a) for a in assignments))
            serve_locally(server, told, click.echo)
    except Interrupted:
        _complain("Interrupted: every process has ended.")
        sys.exit(ExitCode.INTERRUPTED)
    except (CommandError, StorageError) as error:
        _complain(str(error))
        sys.exit(ExitCode.BAD_MANIFEST)
    except ServerError as error:
        _complain(str(error))
        sys.exit(1)


def _parse_steps(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(StrategySpec(steps=[int(part) for part in text.split(",")]).steps)
    except ValueError as error:
        raise click.UsageError(
            f"--steps {text}: whole percents that rise to 100, with commas between, such as 5,25,50,100."
        ) from error


def _serve_job(job: str, workdir: Path, host: str, port: int | None, run_number: int | None) -> None:
    console = Console()
    layout, report = _find_served_run(workdir, job, run_number)
    manifest = FineTuneJob.model_validate_json(layout.manifest.read_bytes())
    try:
        from llamero.model.loading import ModelError, resolve_base

        with interrupt_on_signals():
            base_folder = resolve_base(manifest.spec.base_model, RunOptions(workdir).cache / "models")
            _serve(console, manifest, layout, report, base_folder, host, port)
    except Interrupted:
        _complain("Interrupted: every process has ended.")
        sys.exit(ExitCode.INTERRUPTED)
    except (ServerError, ModelError) as error:
        _complain(str(error))
        sys.exit(1)


def build_schema() -> dict[str, object]:
    """The manifest's JSON schema (2020-12), in camelCase."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **FineTuneJob.model_json_schema(by_alias=True)}


for command in (data, *CLUSTER_COMMANDS, servers, adapters, rollout):
    cli.add_command(command)


def main() -> int:
    """The console script."""
    cli.main(prog_name="llamero", standalone_mode=True)
    return 0


def _require_job(loaded: LoadedManifest) -> FineTuneJob:
    _say_problems(loaded)
    if loaded.job is None:
        _complain(
            "The manifest is a ModelServer, which a cluster serves: here `llamero serve --base DIR --adapter NAME=DIR` does."
        )
        sys.exit(ExitCode.BAD_MANIFEST)
    return loaded.job


def _say_problems(loaded: LoadedManifest) -> None:
    """Prints them; ends the command where one is a mistake."""
    for problem in loaded.problems:
        click.echo(str(problem), err=True)
    if loaded.job is None and loaded.server is None:
        count = sum(p.severity is Severity.ERROR for p in loaded.problems)
        _complain(f"{count} mistake{'s' if count != 1 else ''} in the manifest: nothing was started.")
        sys.exit(ExitCode.BAD_MANIFEST)


def _complain(text: str) -> None:
    click.echo(text, err=True)


def _print_results(console: Console, finished: FinishedRun) -> None:
    report, layout = finished.report, finished.layout
    table = Table(title=f"{report.job} run {report.run}", title_justify="left")
    for column in ("", "base", "tuned", "change"):
        table.add_column(column, justify="left" if not column else "right")
    for name, pair in (
        ("token perplexity", report.evaluation.token_perplexity),
        ("perplexity", report.evaluation.perplexity),
    ):
        change = f"{pair.tuned / pair.base - 1:+.1%}" if pair.base and pair.tuned is not None else "-"
        table.add_row(name, *(f"{v:,.3f}" if v is not None else "-" for v in (pair.base, pair.tuned)), change)
    table.add_section()
    table.add_row(
        "tokens trained",
        "",
        format_number(report.training.tokens),
        f"{format_number(report.training.tokens_per_second)}/s",
    )
    table.add_row("tokens measured", "", format_number(report.evaluation.target_tokens), "")
    table.add_row("time", "", format_seconds(sum(report.seconds.values())), "")
    console.print(table)
    answers = Table(title="Side by side", title_justify="left", show_lines=True)
    for column in ("prompt", "base", "tuned"):
        answers.add_column(column, ratio=1, overflow="fold")
    for sample in report.evaluation.samples[:3]:
        answers.add_row(*(escape(_shorten(text)) for text in (sample.prompt, sample.base.text, sample.tuned.text)))
    if report.evaluation.samples:
        console.print(answers)
    verdict = "[green]passed[/]" if report.gate.passed else "[red]refused[/]"
    console.print(f"Gate: {verdict}. {escape(report.gate.reason)}", highlight=False, soft_wrap=True)
    console.print(f"Report: {escape(str(layout.report_html))}", highlight=False, soft_wrap=True)


def _shorten(text: str, limit: int = 400) -> str:
    """A model's words for a terminal: without control characters, and not too many of them."""
    from llamero.evaluation.formatting import clean_text

    text = clean_text(text).strip() or "(empty)"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _serve(
    console: Console,
    job: FineTuneJob,
    layout: RunLayout,
    report: Report,
    base_folder: Path,
    host: str,
    port: int | None,
) -> None:
    """Serve until interrupted, after one question has been answered through the chat service itself."""
    model = ServedModel(
        base_folder=base_folder,
        base_name=(job.spec.base_model.name or base_folder.name).rsplit("/", 1)[-1],
        layout=layout,
        namespace=job.metadata.namespace,
        adapter_sha256=report.adapter.sha256,
        public_name=job.public_model_name,
        quantized=job.spec.training.method == "qlora",
    )
    console.print("RollingOut: starting the engine and the chat service ...", highlight=False)
    with serve_model(model, host, _choose_port(host, port)) as chat:
        if report.evaluation.samples:
            question = report.evaluation.samples[0].prompt
            console.print(f"[bold]Q[/] {escape(_shorten(question))}", highlight=False, soft_wrap=True)
            answer = _ask(chat.url, model.public_name, question)
            console.print(f"[bold]A[/] {escape(_shorten(answer))}", highlight=False, soft_wrap=True)
        console.print(
            f"Chat with {model.public_name} and {model.base_name} at {chat.url} (Ctrl-C ends it)", highlight=False
        )
        chat.watch()


def _choose_port(host: str, port: int | None) -> int:
    if port is not None:
        return port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, DEFAULT_PORT))
        except OSError:
            return 0
    return DEFAULT_PORT


def _ask(url: str, model: str, question: str) -> str:
    """One answer from the chat service, by the same request that any client sends."""
    body = json.dumps(
        {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 128, "temperature": 0}
    ).encode()
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", data=body, headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=QUESTION_TIMEOUT_SECONDS) as response:
            return str(json.load(response)["choices"][0]["message"]["content"])
    except (urllib.error.URLError, OSError, ValueError, KeyError) as error:
        raise ServerError(f"The chat service did not answer: {error}") from error


def _find_served_run(workdir: Path, job: str, run_number: int | None) -> tuple[RunLayout, Report]:
    folder = workdir / job
    numbers = [n for p in (folder.iterdir() if folder.is_dir() else []) if (n := parse_run_name(p.name)) is not None]
    wanted = [run_number] if run_number is not None else sorted(numbers, reverse=True)
    for number in wanted:
        layout = RunLayout(workdir.resolve(), job, number)
        try:
            report = Report.model_validate_json(layout.report_json.read_bytes())
        except (OSError, ValueError):
            continue
        if report.gate.passed or run_number is not None:
            return layout, report
    which = f"run {run_number}" if run_number is not None else "no run that passed its gate"
    _complain(f"{folder} has {which if run_number is None else 'no finished ' + which}: start one with `llamero run`.")
    sys.exit(ExitCode.BAD_MANIFEST)
