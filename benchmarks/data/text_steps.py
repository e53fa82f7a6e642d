"""What each step that looks at text drops and changes on real data, and how many records a second: the tables of docs/data.

python benchmarks/data/text_steps.py             # Alpaca, the Stack Exchange dump, DailyDialog, FastChat's dummy conversations in LLAMERO_DATA
python benchmarks/data/text_steps.py language    # one kind

Records are read and cleaned first; the rate is that of the step alone, on one core (CPU time), in the pipeline's batches of 512.
"""

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from inputs import find_data

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "services")]

from llamero.data.normalise import normalise_draft, refuse_empty  # noqa: E402
from llamero.data.readers import READERS, Draft, RowError  # noqa: E402
from llamero.data.rows import RawRow  # noqa: E402
from llamero.data.steps.record import Drop, Record, StepContext  # noqa: E402
from llamero.data.steps.registry import build_record_step  # noqa: E402
from llamero.data.turns import arrange_turns  # noqa: E402
from llamero.spec.job import DataSource  # noqa: E402
from llamero.spec.profiles import PlannedStep  # noqa: E402
from llamero.spec.steps import DataStep  # noqa: E402

SOURCES = {
    "Alpaca": ("alpaca", "alpaca_data.json"),
    "Stack Exchange": ("stackexchange", "se_ai_Posts.xml"),
    "DailyDialog": ("dialog", "dailydialog_train.txt"),
    "FastChat dummy": ("sharegpt", "fastchat_dummy_conversation.json"),
}

STEPS: list[dict[str, Any]] = [
    {"extract": {}},
    {"content": {"words": ["damn", "hell", "stupid idiot"], "patterns": ["(?i)as an ai language model"]}},
    {"content": {"maxBoilerplateFraction": 0.3}},
    {"content": {"minLexicalRichness": 20}},
    {"content": {"minReadingEase": 0}},
    {"content": {"maxMisspelledFraction": 0.1}},
    {"personalData": {}},
    {"language": {}},
    {"conversations": {}},
    {"length": {"field": "answer", "min": 16}},
    {"instructions": {}},
    {"answerStyle": {}},
]
BATCH = 512


def main(kinds: list[str]) -> int:
    data = find_data(os.environ.get("LLAMERO_DATA"), REPOSITORY)
    if data is None:
        print("The real data is not there: name its folder in LLAMERO_DATA.", file=sys.stderr)
        return 2
    sets = {name: list(read_records(data / file, form)) for name, (form, file) in SOURCES.items()}
    for raw in STEPS:
        step = DataStep.model_validate(raw)
        if not kinds or step.kind in kinds:
            print(f"\n{orjson.dumps(raw).decode()}")
            for name, records in sets.items():
                print(f"  {name}: {measure(step, records)}")
    return 0


def read_records(path: Path, form: str) -> Iterator[Record]:
    """What every preparation lets through."""
    source = DataSource.model_validate({"uri": str(path), "format": form})
    reader = READERS[source.format]
    with path.open("rb") as stream, tempfile.TemporaryDirectory() as scratch:
        for number, row in enumerate(reader.read_rows(stream, path.name, Path(scratch))):
            if not isinstance(row, RawRow):
                continue
            try:
                draft = reader.parse(orjson.loads(row.json), source)
                draft = Draft(arrange_turns(draft.messages), draft.input, draft.tags, draft.meta)
                draft = normalise_draft(draft, "always" if reader.is_html else "auto")
                refuse_empty(draft)
            except RowError:
                continue
            yield Record(number, form, path.name, row.line, draft.messages, draft.input, draft.tags, draft.meta)


def measure(step: DataStep, records: list[Record]) -> str:
    planned = PlannedStep(1, step.kind, step.options, (), "spec.data.steps[0]")
    built = build_record_step(planned, StepContext(0, None, "", 1, lambda uri: Path(uri)))
    built.apply(records[:32])
    start = time.process_time()
    results = [r for place in range(0, len(records), BATCH) for r in built.apply(records[place : place + BATCH])]
    rate = len(records) / (time.process_time() - start)
    rules = Counter(r.rule for r in results if isinstance(r, Drop))
    changed = sum(new is not old for new, old in zip(results, records, strict=True) if isinstance(new, Record))
    named = ", ".join(f"{rule} {count:,}" for rule, count in rules.most_common())
    dropped = f"{rules.total():,} dropped ({named})" if rules else "none dropped"
    return f"{len(records):,} records, {dropped}, {changed:,} changed, {rate:,.0f} a second"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
