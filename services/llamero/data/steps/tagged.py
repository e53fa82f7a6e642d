"""Answers of language models that stand between tags, read strictly: the tags asked for, in their order, and nothing besides."""

import re
from collections.abc import Callable

_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)


def strip_thoughts(text: str) -> str:
    """The answer without the thoughts that some models write before it."""
    return _THOUGHTS.sub("", text, count=1).strip()


def tag(name: str, text: str) -> str:
    """A text between tags, as prompts show it."""
    return f"<{name}>\n{text}\n</{name}>"


def read_tagged(name: str) -> Callable[[str], str]:
    """A parser of answers of the form `<name>text</name>`: gives the text. Raises ValueError for any other answer."""
    pattern = re.compile(rf"<{name}>(.*)</{name}>", re.DOTALL)

    def parse(answer: str) -> str:
        found = pattern.fullmatch(strip_thoughts(answer))
        if found is None:
            raise ValueError(f"the answer is not one text between <{name}> and </{name}>")
        text = found[1].strip("\n").rstrip()
        if f"<{name}>" in text or f"</{name}>" in text:
            raise ValueError(f"the answer has <{name}> more than once")
        if not text.strip():
            raise ValueError(f"there is nothing between <{name}> and </{name}>")
        return text

    return parse
