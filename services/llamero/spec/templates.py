"""The named chat templates as jinja text, which training and the chat service share; how they become tokens stands in `model.templates`.

`{% generation %}` marks what is trained. `eos_token` is the tokenizer's end-of-text token; `chatml` ends turns with it where the
tokenizer has no `<|im_end|>`.
"""

from typing import Final

# Alpaca's two prompts (tatsu-lab/stanford_alpaca, train.py): no line end after "### Response:". A system message takes the
# preamble's place; `input` is the first user turn's input.
_ALPACA = (
    "{%- if messages[0]['role'] == 'system' -%}{{ messages[0]['content'] }}"
    "{%- elif input -%}Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
    "{%- else -%}Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.{%- endif -%}"
    "{%- set turn = namespace(users=0) -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{%- set turn.users = turn.users + 1 -%}"
    "{{ '\n\n### Instruction:\n' + message['content'] }}"
    "{%- if input and turn.users == 1 -%}{{ '\n\n### Input:\n' + input }}{%- endif -%}"
    "{%- elif message['role'] == 'tool' -%}{{ '\n\n### Input:\n' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' -%}{{ '\n\n### Response:' }}"
    "{%- generation -%}{{ message['content'] + eos_token }}{%- endgeneration -%}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '\n\n### Response:' }}{%- endif -%}"
)

# Vicuna 1.1 (lm-sys/FastChat, conversation.py): turns end in a space, answers in the end-of-text token. The space before an
# answer belongs to the answer: a prompt ends at "ASSISTANT:", and the model writes what follows.
_VICUNA = (
    "{%- if messages[0]['role'] == 'system' -%}{{ messages[0]['content'] + ' ' }}"
    "{%- else -%}{{ 'A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user\\'s questions. ' }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{ 'USER: ' + message['content'] + ' ' }}"
    "{%- elif message['role'] == 'tool' -%}{{ 'TOOL: ' + message['content'] + ' ' }}"
    "{%- elif message['role'] == 'assistant' -%}{{ 'ASSISTANT:' }}"
    "{%- generation -%}{{ ' ' + message['content'] + eos_token }}{%- endgeneration -%}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
)

_CHATML = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{ message['content'] + '<|im_end|>' }}{%- endgeneration -%}{{ '\n' }}"
    "{%- else -%}{{ message['content'] + '<|im_end|>\n' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)

TEMPLATES: Final[dict[str, str]] = {"alpaca": _ALPACA, "vicuna": _VICUNA, "chatml": _CHATML}

CHATML_START: Final = "<|im_start|>"
CHATML_END: Final = "<|im_end|>"


def chatml_ending_with(token: str) -> str:
    """`chatml` for a tokenizer without `<|im_end|>`: turns end with `token`."""
    return _CHATML.replace(CHATML_END, token)
