"""The Celery application that training, evaluation and data workers run, and how it talks to Redis.

`python -m celery -A llamero.worker worker --pool solo --concurrency 1 --without-gossip --without-mingle -Q QUEUE`. The tasks
themselves are `pods.tasks`, named here and loaded by the worker alone. A message is a hint: nothing that matters depends on the
broker keeping one, and what can't be understood is told to whoever listens to `message_refused`, not dropped.
"""

import os
from typing import Any

from celery import Celery
from celery.utils.dispatch import Signal
from celery.worker.consumer import Consumer

from llamero.spec.tasks import TaskName

REDIS_URL = "LLAMERO_REDIS_URL"
QUEUE = "LLAMERO_QUEUE"

VISIBILITY_SECONDS = 86_400
"""After so long Redis hands out again what was neither done nor given back: longer than any data task; lost ones are sent anew."""
SOCKET_SECONDS = 10
"""With Celery's defaults a worker on a half-open connection hung for more than 75 s; with these it was back in 20."""

message_refused = Signal(name="message_refused", providing_args={"reason"})
"""Sent with `reason`, a sentence, when a message came that no task here can take."""


def make_app(redis_url: str, queue: str | None = None) -> Celery:
    """The application; `queue` is the one that its worker listens to, where it is a worker."""
    app = Celery("llamero", broker=redis_url, include=["llamero.pods.tasks"])
    transport: dict[str, Any] = {
        "visibility_timeout": VISIBILITY_SECONDS,
        "socket_timeout": SOCKET_SECONDS,
        "socket_connect_timeout": SOCKET_SECONDS,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "retry_on_timeout": True,
    }
    if queue:
        # What a worker holds unacknowledged is kept by queue: it goes with the job, and no other job's worker hands it out again.
        transport |= {
            "unacked_key": f"{queue}.unacked",
            "unacked_index_key": f"{queue}.unacked_index",
            "unacked_mutex_key": f"{queue}.unacked_mutex",
        }
    app.conf.update(
        broker_transport_options=transport,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=SOCKET_SECONDS,
        # A worker whose broker went away keeps the task that it is at: it is the operator that says what is to be done again.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        redis_socket_keepalive=True,
        redis_socket_timeout=SOCKET_SECONDS,
        redis_socket_connect_timeout=SOCKET_SECONDS,
        redis_backend_health_check_interval=10,
        result_backend=None,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        enable_utc=True,
        task_acks_late=False,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=True,
        worker_redirect_stdouts=False,
        worker_consumer="llamero.worker:StrictConsumer",
        worker_log_format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        worker_task_log_format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    return app


class StrictConsumer(Consumer):
    """Celery's consumer, which tells of messages that it can't use instead of dropping them with a line in the log."""

    def on_unknown_message(self, body: Any, message: Any) -> None:
        super().on_unknown_message(body, message)
        self._refuse("a message that is no Celery task")

    def on_unknown_task(self, body: Any, message: Any, exc: BaseException) -> None:
        super().on_unknown_task(body, message, exc)
        self._refuse(f"the task {str(message.headers.get('task'))[:80]}")

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:
        super().on_invalid_task(body, message, exc)
        self._refuse(f"a task that can't be read ({type(exc).__name__})")

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        super().on_decode_error(message, exc)
        self._refuse(f"a message that can't be decoded ({type(exc).__name__})")

    def _refuse(self, what: str) -> None:
        known = " and ".join(TaskName)
        message_refused.send(sender=self, reason=f"This worker knows {known}, but was sent {what}")


app = make_app(os.environ.get(REDIS_URL, "redis://127.0.0.1:6379/0"), os.environ.get(QUEUE))
