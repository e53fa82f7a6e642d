"""What is asked side by side: the manifest's prompt sets, or a few held-out records with their own answers."""

import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamero import storage
from llamero.evaluation.failures import PromptError
from llamero.spec.job import PromptSet
from llamero.spec.records import Conversation, Message

HELD_OUT_SET = "held-out"
HELD_OUT_PROMPTS = 3
MAX_PROMPTS_OF_A_FILE = 200
MAX_LINE_BYTES = 1 << 20

_PROMPT_KEYS = ("prompt", "instruction", "question", "turns")
_REFERENCE_KEYS = ("reference", "answer", "output")


@dataclass(frozen=True)
class Prompt:
    """One question: the turns up to it, the input that goes with it (Alpaca), and an answer to compare with."""

    prompt_set: str
    messages: tuple[Message, ...]
    input: str | None = None
    reference: str | None = None

    @property
    def text(self) -> str:
        """What a reader sees: the user's words and the input."""
        turns = [m.content for m in self.messages if m.role == "user"]
        return "\n\n".join([*turns, self.input] if self.input else turns)


def read_prompts(
    sets: Sequence[PromptSet], system: str | None, allow_http: bool = False
) -> tuple[list[Prompt], list[str]]:
    """The prompts of all sets in the manifest's order, and what to tell of them.

    Raises PromptError for a line that holds no prompt, storage.StorageError where a file can't be opened.
    """
    prompts: list[Prompt] = []
    notes: list[str] = []
    for prompt_set in sets:
        rows: list[tuple[str, str | None, str | None]] = [(p, None, None) for p in prompt_set.prompts]
        if prompt_set.uri:
            read = list(_read_file(prompt_set.uri, MAX_PROMPTS_OF_A_FILE + 1, allow_http))
            if len(read) > MAX_PROMPTS_OF_A_FILE:
                notes.append(f"Of the prompts in {prompt_set.uri} the first {MAX_PROMPTS_OF_A_FILE} were asked.")
            rows += read[:MAX_PROMPTS_OF_A_FILE]
        if not rows:
            notes.append(f"The prompt set {prompt_set.name} holds no prompt.")
        opening = (Message("system", system),) if system else ()
        prompts += [Prompt(prompt_set.name, (*opening, Message("user", t)), i, r) for t, i, r in rows]
    return prompts, notes


def _read_file(uri: str, limit: int, allow_http: bool) -> Iterator[tuple[str, str | None, str | None]]:
    """(prompt, input, reference) of a JSONL file's first lines; blank ones are no lines."""
    with storage.open_uri(uri, allow_http=allow_http) as stream:
        found = 0
        number = 0
        while found < limit and (line := stream.readline(MAX_LINE_BYTES + 1)):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise PromptError(
                    f"{uri}, line {number} is longer than {MAX_LINE_BYTES:,} bytes: give one prompt a line."
                )
            if line.strip():
                found += 1
                yield _read_row(line, f"{uri}, line {number}")


def _read_row(line: bytes, where: str) -> tuple[str, str | None, str | None]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        raise PromptError(f"{where} is no JSON: {error}.") from error
    if not isinstance(row, dict):
        raise PromptError(f'{where} is no object: write {{"prompt": "…"}}.')
    text = next((t for key in _PROMPT_KEYS if (t := _first_text(row.get(key)))), None)
    if text is None:
        raise PromptError(f"{where} has no text in any of {', '.join(_PROMPT_KEYS)}.")
    return (
        text,
        _first_text(row.get("input")),
        next((t for k in _REFERENCE_KEYS if (t := _first_text(row.get(k)))), None),
    )


def _first_text(value: Any) -> str | None:
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, str) and value.strip() else None


def choose_held_out(files: Iterable[Path], count: int = HELD_OUT_PROMPTS) -> list[Prompt]:
    """The first `count` held-out records by content hash, each up to its first answer, which is the reference.

    Raises PromptError for a file that is not one of `spec.records`.
    """
    # A later chunk of a long record begins in the middle of a talk.
    openings = (r for file in files for r in _read_records(file) if not r.chunk)
    chosen = heapq.nsmallest(count, openings, key=lambda record: record.id)
    return [p for p in map(_ask_first_turn, chosen) if p is not None]


def _read_records(file: Path) -> Iterator[Conversation]:
    try:
        with file.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    yield Conversation.from_dict(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise PromptError(
                        f"{file}, line {number} is no record: {error!r}. Prepare the data again."
                    ) from error
    except OSError as error:
        raise PromptError(f"{file} can't be read: {error.strerror}. Prepare the data again.") from error


def _ask_first_turn(record: Conversation) -> Prompt | None:
    for index, message in enumerate(record.messages):
        if message.role == "assistant":
            extra = record.meta.get("input")
            return Prompt(HELD_OUT_SET, record.messages[:index], extra or None, message.content) if index else None
    return None
