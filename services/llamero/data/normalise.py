"""The text of a draft made clean: line ends, NULs and blanks, HTML where there is some; and no empty turn gets through."""

import re
from dataclasses import replace

from llamero.data.html import asks_for_markup, convert_html, is_html
from llamero.data.readers.draft import UNLABELLED, Draft, RowError
from llamero.spec.records import Message, RejectionReason

_BLANK_LINES = re.compile(r"\A(?:[ \t]*\n)+")
_INDENTED = re.compile(r"\A(?:\t| {2,})\S[^\n]*\n")


def normalise_draft(draft: Draft, html: str) -> Draft:
    """The draft with clean text. `html` is auto, always or never."""
    turns = [Message(m.role, normalise_text(m.content)) for m in draft.messages]
    given = normalise_text(draft.input) if draft.input else ""
    if html == "always" or (html == "auto" and _may_be_html(draft) and not _asks_for_markup(turns)):
        is_sure = html == "always"
        turns = [Message(m.role, _to_markdown(m.content, is_sure)) for m in turns]
        given = _to_markdown(given, is_sure)
    if given and turns and turns[0].role == "user" and not turns[0].content:
        turns[0], given = Message("user", given), ""  # a title of nothing but blanks
    return replace(draft, messages=tuple(turns), input=given)


def refuse_empty(draft: Draft) -> None:
    """Raise RowError where a user turn or an assistant turn says nothing; a text that waits for its instruction has none to say."""
    judged = ("assistant",) if draft.meta.get(UNLABELLED) else ("user", "assistant")
    for number, message in enumerate(draft.messages, 1):
        if message.content or message.role not in judged:
            continue
        reason = RejectionReason.EMPTY_PROMPT if message.role == "user" else RejectionReason.EMPTY_ANSWER
        where = (
            f"Turn {number}" if len(draft.messages) > 2 else "The prompt" if message.role == "user" else "The answer"
        )
        raise RowError(reason, f"{where} is empty.", draft)


def normalise_text(text: str) -> str:
    """Line ends as `\\n`, no NULs, no halves of surrogate pairs, no blanks around; the indentation of code at the start stays."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8").lstrip("\ufeff")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        text = text.replace("\0", "")
    text = text.rstrip()
    if text[:1].isspace():
        text = _BLANK_LINES.sub("", text)
        if not _INDENTED.match(text):
            text = text.lstrip()
    return text


def _may_be_html(draft: Draft) -> bool:
    return "<" in draft.input or any("<" in m.content for m in draft.messages)


def _asks_for_markup(turns: list[Message]) -> bool:
    """Whether a prompt without markup of its own speaks of markup."""
    return any(m.role == "user" and "<" not in m.content and asks_for_markup(m.content) for m in turns)


def _to_markdown(text: str, is_sure: bool) -> str:
    if not text or not (is_sure or is_html(text)):
        return text
    return normalise_text(convert_html(text))
