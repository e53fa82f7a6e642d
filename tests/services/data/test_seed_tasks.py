import io
import json
from pathlib import Path

import orjson
import pytest

from llamero.data.generating.seeds import read_seeds
from llamero.data.readers import READERS, RowError
from llamero.data.rows import BrokenRow
from llamero.spec.job import DataFormat, DataSource

READER = READERS[DataFormat.SEED_TASKS]
SOURCE = DataSource.model_validate({"uri": "-", "format": "seed-tasks"})


def test_a_seed_task_is_a_record_for_each_instance() -> None:
    task = {"id": "t", "instruction": "Add.", "instances": [{"input": "1 1", "output": "2"}, {"output": "nothing"}]}
    broken = b'{"instruction": \n'
    tasks = [{**task, "is_classification": True}, {**task, "instances": task["instances"][:1]}]
    lines = "".join(json.dumps(t) + "\n" for t in tasks).encode() + broken
    rows = list(READER.read_rows(io.BytesIO(lines), "seeds.jsonl", Path("-")))
    assert [row.line for row in rows] == [1, 1, 2, 3]
    drafts = [READER.parse(orjson.loads(row.json), SOURCE) for row in rows[:3] if not isinstance(row, BrokenRow)]
    assert [(d.input, d.messages[-1].content) for d in drafts] == [("1 1", "2"), ("", "nothing"), ("1 1", "2")]
    assert [d.meta for d in drafts] == [{"sourceId": "t", "classification": True}] * 2 + [{"sourceId": "t"}]


@pytest.mark.parametrize(
    "row", [{"instruction": "Add."}, {"instruction": "Add.", "instances": []}, [], {"instances": [{}]}]
)
def test_a_row_that_is_no_seed_task_says_why(row: object) -> None:
    with pytest.raises(RowError, match=r"`|object"):
        READER.parse(row, SOURCE)


def test_self_instructs_own_seeds_are_read_whole(real_data: Path) -> None:
    path = real_data / "seed_tasks_selfinstruct.jsonl"
    seeds = read_seeds(DataSource.model_validate({"uri": str(path), "format": "seed-tasks"}))
    assert len(seeds) == 175
    assert sum(seed.is_classification is True for seed in seeds) == 26
    assert sum(bool(seed.input) for seed in seeds) == 125
