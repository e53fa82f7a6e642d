"""The data phase as others call it: plan what is to be prepared, then prepare it, or find it prepared."""

import errno
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from llamero.data.coordinator import STAGING, Coordinator
from llamero.data.dispatch import OnProgress
from llamero.data.errors import DataError as DataError
from llamero.data.errors import NoSpaceError as NoSpaceError
from llamero.data.pool import InlineRunner, TaskRunner, WorkerPool
from llamero.data.segments import find_named, plan_data_steps
from llamero.data.shards import code_version, remove_partials
from llamero.data.shared import SharedFiles
from llamero.data.sources import NO_TOKENIZER, SourceFile, find_files, fingerprint_named, name_sources
from llamero.data.sources import DataPlan as DataPlan
from llamero.spec.asked import list_language_models
from llamero.spec.digest import data_outcome, digest_json
from llamero.spec.job import DataFormat, FineTuneJobSpec
from llamero.spec.names import MANIFEST_NAME
from llamero.spec.results import DataResult
from llamero.storage import StorageError, delete_tree, find_damage, is_local, local_path

_TOKENIZERS = ("llamero.model.bases", "transformers.models.auto.tokenization_auto")
"""What workers that tokenise import meanwhile: it takes seconds."""

INLINE_BYTES = 2 << 20
"""Less data than this is prepared in the calling process: starting workers would take longer."""


def plan_data(spec: FineTuneJobSpec, tokenizer_digest: str = NO_TOKENIZER) -> DataPlan:
    """List and fingerprint the sources and the files that steps name; no record is read.

    Without a tokenizer's digest lengths are counted in words. Raises DataError for a source or file that is missing, or lacks columns.
    """
    names = name_sources(spec.data.sources)
    for index, source in enumerate(spec.data.sources):
        columns = source.columns
        if source.format is DataFormat.RECORDS and not (columns and (columns.messages or columns.output)):
            raise DataError(
                f"data.sources[{index}] ({names[index]}) needs `columns` with `instruction` and `output`, or `messages`."
            )
    files = tuple(find_files(spec.data.sources, spec.data.allow_http))
    steps = plan_data_steps(spec.data)
    named = {
        uri: fingerprint_named(step.place, uri, spec.data.allow_http) for step in steps for uri in find_named(step)
    }
    digest = digest_json(
        {
            "recipe": data_outcome(spec),
            "newTokens": spec.training.lora.new_tokens,
            "files": [[f.source, f.name, f.fingerprint] for f in files],
            "named": sorted(named.items()),
            "tokenizer": tokenizer_digest,
            "code": code_version(),
        }
    )
    return DataPlan(digest, files, tuple(names), tokenizer_digest, tuple(named.items()))


def prepare_data(
    spec: FineTuneJobSpec,
    plan: DataPlan,
    base: Path | str | None,
    output: Path,
    shard_cache: Path | str,
    on_progress: OnProgress,
    workers: int | None = None,
    *,
    runner: TaskRunner | None = None,
    staging: str | None = None,
    scratch: Path | None = None,
) -> DataResult:
    """Make `output` (records, tokens, rejected.jsonl, manifest.json last), or find it made.

    `base` holds the tokenizer (and, for the step `score`, the weights); None where lengths are counted in words.
    The outcome's bytes depend on the plan alone, not on `workers` (default: data.workers).
    With a `runner` whose workers are elsewhere (`queue.QueueRunner`) `base`, `shard_cache` and `staging` are folders or URIs that
    all of them see; `staging` is this preparation's alone. What lies in an object store is worked on in `scratch`.
    Raises DataError where the data or the machine's disk (NoSpaceError) won't do, StorageError where a shared storage fails;
    rejected.jsonl is there even then.
    """
    if (base is None) != (plan.tokenizer_digest == NO_TOKENIZER):
        raise ValueError("a plan with a tokenizer's digest needs a base, one without it none")
    finished = read_result(output, plan.digest)
    if finished is not None:
        return finished
    _check_models(spec)
    started = time.monotonic()
    cache, stage = str(shard_cache), staging or str(output / STAGING)
    _clear_partials(cache, make=True)
    try:
        with _open_runner(plan, workers or spec.data.workers, runner) as chosen:
            files = SharedFiles(scratch)
            root = None if base is None else str(base)
            coordinator = Coordinator(spec, plan, root, output, cache, stage, chosen, files, on_progress)
            return coordinator.prepare(started)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoSpaceError(
            f"No space is left for {output}: {error.strerror}. Free some, or choose another --workdir."
        ) from error
    finally:
        shutil.rmtree(output / STAGING, ignore_errors=True)
        with suppress(StorageError):
            delete_tree(stage)
        _clear_partials(cache)


def _check_models(spec: FineTuneJobSpec) -> None:
    if not list_language_models(spec.data):
        return
    from llamero.data.asking.checks import check_models

    check_models(spec.data)


def _clear_partials(shard_cache: str, make: bool = False) -> None:
    if not is_local(shard_cache):
        return
    folder = local_path(shard_cache)
    if make:
        folder.mkdir(parents=True, exist_ok=True)
    remove_partials(folder)


def read_result(output: Path, digest: str) -> DataResult | None:
    """The finished result in a folder, if it is that of this digest and whole."""
    try:
        result = DataResult.model_validate_json((output / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    is_whole = result.digest == digest and find_damage(output, result.files, read_content=False) is None
    return result if is_whole else None


@contextmanager
def _open_runner(plan: DataPlan, workers: int, given: TaskRunner | None) -> Iterator[TaskRunner]:
    if given is not None:
        yield given
        return
    if _is_little(plan.files):
        yield InlineRunner()
        return
    with WorkerPool(workers, () if plan.tokenizer_digest == NO_TOKENIZER else _TOKENIZERS) as pool:
        yield pool


def _is_little(files: Sequence[SourceFile]) -> bool:
    uris = [uri for file in files for uri in file.uris]
    return all(is_local(uri) for uri in uris) and sum(local_path(uri).stat().st_size for uri in uris) < INLINE_BYTES
