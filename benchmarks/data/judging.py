"""The judge step on Alpaca with a played judge: how many questions a second, what a second time costs, and what memory the answers take.

    .venv/bin/python benchmarks/data/judging.py [--records 52002] [--answers 1000000]

The judge is a server in a process of its own that knows AlpaGasus's published selection and answers 5 for a record in it, 3 for any
other. What is measured is llamero's side: a real judge is slower, and its answers are its own.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "services"), str(ROOT / "tests")]
DATA = Path(os.environ.get("LLAMERO_DATA", ROOT.parent / "shared" / "data"))
RECORDS_A_CALL = 2000


def serve(connection: Connection) -> None:
    """Play the judge until told to stop; sends its URL, then how many requests it had."""
    from services.data.model_server import ModelServer

    from llamero.data.steps.judge import show_record

    rows = json.loads((DATA / "alpagasus_claude_t45.json").read_text())
    chosen = {show_record(build_record(n, row)).strip() for n, row in enumerate(rows)}

    def answer(body: dict[str, Any]) -> str:
        shown = body["messages"][-1]["content"].split(" =====\n", 1)[1].split("\n===== end", 1)[0]
        return json.dumps({"score": 5 if shown.strip() in chosen else 3, "reason": "played"})

    with ModelServer(answer) as server:
        connection.send(server.url)
        connection.recv()
        connection.send(len(server.requests))


def judge(url: str, answers: str, records: Sequence[Any]) -> dict[str, Any]:
    """Put the records through the step; seconds, and what it kept at 4.5."""
    from llamero.data.steps.judge import Judging
    from llamero.data.steps.record import StepContext
    from llamero.spec.steps import JudgeStep, LanguageModel

    model = LanguageModel(url=url, model="played", concurrency=32)
    step = Judging(JudgeStep(models=[model]), StepContext(0, None, answers, 1, Path))
    started, kept = time.monotonic(), 0
    for begin in range(0, len(records), RECORDS_A_CALL):
        judged = step.apply(records[begin : begin + RECORDS_A_CALL])
        kept += sum(record.scores.get("judge", 0) >= 4.5 for record in judged)
    accounts = [account.to_dict() for account in step.accounts]
    return {
        "seconds": round(time.monotonic() - started, 1),
        "kept": kept,
        **{name: sum(a[name] for a in accounts) for name in ("asked", "answered", "cached", "requests")},
        "peakMiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def build_record(number: int, row: dict[str, str]) -> Any:
    """An Alpaca row as the steps see it."""
    from llamero.data.steps.record import Record
    from llamero.spec.records import Message

    messages = Message("user", row["instruction"].strip()), Message("assistant", row["output"].strip())
    return Record(number, "alpaca", "alpaca_data.json", number + 1, messages, row["input"].strip())


def read_records(count: int) -> list[Any]:
    """Alpaca's records with an answer."""
    rows = json.loads((DATA / "alpaca_data.json").read_text())[:count]
    return [build_record(n, row) for n, row in enumerate(rows) if row["output"].strip()]


def measure_memory(count: int) -> None:
    """In a process of its own: read the index of so many answers, and print the memory that it takes."""
    from llamero.data.asking.cache import AnswerCache

    with tempfile.TemporaryDirectory() as folder:
        if os.fork() == 0:
            writer = AnswerCache(folder)
            for n in range(count):
                key = (n * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big") * 2
                writer.keep_text("0" * 16, key, '{"score": 4.5, "reason": "It is right."}', "stop", (200, 20))
            writer.close()
            os._exit(0)
        os.wait()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = read_peak()
        started = time.monotonic()
        reader = AnswerCache(folder)
        reader.refresh()
        seconds = time.monotonic() - started
        peak = read_peak() - before
        print(json.dumps({"answers": len(reader), "seconds": round(seconds, 2), "peakMiB": round(peak / 1024, 1)}))


def read_peak() -> int:
    """The process's greatest resident memory, in KiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=52_002)
    parser.add_argument("--answers", type=int, default=1_000_000, help="largest of the four sizes of the index")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        measure_memory(given.memory)
        return
    ours, theirs = multiprocessing.Pipe()
    judging = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,))
    judging.start()
    url, records = ours.recv(), read_records(given.records)
    with tempfile.TemporaryDirectory() as answers:
        for name in ("first", "again"):
            print(name, json.dumps(judge(url, answers, records)))
        size = sum(p.stat().st_size for p in Path(answers).rglob("*") if p.is_file())
        print(f"answers on disk: {size / 2**20:.1f} MiB")
        ours.send(None)
        print("requests the server had:", ours.recv())
    judging.join()
    for share in (27, 9, 3, 1):
        subprocess.run([sys.executable, __file__, "--memory", str(given.answers // share)], check=True)


if __name__ == "__main__":
    main()
