"""Tells a pod's progress in Redis, on a thread of its own: Redis away, slow or empty never disturbs the work."""

import logging
import threading
import time
from datetime import UTC, datetime
from typing import Any

from llamero.pods.settings import PodSettings
from llamero.spec.names import progress_key
from llamero.spec.progress import Progress
from llamero.spec.tasks import PROGRESS_SECONDS, ProgressReport

INTERVAL_SECONDS = 1.0
REPEAT_SECONDS = 10.0
"""Told again after so long without news: a Redis that lost its data is told anew, and whoever reads sees that the pod lives."""
TIMEOUT_SECONDS = 2.0

log = logging.getLogger(__name__)


class ProgressTeller:
    """Keeps the newest progress and writes it, at most once a second."""

    def __init__(self, settings: PodSettings) -> None:
        self._settings = settings
        self._latest: ProgressReport | None = None
        self._told: ProgressReport | None = None
        self._told_at = float("-inf")
        self._is_away = False
        self._client: Any = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self.changed_at = time.monotonic()

    def start(self) -> None:
        """Without a Redis there is nobody to tell."""
        if self._settings.redis_url:
            self._thread.start()

    def tell(self, event: Progress) -> None:
        """Take note of an event; returns at once."""
        self.changed_at = time.monotonic()
        before, now = self._latest, datetime.now(UTC)
        is_same = before is not None and (before.phase, before.activity) == (event.phase, event.activity)
        is_same_phase = before is not None and before.phase == event.phase
        values = event.values or {}
        self._latest = ProgressReport(
            id=self._settings.attempt,
            pod=self._settings.pod_uid,
            at=now,
            phase=event.phase,
            activity=event.activity[:64],
            done=event.done,
            total=event.total,
            unit=event.unit,
            started_at=before.started_at if before is not None and is_same else now,
            step=values.get("step", before.step if before is not None and is_same_phase else None),
            loss=values.get("loss", before.loss if before is not None and is_same_phase else None),
            tokens_per_second=values.get("tokensPerSecond"),
        )

    def is_redis_away(self) -> bool:
        """Whether Redis does not answer just now."""
        if not self._settings.redis_url:
            return False
        try:
            self._connect().ping()
        except Exception:
            return True
        return False

    def close(self) -> None:
        """Tell the last of it, if that takes no time, and end."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(TIMEOUT_SECONDS)

    def _run(self) -> None:
        while not self._end.wait(INTERVAL_SECONDS):
            self._tell_latest()
        self._tell_latest()

    def _tell_latest(self) -> None:
        report, now = self._latest, time.monotonic()
        if report is None or (report is self._told and now - self._told_at < REPEAT_SECONDS):
            return
        attempt = self._settings.attempt
        key = progress_key(attempt.uid, attempt.run, attempt.kind, attempt.attempt)
        text = report.model_copy(update={"at": datetime.now(UTC)}).model_dump_json(by_alias=True, exclude_none=True)
        try:
            self._connect().set(key, text, ex=PROGRESS_SECONDS)
        except Exception as error:  # the work goes on, whatever ails the connection
            if not self._is_away:
                log.warning("progress can't be told: %s: %s", type(error).__name__, error)
            self._is_away = True
            return
        if self._is_away:
            log.info("progress is told again")
        self._is_away, self._told, self._told_at = False, report, now

    def _connect(self) -> Any:
        if self._client is None:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry

            self._client = redis.Redis.from_url(
                str(self._settings.redis_url),
                socket_timeout=TIMEOUT_SECONDS,
                socket_connect_timeout=TIMEOUT_SECONDS,
                retry=Retry(NoBackoff(), 0),
            )
        return self._client
