"""LIMA's rules for answers (arXiv:2305.11206): long enough, for themselves, in nobody's voice; and what of a Stack Exchange question is the prompt.

The answer is stripped of links, images and marks first; its length is that of what stays. Code, lists, tables and maths are left as they are.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

from llamero.data.errors import DataError
from llamero.data.html import convert_html, is_html
from llamero.data.steps.prose import change_prose, strip_code, strip_links
from llamero.data.steps.record import Drop, Record, StepContext
from llamero.spec.records import Message
from llamero.spec.steps import AnswerStyleStep

# `I` before a small letter: not `Type I error` (see _NUMBERED), `I/O`, `I.` (of a list) or `i`.
_FIRST_PERSON = re.compile(
    r"\bI['’](?:m|ve|ll|d)\b|(?<![\w./&-])I(?=,? [a-z])|\b(?:[Mm]y|[Mm]yself|me)\b(?![-.'’][A-Za-z])"
)
_NUMBERED = re.compile(
    r"\b(?:War|Type|Part|Class|Phase|Stage|Level|Chapter|Section|Volume|Book|Act|Group|Schedule|Title|Article|Category|Grade)s?[ ]\Z",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"^[ \t]*>[^\n]*$|“[^”\n]*”|(?<![\w\"])\"[^\"\n]{1,400}\"(?!\w)", re.MULTILINE)

_REFERENCES = re.compile(
    # as mentioned, as others have said, as @somebody pointed out
    r"\bas (?:(?:already|previously|correctly|has|have|had|been|was|were|is|others?|someone|somebody|everyone|@?\w+) ){0,4}?"
    r"(?:mentioned|noted|said|stated|pointed out|suggested|commented|answered)\b"
    # the answer above, previous answers, in the comments, somebody else's answer
    r"|\b(?:answers?|comments?|posts?|repl(?:y|ies)|responses?) (?:is |are )?(?:given |posted )?(?:above|below|here)\b"
    r"|\b(?:above|below|other|previous|earlier|existing|accepted|top|top-voted|highest-voted|first|second|current|linked) "
    r"(?:answers?|comments?|posts?|repl(?:y|ies))\b"
    r"|\b(?:in|from|see|per|to) (?:the )?comments?\b|\b\w+['’]s? (?:excellent |great |good |nice )?answer\b|\bmy (?:other )?answer\b"
    r"|\b(?:another|other|someone|somebody|everyone)(?: else)?['’]?s? answers?\b"
    # the site, who asked, votes, and people by their handle
    r"|\b(?:this|the) (?:site|forum|thread|other question)\b|\bstack ?(?:exchange|overflow)\b|\b(?-i:OP)\b"
    r"|\b(?:up|down)-?vot(?:e|ed|es|ing)\b|(?<![\w.])@[A-Za-z]\w{2,}\b",
    re.IGNORECASE,
)

_RULES = re.compile(r"^[ \t]*(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$\n?", re.MULTILINE)
_HEADINGS = re.compile(r"^[ \t]{0,3}#{1,6}[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$", re.MULTILINE)
_QUOTE_MARKS = re.compile(r"^[ \t]{0,3}(?:>[ ]?)+", re.MULTILINE)
_EMPHASIS = re.compile(
    r"(?<![\w*\\])(\*{1,3})(?=[^\s*])([^*\n]*[^\s*\\])\1(?![\w*])|(?<![\w_\\])(_{1,3})(?=[^\s_])([^_\n]*[^\s_\\])\3(?![\w_])|~~([^~\n]+)~~"
)
_BLANK_LINES = re.compile(r"\n[ \t]*\n(?:[ \t]*\n)+")


def strip_markup(text: str) -> str:
    """The text without links (their text stays), images, headings' and quotes' marks, emphasis and HTML; code, maths, lists and tables stay."""
    stripped = convert_html(text) if "<" in text and is_html(text) else text
    stripped = change_prose(stripped, _strip_prose)
    if stripped == text:
        return text
    return _BLANK_LINES.sub("\n\n", stripped).strip("\n").rstrip()


def _strip_prose(text: str) -> str:
    text = strip_links(text)
    if "#" in text:
        text = _HEADINGS.sub(r"\1", text)
    if ">" in text:
        text = _QUOTE_MARKS.sub("", text)
    if "*" in text or "_" in text or "~~" in text or "---" in text:
        text = _RULES.sub("", text)
        text = _EMPHASIS.sub(lambda m: m[2] or m[4] or m[5], text)
    return text


def find_first_person(text: str) -> list[str]:
    """The words by which somebody speaks of themselves; code and quotations are not looked at."""
    if not ("I" in text or "me" in text or "my" in text.lower()):
        return []
    text = _QUOTED.sub(" ", strip_code(text, maths=True))
    return [
        m.group()
        for m in _FIRST_PERSON.finditer(text)
        if m.group() != "I" or not _NUMBERED.search(text[max(0, m.start() - 16) : m.start()])
    ]


def find_references(text: str) -> list[str]:
    """The words by which an answer refers to others, to their authors, or to the site; code is not looked at."""
    return [m.group() for m in _REFERENCES.finditer(strip_code(text, maths=True))]


class _AnswerStyle:
    def __init__(self, options: AnswerStyleStep, seed: int) -> None:
        self._options = options
        self._seed = seed

    def apply(self, records: Sequence[Record]) -> list[Record | Drop]:
        return [self._handle(record) for record in records]

    def _handle(self, record: Record) -> Record | Drop:
        options = self._options
        original = record.answer
        answer = strip_markup(original) if options.strip_links else original
        length = len(answer)
        if length < options.min_characters:
            detail = f"The answer has {length} characters, where at least {options.min_characters} are wanted."
            return Drop("minCharacters", detail, length, options.min_characters)
        if length > options.max_characters:
            detail = f"The answer has {length} characters, where at most {options.max_characters} are wanted."
            return Drop("maxCharacters", detail, length, options.max_characters)
        # Looked for in the original too: a quotation's mark or a link's target tells what is said.
        if not options.allow_first_person and (found := find_first_person(original)):
            return Drop("allowFirstPerson", f"The answer is in the first person (“{found[0]}”).", len(found), 0)
        if not options.allow_references and (found := find_references(answer)):
            return Drop("allowReferences", f"The answer refers to others (“{found[0]}”).", len(found), 0)
        if answer != original:
            record = record.with_answer(answer)
        return self._choose_prompt(record) if is_question(record) else record

    def _choose_prompt(self, record: Record) -> Record:
        """Of a Stack Exchange question its title or its body; the choice by its content, so that it stays when data is added."""
        chosen = self._options.prompt
        if chosen == "both" or not record.input.strip():
            return record
        place = next(i for i, m in enumerate(record.messages) if m.role == "user")
        title = record.messages[place].content
        if chosen == "random":
            told = f"answerStyle\n{self._seed}\n{title}\n{record.input}"
            chosen = "body" if blake2b(told.encode("utf-8", "replace"), digest_size=1).digest()[0] & 1 else "title"
        text = record.input if chosen == "body" else title
        messages = (*record.messages[:place], Message("user", text), *record.messages[place + 1 :])
        return replace(record, messages=messages, input="").with_meta(prompt=chosen)


def is_question(record: Record) -> bool:
    """Whether the record is a question of Stack Exchange: its first turn a title, its input the body."""
    return "answerId" in record.meta


def build(options: AnswerStyleStep, context: StepContext) -> _AnswerStyle:
    """The step. Raises DataError where no length can satisfy it."""
    if options.min_characters > options.max_characters:
        raise DataError(
            f"The answerStyle step's minCharacters ({options.min_characters}) is greater than its maxCharacters "
            f"({options.max_characters}): swap them."
        )
    return _AnswerStyle(options, context.seed)
