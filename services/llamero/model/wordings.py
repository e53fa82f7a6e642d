"""The wordings that a record may be trained in besides a template's own, and which one a record gets (Self-Instruct, arXiv:2212.10560).

Knows only text: what stands before the task, its input and its answer, and the line breaks between them. How a wording becomes tokens
stands in `templates.py`; serving always speaks the template's own wording.
"""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Final


@dataclass(frozen=True)
class Wording:
    """What stands before each part, and the break between two parts. A prompt ends with `output`, or with the break where that is empty."""

    task: str
    input: str
    output: str
    gap: str

    def to_template(self) -> str:
        """The wording as a chat template: a system message first, later turns after a blank line, the answer and its stop token marked."""
        # The blank after a label belongs to the answer, as for Vicuna: a prompt ends at the label, and the model writes what follows.
        lead = " " if self.output else ""
        return (
            "{%- set turn = namespace(users=0) -%}"
            "{%- for message in messages -%}"
            "{%- if message['role'] == 'system' -%}" + _print(self.gap, before="message['content'] + ") + ""
            "{%- elif message['role'] == 'user' -%}{%- set turn.users = turn.users + 1 -%}"
            "{%- if turn.users > 1 -%}{{ '\n\n' }}{%- endif -%}" + _print(self.task, after=" + message['content']") + ""
            "{%- if input and turn.users == 1 -%}" + _print(self.gap + self.input, after=" + input") + "{%- endif -%}"
            "{%- elif message['role'] == 'tool' -%}" + _print(self.gap + self.input, after=" + message['content']") + ""
            "{%- elif message['role'] == 'assistant' -%}" + _print(self.gap + self.output) + ""
            "{%- generation -%}" + _print(lead, after=" + message['content'] + eos_token") + "{%- endgeneration -%}"
            "{%- endif -%}{%- endfor -%}"
            "{%- if add_generation_prompt -%}" + _print(self.gap + self.output) + "{%- endif -%}"
        )  # fmt: skip


def _print(text: str, before: str = "", after: str = "") -> str:
    return "{{ " + before + f"'{text}'" + after + " }}"


ALPACA_WORDINGS: Final[tuple[Wording, ...]] = (
    Wording(task="", input="Input: ", output="Output:", gap="\n"),
    Wording(task="", input="Input: ", output="Output:", gap="\n\n"),
    Wording(task="Task: ", input="Input: ", output="Output:", gap="\n"),
    Wording(task="Task: ", input="Input: ", output="Output:", gap="\n\n"),
    Wording(task="", input="", output="Output:", gap="\n\n"),
    Wording(task="Task: ", input="", output="Output:", gap="\n\n"),
    Wording(task="", input="", output="", gap="\n\n"),
    Wording(task="Task: ", input="", output="", gap="\n\n"),
)
"""Wordings besides Alpaca's own: variant 0 is the template as it stands, variant n is number n - 1 of these."""

VARIANTS: Final = len(ALPACA_WORDINGS) + 1


def choose_variant(content_hash: bytes) -> int:
    """The variant of a record, 0 … VARIANTS - 1: the same wherever and whenever the record is prepared. All chunks of a record share it."""
    return int.from_bytes(blake2b(content_hash, digest_size=8, person=b"wording").digest(), "big") % VARIANTS
