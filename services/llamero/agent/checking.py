"""Whether an engine would serve an adapter whole, asked before the engine is.

The checks themselves stand in `model.adapter_checks`; here they become one sentence. Blocking: agents call it in a thread.
"""

import logging
from pathlib import Path

from llamero.agent.errors import Refusal
from llamero.model.adapter_checks import check_adapter, shorten_faults
from llamero.spec.server import EngineType

log = logging.getLogger(__name__)


def check(name: str, folder: Path, base: Path, base_sha256: str | None, engine: EngineType) -> None:
    """Raise Refusal where the adapter in `folder` can't be served, or not whole, on `base` by `engine`."""
    try:
        faults = check_adapter(folder, base, engine, base_sha256=base_sha256)
    except Exception as error:  # files that somebody made: whatever they break in the checks is their fault
        log.exception("the adapter %s can't be checked", name)
        raise Refusal(f"The adapter {name} can't be read: {type(error).__name__}: {error}") from error
    if faults:
        told = shorten_faults([fault.replace(f"{folder}/", "") for fault in faults])
        raise Refusal(f"The adapter {name} is refused: {told}")
