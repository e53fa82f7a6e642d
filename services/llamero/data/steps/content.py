"""What a reader would not want: listed words and patterns, boilerplate, poor, unreadable or misspelled answers. Each rule is off unless it is set."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llamero.data.errors import DataError
from llamero.data.steps.boilerplate import find_boilerplate_fraction
from llamero.data.steps.prose import WORD, strip_code, strip_code_lines, strip_links
from llamero.data.steps.readability import (
    find_misspelled,
    find_mtld,
    find_reading_ease,
    list_small_words,
    load_known_words,
)
from llamero.data.steps.record import Drop, Record, StepContext
from llamero.data.steps.word_list import WordList
from llamero.spec.steps import ContentStep

Rule = Callable[[Record], Drop | None]

_MAX_SHOWN = 80


class _Content:
    def __init__(self, options: ContentStep, words: WordList, patterns: list[Any]) -> None:
        self._options = options
        self._words = words
        self._patterns = patterns
        self._rules: list[Rule] = []
        if words or patterns:
            self._rules.append(self._find_matches)
        if options.max_boilerplate_fraction is not None:
            self._rules.append(self._find_boilerplate)
        if any(
            x is not None
            for x in (options.min_lexical_richness, options.min_reading_ease, options.max_misspelled_fraction)
        ):
            self._rules.append(self._judge_reading)
        if options.max_misspelled_fraction is not None:
            load_known_words()

    def apply(self, records: Sequence[Record]) -> list[Record | Drop]:
        return [self._judge(record) for record in records]

    def _judge(self, record: Record) -> Record | Drop:
        for rule in self._rules:
            drop = rule(record)
            if drop is not None:
                return drop
        return record

    def _find_matches(self, record: Record) -> Drop | None:
        text = record.text
        found = self._words.find_all(text)
        for pattern in self._patterns:
            found += [match.group() for match in pattern.finditer(text)]
        most = self._options.max_matches
        if len(found) <= most:
            return None
        named = f"“{found[0][:_MAX_SHOWN]}”"
        rest = f" and {len(found) - 1} more" if len(found) > 1 else ""
        return Drop("maxMatches", f"The record holds {named}{rest}; {most} matches are allowed.", len(found), most)

    def _find_boilerplate(self, record: Record) -> Drop | None:
        most = self._options.max_boilerplate_fraction
        assert most is not None
        fields = [("input", record.input), *((m.role, m.content) for m in record.messages if m.role != "system")]
        for name, text in fields:
            fraction = round(find_boilerplate_fraction(strip_code(text), self._options.min_lines), 4) if text else 0.0
            if fraction > most:
                where = {"user": "a prompt", "assistant": "an answer"}.get(name, f"the {name}")
                detail = (
                    f"Of the lines of {where} {fraction:.0%} belong to a page's frame, where at most {most:.0%} may."
                )
                return Drop("maxBoilerplateFraction", detail, fraction, most)
        return None

    def _judge_reading(self, record: Record) -> Drop | None:
        options = self._options
        text = strip_code_lines(strip_links(strip_code(record.answer, maths=True)))
        words = [w.lower() for w in WORD.findall(text)]
        if len(words) < options.short_text_words:
            return None
        if options.min_lexical_richness is not None:
            richness = round(find_mtld(words), 4)
            if richness < options.min_lexical_richness:
                detail = f"The answer's lexical richness (MTLD) is {richness:.1f}, where at least {options.min_lexical_richness:g} is wanted."
                return Drop("minLexicalRichness", detail, richness, options.min_lexical_richness)
        if options.min_reading_ease is not None:
            ease = round(find_reading_ease(text, words), 4)
            if ease < options.min_reading_ease:
                detail = f"The answer's reading ease (Flesch) is {ease:.1f}, where at least {options.min_reading_ease:g} is wanted."
                return Drop("minReadingEase", detail, ease, options.min_reading_ease)
        if options.max_misspelled_fraction is not None:
            return self._judge_spelling(text, options.max_misspelled_fraction, options.short_text_words)
        return None

    def _judge_spelling(self, text: str, most: float, least_words: int) -> Drop | None:
        words = list_small_words(text)
        if len(words) < least_words:
            return None
        unknown = find_misspelled(words)
        fraction = round(len(unknown) / len(words), 4)
        if fraction <= most:
            return None
        shown = ", ".join(f"“{w}”" for w in dict.fromkeys(unknown[:3]))
        detail = f"Of the answer's words {fraction:.1%} are misspelled ({shown}), where at most {most:.1%} may be."
        return Drop("maxMisspelledFraction", detail, fraction, most)


def build(options: ContentStep, context: StepContext) -> _Content:
    """The step. Raises DataError for a pattern that is none, and a word file that can't be read."""
    words = list(options.words)
    if options.words_uri is not None:
        words += read_words(context.fetch(options.words_uri), options.words_uri)
    return _Content(options, WordList(words), [_compile(p) for p in options.patterns])


def read_words(path: Path, name: str) -> list[str]:
    """The words of a file: one a line; blank lines and lines that begin with # are left out. Raises DataError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"The word file `{name}` is not UTF-8 (byte {error.start}): save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"The word file `{name}` can't be read: {error.strerror or error}.") from None
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _compile(pattern: str) -> Any:
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        raise DataError(
            f"The content step's pattern `{pattern}` is no regular expression of RE2 ({reason}): mend it; look-around and "
            "back-references, which RE2 has not, can't be used."
        ) from None
