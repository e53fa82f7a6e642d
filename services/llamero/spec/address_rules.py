"""Rules over the addresses that a manifest names: what would be refused when it is fetched is told before anything is started.

Pure, as `rules.py`, whose table holds them; whom an address leads to is only known when it is fetched (`llamero.storage.fetching`).
"""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from llamero.spec.job import FineTuneJob
from llamero.spec.problems import Path, Problem


def check_addresses(job: FineTuneJob) -> Iterator[Problem]:
    """Files of web servers: by https, or with data.allowHttp, and without a name or password in the address."""
    data: Path = ("spec", "data")
    if job.spec.base_model.uri is not None:
        yield from check_address(job.spec.base_model.uri, ("spec", "baseModel", "uri"), False, "use https")
    remedy = "use https, or set `data.allowHttp` for a server of your own"
    for index, source in enumerate(job.spec.data.sources):
        yield from check_address(source.uri, (*data, "sources", index, "uri"), job.spec.data.allow_http, remedy)
    for index, step in enumerate(job.spec.data.steps):
        if len(step.kinds) == 1 and step.use is None:
            options = step.options.model_dump(mode="json", by_alias=True)
            for path, uri in _find_files(options, (*data, "steps", index, step.kind)):
                yield from check_address(uri, path, job.spec.data.allow_http, remedy)
    for index, prompts in enumerate(job.spec.evaluation.prompt_sets):
        if prompts.uri is not None:
            path = ("spec", "evaluation", "promptSets", index, "uri")
            yield from check_address(prompts.uri, path, job.spec.data.allow_http, remedy)


def _find_files(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """The fields called `uri`, or ending in `Uri`, of a step's options."""
    if isinstance(value, list):
        for index, part in enumerate(value):
            yield from _find_files(part, (*path, index))
    elif isinstance(value, dict):
        for name, part in value.items():
            if isinstance(part, str) and (name == "uri" or name.endswith("Uri")):
                yield (*path, name), part
            else:
                yield from _find_files(part, (*path, name))


def check_address(uri: str, path: Path, allow_http: bool, remedy: str) -> Iterator[Problem]:
    """A web server's file by https, or where `allow_http` says so by http, and without credentials in its address."""
    scheme = uri.partition("://")[0].lower()
    if scheme not in ("http", "https"):
        return
    try:
        has_credentials = "@" in urlsplit(uri).netloc
    except ValueError as error:
        yield Problem(path, f"this is no address: {error}")
        return
    if has_credentials:
        yield Problem(path, "an address must not hold a name or password: take it out, and give a token by `secretRef`")
    elif scheme == "http" and not allow_http:
        yield Problem(path, f"http is not encrypted: {remedy}")
