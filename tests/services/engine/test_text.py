"""Streamed text: no half characters, and stop strings that are cut wherever the borders of tokens lie."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llamero.engine.text import StopScanner, TextStream


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, as byte-level BPE has them before any merge."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def fallback_tokenizer() -> PreTrainedTokenizerFast:
    """Byte fallback, as Llama 2 has it: bytes come as tokens <0x00> … <0xFF>."""
    vocabulary = {f"<0x{b:02X}>": b for b in range(256)} | {"▁": 256, "a": 257, "b": 258}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token=None))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


BYTES = byte_tokenizer()
FALLBACK = fallback_tokenizer()


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=30))
def test_pieces_are_the_text_and_never_hold_half_a_character(text: str) -> None:
    stream = TextStream(BYTES)
    pieces = [stream.push(i) for i in BYTES(text)["input_ids"]]
    pieces.append(stream.flush())
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab äé中🦙", min_size=1, max_size=20))
def test_byte_fallback_streams_whole_characters_too(text: str) -> None:
    ids = [b for c in text for b in ([{" ": 256, "a": 257, "b": 258}[c]] if c in " ab" else c.encode())]
    stream = TextStream(FALLBACK)
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) == text and stream.flush() == ""


def test_broken_bytes_come_out_as_replacement_characters_in_the_end() -> None:
    llama = list("🦙".encode())
    stream = TextStream(FALLBACK)
    assert [stream.push(i) for i in llama[:3]] == ["", "", ""]
    assert stream.flush() == "\ufffd" * 3


def test_bytes_that_never_become_characters_do_not_hold_the_text_back_for_ever() -> None:
    stream = TextStream(FALLBACK)
    assert any(stream.push(0xFF) for _ in range(100))


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet="abc", max_size=25),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3),
    st.data(),
)
def test_a_text_is_cut_at_the_first_stop_string_however_it_is_split(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    scanner = StopScanner(stops)
    out = ""
    for piece in pieces:
        out += scanner.push(piece)
        if scanner.matched is not None:
            break
    out += scanner.flush()
    places = [text.find(s) for s in stops if s in text]
    if not places:
        assert out == text and scanner.matched is None
        return
    assert scanner.matched is not None
    assert out + scanner.matched == text[: len(out) + len(scanner.matched)]
    assert not any(s in out for s in stops)


@pytest.mark.parametrize("stop", ["END", "中"])
def test_a_stop_string_across_tokens_is_never_shown(stop: str) -> None:
    stream = TextStream(BYTES, [stop])
    shown = ""
    for token in BYTES(f"word EN 中国 {stop} rest" if stop == "END" else "word E 中国 rest")["input_ids"]:
        shown += stream.push(token)
        if stream.stopped_by:
            break
    assert stream.stopped_by == stop
    assert shown == ("word EN 中国 " if stop == "END" else "word E ")
    assert stream.flush() == ""
