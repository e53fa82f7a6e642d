"""What all tasks share: their form, the files in the folders that they leave, and how they tell that nobody waits for them."""

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from llamero.data.steps.record import Record
from llamero.data.steps.view import RECORDS_FILE as RECORDS_FILE
from llamero.data.steps.view import ROWS_FILE as ROWS_FILE
from llamero.spec.names import shard_name
from llamero.storage import read_file

Task = dict[str, Any]
Report = Callable[[int], None]

REJECTED_FILE = "rejected.jsonl"
INDEX_FILE = "index.npy"
TOKENS_FOLDER = "tokens"
TRAIN, EVALUATION = "train", "evaluation"
SIDES: Final = (TRAIN, EVALUATION)
ARMS_FOLDER = "arms"
SAMPLES_PER_REASON = 3

REPORT_ROWS = 2000


def raw_part_name(part: int) -> str:
    """The file of a raw shard's rows."""
    return f"{shard_name(part)}.rows"


class Obsolete(Exception):
    """A task of a preparation that has ended: nobody waits for it."""


def read_listing(task: Task) -> dict[str, Any]:
    """All clean shards of a preparation (`shards`, `shardSources`, `origins`). Raises Obsolete where it is over."""
    content = read_file(task["listing"])
    if content is None:
        raise Obsolete(f"{task['listing']} is gone")
    listing: dict[str, Any] = orjson.loads(content)
    return listing


def load_array(path: Path) -> NDArray:
    array: NDArray = np.load(path, allow_pickle=False)
    return array


def write_json(stream: IO[bytes], row: dict[str, Any]) -> None:
    stream.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS))


def write_record(stream: IO[bytes], record: Record) -> None:
    stream.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS))


def merge_counts(into: dict[str, Any], more: dict[str, Any]) -> None:
    """Add nested counts up."""
    for key, value in more.items():
        if isinstance(value, dict):
            merge_counts(into.setdefault(key, {}), value)
        else:
            into[key] = into.get(key, 0) + value
