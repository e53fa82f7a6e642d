"""The pod that prints kept logs: of the newest attempts of the newest run, or of those asked for."""

import sys
from collections.abc import Iterable

from llamero.lifecycle.failures import PhaseExit
from llamero.pods.pod import Pod
from llamero.spec.names import JobStorage, parse_log_name, parse_run_name, run_name
from llamero.spec.status import WorkKind
from llamero.spec.tasks import LogRequest, Outcome, WorkMessage
from llamero.storage import join_uri, list_names, read_file

ORDER = [WorkKind.FETCH, WorkKind.PREPARE, WorkKind.TRAIN, WorkKind.EVALUATE]


def print_logs(message: WorkMessage, pod: Pod) -> Outcome:
    """Do a `logs` attempt: the logs on standard output, each under a line that names it. Raises StorageError."""
    request = message.logs or LogRequest(number=message.id.attempt)
    places = pod.settings.places
    run = request.run if request.run is not None else find_newest_run(places, request.kind)
    names = choose_logs(list_names(places.logs(run)), request)
    out = sys.stdout
    for name in names:
        kind, attempt, worker = parse_log_name(name) or ("", 0, name)
        out.write(f"==> {run_name(run)} {kind} attempt {attempt}, pod {worker} <==\n")
        out.write((read_file(join_uri(places.logs(run), name)) or b"").decode("utf-8", "replace").rstrip("\n") + "\n")
    if not names:
        out.write(f"No log of {run_name(run)} is kept that was asked for.\n")
    out.flush()
    return pod.answer(PhaseExit.DONE)


def find_newest_run(places: JobStorage, kind: WorkKind | None) -> int:
    """The newest run that has logs; what belongs to no run (fetch) is kept under run 0."""
    if kind is WorkKind.FETCH:
        return 0
    runs = [run for name in list_names(places.prefix) if (run := parse_run_name(name)) is not None]
    return next((run for run in sorted(runs, reverse=True) if list_names(places.logs(run))), 0)


def choose_logs(names: Iterable[str], request: LogRequest) -> list[str]:
    """Those of the kind and attempt asked for, by default of the newest attempt of each kind; in the order of the phases."""
    logs = [(parsed, name) for name in names if (parsed := parse_log_name(name)) is not None]
    chosen = [(p, n) for p, n in logs if request.kind is None or p[0] == request.kind]
    newest: dict[str, int] = {}
    for (kind, attempt, _), _name in chosen:
        newest[kind] = max(newest.get(kind, 0), attempt)
    wanted = [(p, n) for p, n in chosen if p[1] == (request.attempt or newest[p[0]])]
    return [n for _, n in sorted(wanted, key=lambda item: (_rank(item[0][0]), item[0][1:]))]


def _rank(kind: str) -> int:
    return ORDER.index(WorkKind(kind)) if kind in ORDER else len(ORDER)
