"""How many records each rule of Gopher drops on real data, under both profiles: the tables of docs/data/quality.md.

python benchmarks/data/effects.py              # Alpaca, the Stack Exchange dump, DailyDialog, GSM8K in LLAMERO_DATA
"""

import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from inputs import find_data

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "services")]

from llamero.data.prepare import plan_data, prepare_data  # noqa: E402
from llamero.spec.job import FineTuneJobSpec  # noqa: E402
from llamero.spec.profiles import PROFILES  # noqa: E402
from llamero.spec.records import RejectionReason  # noqa: E402

SOURCES: dict[str, dict[str, Any]] = {
    "Alpaca": {"uri": "alpaca_data.json", "format": "alpaca"},
    "Stack Exchange": {"uri": "se_ai_Posts.xml", "format": "stackexchange"},
    "DailyDialog": {"uri": "dailydialog_train.txt", "format": "dialog"},
    "GSM8K": {
        "uri": "gsm8k_train.jsonl",
        "format": "records",
        "columns": {"instruction": "question", "output": "answer"},
    },
}
KINDS = ("quality", "repetition")


def main() -> int:
    data = find_data(os.environ.get("LLAMERO_DATA"), REPOSITORY)
    if data is None:
        print("The real data is not there: name its folder in LLAMERO_DATA.", file=sys.stderr)
        return 2
    for profile in ("instruction", "gopher-strict"):
        columns = {name: count_drops(data, source, profile) for name, source in SOURCES.items()}
        print(f"\n`{profile}`\n\n{render(columns)}")
    return 0


def count_drops(data: Path, source: dict[str, Any], profile: str) -> tuple[int, Counter[str]]:
    """(records that reached the two steps, drops by step and rule), of a preparation with nothing but them."""
    steps = [step for step in PROFILES[profile] if next(iter(step)) in KINDS]
    spec = FineTuneJobSpec.model_validate(
        {
            "baseModel": {"uri": "/base"},
            "data": {"sources": [{**source, "uri": str(data / source["uri"])}], "steps": steps},
            "training": {"sequenceLength": 4096},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        result = prepare_data(spec, plan_data(spec), None, output, Path(folder) / "cache", lambda progress: None, 1)
        rows = [json.loads(line) for line in (output / "rejected.jsonl").read_bytes().splitlines()]
    dropped = Counter(
        f"{row['step']['kind']}: {row['rule']}" for row in rows if row.get("step") and row["step"]["kind"] in KINDS
    )
    # Equal records are found after these steps.
    return result.kept + sum(dropped.values()) + result.rejected.get(RejectionReason.DUPLICATE, 0), dropped


def render(columns: dict[str, tuple[int, Counter[str]]]) -> str:
    """A Markdown table: a rule a row, a source a column, the rules that drop nothing anywhere left out."""
    rules = sorted({rule for _, dropped in columns.values() for rule in dropped})
    lines = ["| rule | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    lines.append("| records | " + " | ".join(f"{read:,}" for read, _ in columns.values()) + " |")
    for rule in rules:
        lines.append(f"| {rule} | " + " | ".join(f"{dropped[rule]:,}" for _, dropped in columns.values()) + " |")
    shares = (f"{sum(dropped.values()):,} ({sum(dropped.values()) / read:.1%})" for read, dropped in columns.values())
    lines.append("| all | " + " | ".join(shares) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
