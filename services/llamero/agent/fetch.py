"""The init container of an engine's pod: the base, and for engines that read adapters at their start only, every adapter, checked.

An adapter that is refused ends it with `REFUSED_EXIT` and an `AgentRefusal` as termination message, so that the operator takes it out of
the list; while the storage or the hub is away it waits for it.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from llamero.agent.bringing import bring_adapter, bring_base, digest_base
from llamero.agent.checking import check
from llamero.agent.errors import Refusal, Trouble
from llamero.agent.settings import AgentSettings
from llamero.spec.serving import REFUSED_EXIT, AdapterWanted, AgentRefusal

NOT_NOW_EXIT = 1
DELAYS_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 60.0)
"""Between tries while something is away; then the container ends, and Kubernetes starts it again."""
MAX_MESSAGE = 1024

log = logging.getLogger(__name__)

Found = TypeVar("Found")


def fetch(settings: AgentSettings, sleep: Callable[[float], None] = time.sleep) -> int:
    """Bring what the engine needs at its start; the exit code. Raises SettingsError."""
    wanted = settings.read_wanted()
    adapter: AdapterWanted | None = None
    try:
        base = _keep_trying(lambda: bring_base(wanted.base, settings.scratch, settings.storage), sleep)
        if settings.engine != "tgi":
            return 0
        base_sha256 = digest_base(base)
        for adapter in wanted.adapters:
            _bring_checked(adapter, base, base_sha256, settings, sleep)
    except Refusal as refusal:
        return _end(settings.termination_log, adapter.id if adapter else None, str(refusal), REFUSED_EXIT)
    except Trouble as trouble:
        return _end(settings.termination_log, None, str(trouble), NOT_NOW_EXIT)
    return 0


def _bring_checked(
    adapter: AdapterWanted, base: Path, base_sha256: str, settings: AgentSettings, sleep: Callable[[float], None]
) -> None:
    folder = _keep_trying(lambda: bring_adapter(adapter, settings.scratch, settings.storage), sleep)
    check(adapter.name, folder, base, base_sha256, settings.engine)
    log.info("the adapter %s lies at %s", adapter.id, folder)


def _keep_trying(work: Callable[[], Found], sleep: Callable[[float], None]) -> Found:
    for delay in DELAYS_SECONDS:
        try:
            return work()
        except Trouble as trouble:
            log.warning("%s Tried again in %.0f s.", trouble, delay)
            sleep(delay)
    return work()


def _end(termination_log: Path, adapter: str | None, message: str, code: int) -> int:
    log.error("%s", message)
    told = AgentRefusal(id=adapter, message=message[:MAX_MESSAGE])
    try:
        termination_log.write_text(told.model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
    except OSError as error:
        log.error("the termination message can't be written to %s: %s", termination_log, error)
    return code
