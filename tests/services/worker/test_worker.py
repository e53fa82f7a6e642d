"""The Celery application's settings, each of which stands for a trouble that was met."""

from typing import Any

import pytest

from llamero.spec.names import queue_name, redis_patterns
from llamero.worker import make_app

QUEUE = queue_name("1f0c2d4e-uid", 2, "train", 3)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("task_acks_late", False),
        ("task_reject_on_worker_lost", True),
        ("worker_prefetch_multiplier", 1),
        ("accept_content", ["json"]),
        ("broker_connection_max_retries", None),
        ("broker_connection_retry_on_startup", True),
        ("result_backend", None),
        ("worker_enable_remote_control", False),
    ],
)
def test_a_setting_is_as_it_must_be(setting: str, value: Any) -> None:
    assert getattr(make_app("redis://127.0.0.1:1", QUEUE).conf, setting) == value


@pytest.mark.parametrize(
    ("option", "value"), [("health_check_interval", 10), ("socket_timeout", 10), ("socket_keepalive", True)]
)
def test_a_dead_connection_is_noticed(option: str, value: Any) -> None:
    assert make_app("redis://127.0.0.1:1").conf.broker_transport_options[option] == value


def test_what_a_worker_holds_is_kept_under_keys_of_its_job() -> None:
    options = make_app("redis://127.0.0.1:1", QUEUE).conf.broker_transport_options
    prefix = redis_patterns("1f0c2d4e-uid")[0].rstrip("*")
    assert all(options[k].startswith(prefix) for k in ("unacked_key", "unacked_index_key", "unacked_mutex_key"))


def test_only_the_shards_are_acknowledged_late() -> None:
    from llamero.pods.tasks import shard, work

    assert (work.name, work.acks_late) == ("llamero.work.v1", False)
    assert (shard.name, shard.acks_late) == ("llamero.shard.v1", True)
