"""The files that the sides read: Alpaca's records as lines, copies of them in shifted letters, planted edits, HTML bodies, instructions.

All are made from the folder of real data, once, in the benchmark's own folder.
"""

import json
import random
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ALPACA, POSTS, SEEDS = "alpaca_data.json", "se_ai_Posts.xml", "seed_tasks_selfinstruct.jsonl"
EDITED_SHARE = 0.1
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_KEPT_WORDS = frozenset(("the", "and", "that", "have", "with"))  # they tell prose from other text
_LONG_WORD = re.compile(r"[A-Za-z]{3,}")


def find_data(given: str | None, repository: Path) -> Path | None:
    """The folder of real data: given, or `../shared/data` beside the checkout; None where it lacks what is needed."""
    folder = Path(given) if given else repository.parent / "shared" / "data"
    return folder if all((folder / name).is_file() for name in (ALPACA, POSTS)) else None


@dataclass(frozen=True)
class Inputs:
    """The paths of what was made, and how many lines each has."""

    alpaca: Path
    bodies: Path
    planted: Path
    folder: Path
    counts: dict[str, int]

    def write_copies(self, size: int) -> Path:
        """So many records: Alpaca's, then copies of them, the n-th with its letters shifted by n, so that no two are the same."""
        path = self.folder / f"copies-{size}.jsonl"
        if path.is_file():
            return path
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as out:
            for written, row in enumerate(_iterate_copies(self.alpaca)):
                if written == size:
                    break
                out.write(json.dumps(row) + "\n")
        partial.rename(path)
        return path


def _iterate_copies(alpaca: Path) -> Iterator[dict[str, Any]]:
    for shift in range(len(_LETTERS)):
        with alpaca.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield row if not shift else shift_letters(row, shift)
    raise ValueError("More records were asked for than there are shifts of the alphabet.")


def shift_letters(row: dict[str, Any], shift: int) -> dict[str, Any]:
    """The record with the letters of its longer words moved on in the alphabet; the stop words that rules look for stay."""
    moved = _LETTERS[shift:] + _LETTERS[:shift]
    table = str.maketrans(_LETTERS + _LETTERS.upper(), moved + moved.upper())

    def move(match: re.Match[str]) -> str:
        word = match.group()
        return word if word.lower() in _KEPT_WORDS else word.translate(table)

    changed = {key: _LONG_WORD.sub(move, row[key]) for key in ("instruction", "input", "output")}
    if changed["instruction"] == row["instruction"]:
        changed["instruction"] += f" ({moved[:4]})"
    return {**changed, "text": join(changed)}


def join(row: dict[str, Any]) -> str:
    """A record as one text, as llamero's `Record.text` has it."""
    turns = (row["instruction"], row["input"], row["output"]) if row["input"] else (row["instruction"], row["output"])
    return "\n\n".join(turns)


def prepare_inputs(data: Path, folder: Path) -> Inputs:
    """Make what is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.jsonl" for name in ("alpaca", "bodies", "planted")}
    if not all(path.is_file() for path in paths.values()):
        rows = json.loads((data / ALPACA).read_text(encoding="utf-8"))
        _write(paths["alpaca"], ({**row, "text": join(row)} for row in rows))
        _write(paths["bodies"], ({"body": body} for body in read_bodies(data / POSTS)))
        _write(paths["planted"], plant_edits(rows))
    counts = {name: sum(1 for _ in path.open("rb")) for name, path in paths.items()}
    return Inputs(paths["alpaca"], paths["bodies"], paths["planted"], folder, counts)


def _write(path: Path, rows: Any) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    partial.replace(path)


def read_bodies(posts: Path) -> list[str]:
    """The HTML bodies of a Stack Exchange dump."""
    return [row.get("Body") or "" for row in ElementTree.parse(posts).getroot()]


def plant_edits(rows: list[dict[str, Any]], count: int = 2000) -> Iterator[dict[str, Any]]:
    """10,000 records, then edited copies of the first `count` of 30 words or more: one word in ten is another of the set's words.

    Line `10,000 + i` is a copy of line `of`. Words with digits stay: records that differ in a number are not the same.
    """
    generator = random.Random(0)
    texts = [join(row) for row in rows[:10_000]]
    vocabulary = sorted({word for text in texts[:2000] for word in text.split() if word.isalpha()})
    yield from ({"text": text} for text in texts)
    long = [number for number, text in enumerate(texts) if len(text.split()) >= 30][:count]
    for number in long:
        pieces = re.split(r"(\s+)", texts[number])
        places = [place for place in range(0, len(pieces), 2) if pieces[place].isalpha()]
        edits = min(len(places), round(EDITED_SHARE * len(texts[number].split())))
        for place in generator.sample(places, edits):
            pieces[place] = generator.choice(vocabulary)
        yield {"text": "".join(pieces), "of": number}
