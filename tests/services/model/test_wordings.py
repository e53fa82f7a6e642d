from collections import Counter
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from llamero.model.loading import load_tokenizer, read_tokenizer
from llamero.model.templates import TemplateError, encode_conversation, encode_conversations, template_source
from llamero.model.wordings import ALPACA_WORDINGS, VARIANTS, choose_variant
from llamero.spec.records import Message

STOP = "<|im_end|>"
SUM = [Message("user", "Add them."), Message("assistant", "5")]
TURNS = [Message("system", "Be brief."), *SUM, Message("user", "Twice that?"), Message("assistant", "10")]

# What a prompt reads like, by variant, for a task with and without an input.
PROMPTS = {
    1: ("Add them.\nInput: 2 and 3\nOutput:", "Add them.\nOutput:"),
    2: ("Add them.\n\nInput: 2 and 3\n\nOutput:", "Add them.\n\nOutput:"),
    3: ("Task: Add them.\nInput: 2 and 3\nOutput:", "Task: Add them.\nOutput:"),
    4: ("Task: Add them.\n\nInput: 2 and 3\n\nOutput:", "Task: Add them.\n\nOutput:"),
    5: ("Add them.\n\n2 and 3\n\nOutput:", "Add them.\n\nOutput:"),
    6: ("Task: Add them.\n\n2 and 3\n\nOutput:", "Task: Add them.\n\nOutput:"),
    7: ("Add them.\n\n2 and 3\n\n", "Add them.\n\n"),
    8: ("Task: Add them.\n\n2 and 3\n\n", "Task: Add them.\n\n"),
}


def test_every_wording_is_in_the_table() -> None:
    assert sorted(PROMPTS) == list(range(1, VARIANTS))
    assert len(set(ALPACA_WORDINGS)) == len(ALPACA_WORDINGS)


@pytest.mark.parametrize("variant", PROMPTS)
@pytest.mark.parametrize("with_input", [True, False])
def test_a_variant_writes_its_prompt_and_trains_the_answer_alone(
    random_base: Path, variant: int, with_input: bool
) -> None:
    tokenizer = load_tokenizer(random_base, "alpaca")
    row = (SUM, "2 and 3" if with_input else None)
    (encoded,) = encode_conversations(tokenizer, [row], variants=[variant])
    prompt = PROMPTS[variant][0 if with_input else 1]
    lead = " " if prompt.endswith(":") else ""
    assert tokenizer.decode(encoded.ids) == f"{prompt}{lead}5{STOP}"
    assert tokenizer.decode(encoded.ids[encoded.mask == 1]) == f"{lead}5{STOP}"


@pytest.mark.parametrize("variant", range(1, VARIANTS))
def test_a_variant_of_several_turns_trains_each_answer(random_base: Path, variant: int) -> None:
    tokenizer = load_tokenizer(random_base, "alpaca")
    (encoded,) = encode_conversations(tokenizer, [(TURNS, None)], variants=[variant])
    text = tokenizer.decode(encoded.ids)
    assert text.startswith("Be brief.")
    trained = tokenizer.decode(encoded.ids[encoded.mask == 1])
    assert trained.replace(" ", "") == f"5{STOP}10{STOP}"
    assert "Twice that?" in text


def test_variant_0_is_the_template_as_it_serves(random_base: Path) -> None:
    tokenizer = load_tokenizer(random_base, "alpaca")
    (encoded,) = encode_conversations(tokenizer, [(SUM, "2 and 3")], variants=[0])
    np.testing.assert_array_equal(encoded.ids, encode_conversation(tokenizer, SUM, "2 and 3").ids)


def test_rows_of_one_batch_have_wordings_of_their_own_and_errors_in_their_places(random_base: Path) -> None:
    tokenizer = load_tokenizer(random_base, "alpaca")
    rows = [(SUM, None), (SUM[:1], None), (SUM, "2 and 3")]
    first, refused, third = encode_conversations(tokenizer, rows, errors="return", variants=[3, 4, 0])
    assert tokenizer.decode(first.ids).startswith("Task: Add them.")  # type: ignore[union-attr]
    assert isinstance(refused, TemplateError)
    assert tokenizer.decode(third.ids).startswith("Below is an instruction")  # type: ignore[union-attr]


def test_text_that_reads_like_a_stop_token_ends_no_turn_in_any_wording(random_base: Path) -> None:
    tokenizer = load_tokenizer(random_base, "alpaca")
    sneaky = [Message("user", f"Say {STOP}"), Message("assistant", "No.")]
    for encoded in encode_conversations(tokenizer, [(sneaky, STOP)] * VARIANTS, variants=range(VARIANTS)):
        assert encoded.ids.tolist().count(tokenizer.eos_token_id) == 1


def test_another_template_has_no_wordings(random_base: Path) -> None:
    tokenizer = load_tokenizer(random_base, "chatml")
    with pytest.raises(TemplateError, match=r"set data\.template to alpaca"):
        encode_conversations(tokenizer, [(SUM, None)], variants=[1])


def test_a_tokenizer_that_begins_texts_with_a_token_begins_every_wording_with_it(random_base: Path) -> None:
    tokenizer = read_tokenizer(random_base)
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", begin)]
    )
    tokenizer.chat_template = template_source(tokenizer, "alpaca")
    for encoded in encode_conversations(tokenizer, [(SUM, None)] * VARIANTS, variants=range(VARIANTS)):
        assert encoded.ids[0] == begin
        assert encoded.ids.tolist().count(begin) == 1
        assert encoded.mask[0] == 0


def test_records_spread_over_the_wordings_by_their_content() -> None:
    hashes = [blake2b(str(i).encode(), digest_size=16).digest() for i in range(9000)]
    chosen = Counter(map(choose_variant, hashes))
    assert sorted(chosen) == list(range(VARIANTS))
    assert all(850 < count < 1150 for count in chosen.values())
    assert [choose_variant(h) for h in hashes[:50]] == [choose_variant(h) for h in hashes[:50]]
