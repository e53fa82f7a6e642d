"""Records in the listed languages, told by py3langid's model (which its package ships); code, maths and links are not looked at.

The model is a naive Bayes classifier over byte n-grams, found by an automaton. Its own Python walks a text byte by byte (10,000 short
texts a second); here all texts of a batch walk at once. What a text gets does not depend on its batch.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamero.data.errors import DataError
from llamero.data.steps.prose import WORD, strip_code, strip_code_lines, strip_links
from llamero.data.steps.record import Drop, Record, StepContext
from llamero.spec.steps import LanguageStep

NO_LANGUAGE = "zxx"
"""The model's label of what is in no language (ISO 639-2): numbers, symbols, names alone."""

MAX_CHARACTERS = 1000
"""Of a longer text so many from its start and from its end are looked at."""

_TEXTS_AT_ONCE = 1024
_FEWEST_TOGETHER = 32
"""Where fewer texts of a batch go on, walking each by itself is faster."""

# Scripts that put no blanks between words: two characters count as a word.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


@dataclass(frozen=True, slots=True)
class _Model:
    """The automaton and the classifier: see `py3langid.langid.LanguageIdentifier`."""

    next_states: NDArray[np.uint32]  # [rows × 256]
    row_starts: NDArray[np.int64]  # [states]
    outputs: NDArray[np.int32]  # [states]: the feature that ends there, or -1
    weights: NDArray[np.float16]  # [features, labels]
    priors: NDArray[np.float32]  # [labels]
    labels: tuple[str, ...]
    aliases: tuple[tuple[int, int], ...]  # columns of one label: the second's share belongs to the first
    plain_next_states: Sequence[int]  # the same three as Python reads them fastest
    plain_row_starts: Sequence[int]
    plain_outputs: Sequence[int]

    def rate(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Probabilities [texts, labels]."""
        rates = np.empty((len(texts), len(self.labels)), np.float32)
        encoded = [_encode(t) for t in texts]
        order = sorted(range(len(texts)), key=lambda i: -len(encoded[i]))
        for start in range(0, len(order), _TEXTS_AT_ONCE):
            places = order[start : start + _TEXTS_AT_ONCE]
            rates[places] = self._rate_some([encoded[i] for i in places])
        return rates

    def _rate_some(self, texts: list[bytes]) -> NDArray[np.float32]:
        """Of texts that are ordered by length, the longest first."""
        from scipy.sparse import csr_matrix

        lengths = np.array([len(t) for t in texts])
        found = self._find_features(texts, lengths)
        row, feature = np.divmod(np.sort(found), len(self.weights))
        is_first = np.ones(len(row), bool)
        is_first[1:] = (row[1:] != row[:-1]) | (feature[1:] != feature[:-1])
        starts = np.flatnonzero(is_first)
        counts = np.diff(np.append(starts, len(row))).astype(np.float32)
        row, feature = row[starts], feature[starts]
        is_used = np.zeros(len(self.weights), bool)
        is_used[feature] = True
        used, column = np.flatnonzero(is_used), (np.cumsum(is_used) - 1)[feature]
        pointers = np.searchsorted(row, np.arange(len(texts) + 1))
        matrix = csr_matrix((np.log1p(counts), column, pointers), shape=(len(texts), len(used)))
        scores = matrix @ self.weights[used].astype(np.float32)
        scores[pointers[1:] > pointers[:-1]] += self.priors
        scores /= np.sqrt(np.maximum(lengths, 1))[:, None].astype(np.float32)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        for first, second in self.aliases:
            scores[:, first] += scores[:, second]
            scores[:, second] = 0
        return scores

    def _find_features(self, texts: list[bytes], lengths: NDArray) -> NDArray[np.int32]:
        """The features that the automaton meets, as text × features + feature, in no order."""
        letters = np.zeros((len(texts), int(lengths[0]) if len(texts) else 0), np.uint8)
        for place, text in enumerate(texts):
            letters[place, : len(text)] = np.frombuffer(text, np.uint8)
        letters = np.ascontiguousarray(letters.T)
        states = np.zeros(len(texts), np.uint32)
        base = np.arange(len(texts), dtype=np.int32) * np.int32(len(self.weights))
        met: list[NDArray[np.int32]] = []
        active = np.searchsorted(-lengths, -np.arange(len(letters)), side="left")
        together = int(np.searchsorted(-active, -_FEWEST_TOGETHER, side="right"))
        for column, count in zip(letters[:together], active[:together].tolist(), strict=True):
            states = self.next_states[self.row_starts[states[:count]] + column[:count]]
            features = self.outputs[states]
            hits = np.flatnonzero(features >= 0)
            met.append(base[hits] + features[hits])
        for place, state in enumerate(states[: int(active[together]) if together < len(active) else 0].tolist()):
            features = np.array(self._walk(texts[place][together:], state), np.int32)
            met.append(base[place] + features)
        return np.concatenate(met) if met else np.empty(0, np.int32)

    def _walk(self, text: bytes, state: int) -> list[int]:
        """The features that one text meets, from a state on."""
        next_states, row_starts, outputs = self.plain_next_states, self.plain_row_starts, self.plain_outputs
        found: list[int] = []
        for letter in text:
            state = next_states[row_starts[state] + letter]
            if outputs[state] >= 0:
                found.append(outputs[state])
        return found


@lru_cache(maxsize=1)
def load_model() -> _Model:
    """py3langid's model, read once a process (a second; 120 MB). Its module-level identifier, which others may share, is left alone."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    first: dict[str, int] = {}
    aliases: list[tuple[int, int]] = []
    for place, label in enumerate(identifier.nb_classes):
        if label in first:
            aliases.append((first[label], place))
        first.setdefault(label, place)
    return _Model(
        next_states=np.asarray(identifier.tk_nextmove, np.uint32),
        row_starts=np.asarray(identifier.tk_row, np.int64) << 8,
        outputs=np.asarray(identifier.tk_output, np.int32),
        weights=identifier.nb_ptc,
        priors=identifier.nb_pc,
        labels=tuple(identifier.nb_classes),
        aliases=tuple(aliases),
        plain_next_states=identifier.tk_nextmove,
        plain_row_starts=[row << 8 for row in identifier.tk_row],
        plain_outputs=identifier.tk_output,
    )


def _encode(text: str) -> bytes:
    """As the model was trained on: composed characters, no text of capitals alone."""
    if text.isupper():
        text = text.lower()
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return text.encode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class _Part:
    """A text to be judged: `record` is its place in the batch, `is_short` says that it has too few words to be held to be sure."""

    record: int
    name: str
    text: str
    is_short: bool


class _Language:
    def __init__(self, options: LanguageStep) -> None:
        self._options = options
        self._model = load_model()
        self._kept = np.isin(np.array(self._model.labels), options.keep)

    def apply(self, records: Sequence[Record]) -> list[Record | Drop]:
        parts = [part for place, record in enumerate(records) for part in self._list_parts(place, record)]
        rates = self._model.rate([p.text for p in parts])
        confidences = rates[:, self._kept].sum(axis=1).tolist()
        best = rates.argmax(axis=1)
        verdicts: dict[int, list[Drop | None]] = {}
        for part, confidence, label, rate in zip(
            parts, confidences, best.tolist(), rates[np.arange(len(parts)), best].tolist(), strict=True
        ):
            verdicts.setdefault(part.record, []).append(self._judge(part, confidence, self._model.labels[label], rate))
        return [self._combine(verdicts.get(place, [])) or record for place, record in enumerate(records)]

    def _list_parts(self, place: int, record: Record) -> list[_Part]:
        """The prompts and the answers, where they are long enough to be judged; else both as one text."""
        texts: dict[str, list[str]] = {"prompt": [record.input], "answer": []}
        for message in record.messages:
            if message.role == "user":
                texts["prompt"].append(message.content)
            elif message.role == "assistant":
                texts["answer"].append(message.content)
        plain = {name: _strip("\n".join(t for t in some if t)) for name, some in texts.items()}
        parts = [self._make_part(place, name, text) for name, text in plain.items()]
        if not any(parts):
            parts = [self._make_part(place, "record", "\n".join(plain.values()))]
        return [part for part in parts if part is not None]

    def _make_part(self, place: int, name: str, text: str) -> _Part | None:
        least, sure = self._options.min_words, self._options.sure_words
        words = _count_words(text, max(least, sure))
        return _Part(place, name, text, words < sure) if words >= least else None

    def _judge(self, part: _Part, listed: float, label: str, rate: float) -> Drop | None:
        least = self._options.min_confidence
        # Rounded, so that no other order of sums moves a text over the threshold.
        listed, rate = round(listed, 4), round(rate, 4)
        if label == NO_LANGUAGE:
            return None
        if label not in self._options.keep and rate >= least:
            detail = f"The {part.name} is in the language `{label}` with a probability of {rate:.2f}; it is not listed."
            return Drop("keep", detail, rate, least)
        if part.is_short or listed >= least:
            return None
        detail = (
            f"The {part.name} is in a listed language with a probability of {listed:.2f} only; likeliest is `{label}`."
        )
        return Drop("minConfidence", detail, listed, least)

    def _combine(self, verdicts: list[Drop | None]) -> Drop | None:
        drops = [v for v in verdicts if v is not None]
        if not drops or (self._options.mixed == "keep" and len(drops) < len(verdicts)):
            return None
        return drops[0]


def _count_words(text: str, enough: int) -> int:
    """How many words; where there are more than `enough`, perhaps not all."""
    words = len(WORD.findall(text, 0, 10 * enough))  # as a rule this is enough of it
    if words < enough and len(text) > 10 * enough:
        words = len(WORD.findall(text))
    return words if words >= enough or text.isascii() else words + len(_UNSPACED.findall(text)) // 2


def _strip(text: str) -> str:
    text = strip_code_lines(strip_links(strip_code(text, maths=True)))
    return text if len(text) <= 2 * MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}\n{text[-MAX_CHARACTERS:]}"


def build(options: LanguageStep, context: StepContext) -> _Language:
    """The step. Raises DataError where the model does not know a listed language."""
    unknown = sorted(set(options.keep) - set(load_model().labels))
    if unknown:
        known = ", ".join(sorted(label for label in load_model().labels if len(label) == 2))
        raise DataError(f"The language step can't tell {', '.join(f'`{u}`' for u in unknown)}; it knows {known}.")
    return _Language(options)
