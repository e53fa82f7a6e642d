"""The answers of a model while a pool grows, read strictly: what has not the form that was asked for raises ValueError and is asked again.

Lists may come in the form that was asked for or as JSON (alone or in a fence). Pure.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llamero.data.generating.prompts import NO_INPUT
from llamero.data.steps.tagged import strip_thoughts

_ITEM = re.compile(r"^(\d{1,4})[.)][ \t]+", re.MULTILINE)
_BLOCK = re.compile(r"^###[ \t]*(\d{1,4})[.:]?[ \t]*$", re.MULTILINE)
_FENCE = re.compile(r"\A```(?:json)?[ \t]*\n(.*)\n```\Z", re.DOTALL | re.IGNORECASE)
_FIELDS = re.compile(r"\AInstruction:(?P<instruction>.*?)^Input:(?P<input>.*?)^Output:(?P<output>.*)\Z", re.DOTALL | re.MULTILINE)  # fmt: skip
_EXAMPLE = re.compile(r"^Example[ \t]*\d*[.:]?[ \t]*$", re.MULTILINE)
_PAIR = re.compile(r"\A(?:Input:(?P<input>.*?)^)?Output:(?P<output>.*)\Z", re.DOTALL | re.MULTILINE)
_LABEL = re.compile(r"^Label:", re.MULTILINE)
_INPUT = re.compile(r"^Input:", re.MULTILINE)
_NOTHING = frozenset({NO_INPUT, "<no input>", "[noinput]", "none", "n/a", ""})


@dataclass(frozen=True)
class Instance:
    """An input (may be empty) and its output, as the model wrote them."""

    input: str
    output: str


@dataclass(frozen=True)
class NewTask:
    """An instruction, and with Alpaca's variant the instance that came with it."""

    instruction: str
    instance: Instance | None = None


def read_list(count: int) -> Callable[[str], list[NewTask]]:
    """A parser of new instructions: at most `count`, in the order that they were written in."""

    def parse(answer: str) -> list[NewTask]:
        text = strip_thoughts(answer)
        values = _read_json(text)
        if values is None:
            items = _split_items(text, _ITEM)
            if any(re.search(r"\n\s*\n", item) for item in items):
                raise ValueError("something besides the numbered tasks stands in the answer")
        elif all(isinstance(v, str) for v in values):
            items = values
        else:
            raise ValueError("the answer is JSON, but no list of texts")
        return [NewTask(" ".join(item.split())) for item in items][:count]

    return parse


def read_blocks(count: int, is_cut: bool = False) -> Callable[[str], list[NewTask]]:
    """A parser of new tasks with their instances; of an answer that was cut off the last one, which may lack its end, is left out."""

    def parse(answer: str) -> list[NewTask]:
        text = strip_thoughts(answer)
        if is_cut:
            return [_read_block(block) for block in _split_items(text, _BLOCK)[:-1]][:count]
        values = _read_json(text)
        if values is not None:
            return [_read_object(value) for value in values][:count]
        return [_read_block(block) for block in _split_items(text, _BLOCK)][:count]

    return parse


def read_class(answer: str) -> bool:
    """yes or no."""
    said = strip_thoughts(answer).strip().rstrip(".").casefold()
    if said not in ("yes", "no"):
        raise ValueError("the answer is neither yes nor no")
    return said == "yes"


def read_instances(is_classification: bool, count: int) -> Callable[[str], list[Instance]]:
    """A parser of an instruction's instances, at most `count`: labels and their inputs, or inputs and their outputs."""

    def parse(answer: str) -> list[Instance]:
        text = strip_thoughts(answer).strip()
        return (_read_labels(text) if is_classification else _read_examples(text))[:count]

    return parse


def _read_json(text: str) -> list[Any] | None:
    """The list that a text is as JSON; None where it is no JSON."""
    fenced = _FENCE.match(text.strip())
    inside = fenced[1] if fenced else text.strip()
    if not inside.startswith(("[", "{")):
        return None
    try:
        value = json.loads(inside)
    except (ValueError, RecursionError):
        raise ValueError("the answer begins as JSON and is none") from None
    if not isinstance(value, list) or not value:
        raise ValueError("the answer is JSON, but no list with something in it")
    return value


def _split_items(text: str, mark: re.Pattern[str]) -> list[str]:
    """The texts after each mark, whose numbers go up by one; before the first stands nothing, or a line that ends with a colon."""
    marks = list(mark.finditer(text))
    if not marks:
        raise ValueError("the answer holds no numbered tasks")
    before = text[: marks[0].start()].strip()
    if before and ("\n" in before or not before.endswith(":")):
        raise ValueError("something besides the numbered tasks stands in the answer")
    numbers = [int(m[1]) for m in marks]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise ValueError("the tasks' numbers don't go up one by one")
    ends = [*(m.start() for m in marks[1:]), len(text)]
    return [text[m.end() : end].strip() for m, end in zip(marks, ends, strict=True)]


def _read_block(block: str) -> NewTask:
    found = _FIELDS.match(block)
    if found is None or any(name in found["output"] for name in ("\nInstruction:", "\nOutput:")):
        raise ValueError("a task has not one instruction, one input and one output")
    return _build_task(found["instruction"], found["input"], found["output"])


def _read_object(value: Any) -> NewTask:
    names = ("instruction", "input", "output")
    if not isinstance(value, dict) or not all(
        isinstance(value.get(n, "" if n == "input" else None), str) for n in names
    ):
        raise ValueError("a task of the JSON list is no object with the texts `instruction`, `input` and `output`")
    return _build_task(value["instruction"], value.get("input", ""), value["output"])


def _build_task(instruction: str, given: str, output: str) -> NewTask:
    return NewTask(" ".join(instruction.split()), Instance(_clean_input(given), output.strip()))


def _clean_input(text: str) -> str:
    stripped = text.strip()
    return "" if stripped.rstrip(".").casefold() in _NOTHING else stripped


def _read_examples(text: str) -> list[Instance]:
    parts = _EXAMPLE.split(text)
    if parts[0].strip():
        # Without a headline there is one example.
        if len(parts) > 1:
            raise ValueError("something besides the examples stands in the answer")
        return [_read_pair(parts[0])]
    examples = [_read_pair(part) for part in parts[1:]]
    if not examples:
        raise ValueError("the answer holds no examples")
    return examples


def _read_pair(part: str) -> Instance:
    found = _PAIR.match(part.strip())
    if found is None or re.search(r"^(?:Input|Output):", found["output"], re.MULTILINE):
        raise ValueError("an example has not one output, after one input or none")
    return Instance(_clean_input(found["input"] or ""), found["output"].strip())


def _read_labels(text: str) -> list[Instance]:
    parts = _LABEL.split(text)
    if parts[0].strip() or len(parts) < 2:
        raise ValueError("the answer does not begin with a label, or holds something else besides")
    instances = []
    for part in parts[1:]:
        label, *inputs = _INPUT.split(part)
        if len(inputs) > 1 or "\n" in label.strip():
            raise ValueError("a label has more than one line, or more than one input")
        instances.append(Instance(_clean_input(inputs[0]) if inputs else "", label.strip()))
    return instances
