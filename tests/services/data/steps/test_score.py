"""Perplexity and IFD under a base model, against the plain forward pass of each record by itself."""

import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamero.data.errors import DataError
from llamero.data.steps import score
from llamero.data.steps.record import Record, StepContext
from llamero.model.templates import encode_conversation
from llamero.spec.records import Message
from llamero.spec.steps import ScoreStep

BOTH = ScoreStep(indicators=["perplexity", "ifd"])


def build_record(*turns: str, **rest: object) -> Record:
    roles = ("user", "assistant")
    return Record(0, "s", "f", 1, tuple(Message(roles[i % 2], t) for i, t in enumerate(turns)), **rest)  # type: ignore[arg-type]


RECORDS = [
    build_record("Name a colour.", "Blue."),
    build_record("Tell me of licences.", "A licence grants rights. " * 12),
    build_record("Sum these.", "That makes 12.", input="5 and 7"),
    build_record("Hello!", "Hello, how are you?", "Well, and you?", "Very well, thank you."),
    build_record("Say nothing.", "x"),
]


def make_context(base: Path | None) -> StepContext:
    return StepContext(seed=0, base=base, answers="", workers=1, fetch=lambda uri: pytest.fail(f"fetched {uri}"))


def apply(base: Path, records: list[Record], options: ScoreStep = BOTH) -> list[Record]:
    found = score.build(options, make_context(base)).apply(records)
    assert all(isinstance(r, Record) for r in found)
    return [r for r in found if isinstance(r, Record)]


def measure_plainly(base: Path, record: Record, most: int = 512) -> tuple[float, float]:
    """Perplexity and IFD by one forward pass with the prompt and one without."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    encoded = encode_conversation(tokenizer, record.messages, record.input or None)
    ids, mask = encoded.ids[:most].astype("int64"), encoded.mask[:most].astype(bool)

    def mean_loss(row: torch.Tensor, targets: torch.Tensor) -> float:
        with torch.inference_mode():
            log_probs = model(row[None]).logits[0].log_softmax(-1)
        losses = -log_probs[:-1].gather(1, row[1:, None])[:, 0]
        return float(losses[targets[1:]].mean())

    given = mean_loss(torch.from_numpy(ids), torch.from_numpy(mask))
    own, marks, before = [], [], False
    for token, is_answer in zip(ids.tolist(), mask.tolist(), strict=True):
        if is_answer and not before:
            own.append(tokenizer.bos_token_id)
            marks.append(False)
        if is_answer:
            own.append(token)
            marks.append(True)
        before = is_answer
    alone = mean_loss(torch.tensor(own), torch.tensor(marks))
    return math.exp(given), given / alone


def test_scores_are_those_of_a_plain_forward_pass(random_base: Path) -> None:
    for record, found in zip(RECORDS, apply(random_base, RECORDS), strict=True):
        perplexity, ifd = measure_plainly(random_base, record)
        assert found.scores["perplexity"] == pytest.approx(perplexity, rel=1e-3)
        assert found.scores["ifd"] == pytest.approx(ifd, abs=1e-3)
        assert found.messages == record.messages


def test_scores_do_not_hang_on_the_records_beside(random_base: Path) -> None:
    together = apply(random_base, RECORDS)
    assert [apply(random_base, [record])[0].scores for record in RECORDS] == [r.scores for r in together]
    assert [r.scores for r in apply(random_base, RECORDS[::-1])] == [r.scores for r in together[::-1]]


def test_a_prompt_that_gives_the_answer_away_has_a_lower_ifd_than_one_that_does_not(repository: Path) -> None:
    answer = "Return True if the path exists, False for broken symbolic links."
    helpful = build_record(f"Repeat this: {answer} {answer} {answer}", answer)
    idle = build_record("Name a fish.", answer)
    first, second = apply(repository / "examples" / "tiny-base", [helpful, idle])
    assert first.scores["ifd"] < second.scores["ifd"]
    assert first.scores["perplexity"] < second.scores["perplexity"]


def test_a_long_record_is_measured_on_its_beginning(random_base: Path) -> None:
    options = ScoreStep(indicators=["perplexity"], max_tokens=64)
    (found,) = apply(random_base, RECORDS[1:2], options)
    assert found.scores == {"perplexity": pytest.approx(measure_plainly(random_base, RECORDS[1], 64)[0], rel=1e-3)}


@pytest.mark.parametrize(("words", "has_score"), [(4, True), (200, False)])
def test_a_record_whose_prompt_fills_the_limit_has_no_score(words: int, has_score: bool, random_base: Path) -> None:
    record = build_record("word " * words, "An answer.")
    (found,) = apply(random_base, [record], ScoreStep(indicators=["ifd"], max_tokens=128))
    assert ("ifd" in found.scores) is has_score


def test_without_a_base_the_step_says_so() -> None:
    with pytest.raises(DataError, match=r"this preparation has none: name one in spec\.baseModel"):
        score.build(BOTH, make_context(None))


def test_without_torch_the_step_says_what_to_install(monkeypatch: pytest.MonkeyPatch, random_base: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DataError, match=r"needs torch.*`training` extra"):
        score.build(BOTH, make_context(random_base))


def test_a_folder_that_is_no_model_is_refused_when_the_first_record_comes(tmp_path: Path) -> None:
    step = score.build(BOTH, make_context(tmp_path))
    assert step.apply([]) == []
    with pytest.raises(DataError, match="The step `score` can't use the base model"):
        step.apply(RECORDS[:1])
