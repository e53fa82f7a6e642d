"""Chat templates: how conversations become tokens, and which of those tokens are trained.

Knows the named templates, the loss mask (from `{% generation %}` marks, or where a base's template has none from the
difference of prefixes) and the stop tokens. Which template a job uses, and where records come from, is left to others.

Text in a message that reads like a control token (`<|im_end|>`) is encoded as plain text, so that no record and no chat
request can end a turn or open one.
"""

import contextlib
import re
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import jinja2
import jinja2.meta
import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from llamero.model.errors import TemplateError as TemplateError
from llamero.model.spans import Rendered, Spans, Tokens, encode_texts, mark, tokenise
from llamero.model.wordings import ALPACA_WORDINGS
from llamero.spec.records import Message
from llamero.spec.templates import CHATML_END, chatml_ending_with
from llamero.spec.templates import TEMPLATES as TEMPLATES

Turns = Sequence[Message] | Sequence[Mapping[str, str]]
Row = tuple[Turns, str | None]

_RENDERING = threading.Lock()
"""transformers keeps one compiled template a text, whose tracker of generation marks two threads may not use at a time."""

_PROBE_ANSWER = "Blue"
_PROBE = [Message("user", "Name one colour."), Message("assistant", _PROBE_ANSWER)]


@dataclass(frozen=True)
class Encoded:
    """A conversation's tokens: `ids` uint32 [n] and `mask` uint8 [n], 1 where a token is trained."""

    ids: NDArray[np.uint32]
    mask: NDArray[np.uint8]


@dataclass(frozen=True)
class _Plan:
    """What is worked out once per tokenizer and template."""

    template: str
    has_marks: bool
    takes_input: bool
    control: re.Pattern[str]
    variables: dict[str, Any]
    stop_ids: tuple[int, ...]


_plans: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, _Plan] = weakref.WeakKeyDictionary()


def template_source(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """The jinja text of a named template for this tokenizer.

    Begins with the beginning-of-text token where the tokenizer itself adds one; `chatml` ends turns with the tokenizer's
    end-of-text token where `<|im_end|>` is not in the vocabulary. Raises TemplateError where there is no such token.
    """
    if not tokenizer.eos_token:
        raise TemplateError(f"{tokenizer.name_or_path} has no eos_token: set one in its tokenizer_config.json.")
    source = TEMPLATES[name]
    if name == "chatml" and CHATML_END not in tokenizer.get_added_vocab():
        source = chatml_ending_with(tokenizer.eos_token)
    return _bos_source(tokenizer) + source


def _bos_source(tokenizer: PreTrainedTokenizerBase) -> str:
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return "{{- bos_token -}}" if adds_bos else ""


def encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: Turns, input: str | None = None) -> Encoded:
    """Tokens and mask of one conversation. Trained are the assistant's words and the stop token after them, nothing else.

    `input` is the input of a single-turn record (`Conversation.meta["input"]`): a template that knows it (alpaca) shows it
    in its own place, for others it is joined to the first user turn after a blank line.
    Raises TemplateError where the template can't render the conversation, or nothing or no stop token would be trained.
    """
    return encode_conversations(tokenizer, [(messages, input)])[0]


@overload
def encode_conversations(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], *, variants: Sequence[int] | None = None
) -> list[Encoded]: ...
@overload
def encode_conversations(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    *,
    errors: Literal["return"],
    variants: Sequence[int] | None = None,
) -> list[Encoded | TemplateError]: ...
def encode_conversations(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    *,
    errors: Literal["raise", "return"] = "raise",
    variants: Sequence[int] | None = None,
) -> list[Encoded] | list[Encoded | TemplateError]:
    """`encode_conversation` for many rows (messages, input) at once; an order of magnitude faster than one by one.

    With `errors="return"` a row that can't be encoded yields its TemplateError instead of raising it. `variants` gives each row's wording
    (`wordings.choose_variant`; data.templateVariants): 0 is the installed template, which must be alpaca.
    """
    plan = _plan(tokenizer)
    plans = _variant_plans(tokenizer, plan) if variants is not None else (plan,)
    chosen = variants if variants is not None else [0] * len(rows)
    rendered = [
        _render_row(plans[variant], messages, input) for (messages, input), variant in zip(rows, chosen, strict=True)
    ]
    encoded = _encode_rendered(tokenizer, plan, rendered)
    if errors == "return":
        return encoded
    good: list[Encoded] = []
    for outcome in encoded:
        if isinstance(outcome, TemplateError):
            raise outcome
        good.append(outcome)
    return good


def render_text(
    tokenizer: PreTrainedTokenizerBase, messages: Turns, add_generation_prompt: bool = True, input: str | None = None
) -> str:
    """The text of a prompt (beginning-of-text token included where the template writes it), for engines that take text."""
    plan = _plan(tokenizer)
    return _render(plan, _turns(plan, messages, input), input, add_generation_prompt)[0]


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Turns, add_generation_prompt: bool = True, input: str | None = None
) -> list[int]:
    """The token ids of a prompt, exactly as training saw it. Raises TemplateError where the template can't render it."""
    plan = _plan(tokenizer)
    turns = _guard(plan, _turns(plan, messages, input))
    guarded_input = _guard_text(plan, input)
    text, spans = _render(plan, turns, guarded_input, add_generation_prompt, track=plan.has_marks)
    if not plan.has_marks and any(turn["role"] == "assistant" for turn in turns):
        # A template that can't be trained with can still prompt; its earlier answers are then encoded as they stand.
        with contextlib.suppress(TemplateError):
            history, found = _render_by_prefixes(plan, turns, guarded_input)
            spans = found if text.startswith(history) else []
    return tokenise(tokenizer, plan.control, [(text, spans)])[0][0].ids


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, template: str = "base") -> list[int]:
    """The ids that end an answer: what the installed template writes after one, and the tokenizer's end-of-text token."""
    return list(_plan(tokenizer).stop_ids)


def stop_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """`stop_token_ids` as text, for an adapter's manifest and for engines that stop on strings."""
    return [str(t) for t in tokenizer.convert_ids_to_tokens(list(_plan(tokenizer).stop_ids))]


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a template that would train a model that never stops or never answers.

    Raises TemplateError where there is no template, where it marks nothing, where no stop token follows an answer or it is
    not trained, or where that token is also the padding token (many trainers then mask it out).
    """
    plan = _plan(tokenizer)
    conversation = [*_PROBE, Message("user", "Name another."), Message("assistant", "Red")]
    encoded = encode_conversation(tokenizer, conversation)
    trained = tokenizer.decode(encoded.ids[encoded.mask == 1].tolist())
    if _PROBE_ANSWER not in trained or "Red" not in trained:
        raise TemplateError(
            f"The chat template of {tokenizer.name_or_path} does not show the answers, so that none would be trained: set data.template to "
            "alpaca, vicuna or chatml."
        )
    written = _find_stop(tokenizer, plan)
    if written is None:
        raise TemplateError(
            f"The chat template of {tokenizer.name_or_path} writes no stop token after an answer, so that a tuned model would "
            "never stop: set data.template to alpaca, vicuna or chatml."
        )
    if tokenizer.pad_token_id == written:
        raise TemplateError(
            f"The padding token of {tokenizer.name_or_path} is also the stop token ({tokenizer.pad_token}): give it a pad_token of its "
            "own in tokenizer_config.json, or choose a data.template with another stop token."
        )


def _plan(tokenizer: PreTrainedTokenizerBase) -> _Plan:
    template = tokenizer.chat_template
    known = _plans.get(tokenizer)
    if known is not None and known.template == template:
        return known
    if not isinstance(template, str) or not template:
        raise TemplateError(
            f"{tokenizer.name_or_path} has no chat template of its own: set data.template to alpaca, vicuna or chatml."
        )
    plan = _build_plan(tokenizer, template)
    stop = _find_stop(tokenizer, plan)
    stop_ids = dict.fromkeys(i for i in (stop, tokenizer.eos_token_id) if i is not None)
    plan = _Plan(**{**plan.__dict__, "stop_ids": tuple(stop_ids)})
    _plans[tokenizer] = plan
    return plan


def _variant_plans(tokenizer: PreTrainedTokenizerBase, plan: _Plan) -> tuple[_Plan, ...]:
    """The plan of the installed template, then one for each further wording: they end answers alike and hold no control tokens."""
    if plan.template != template_source(tokenizer, "alpaca"):
        raise TemplateError(
            "Only the template alpaca has other wordings: set data.template to alpaca, or data.templateVariants to false."
        )
    bos = _bos_source(tokenizer)
    return (plan, *(replace(plan, template=bos + wording.to_template()) for wording in ALPACA_WORDINGS))


def _build_plan(tokenizer: PreTrainedTokenizerBase, template: str) -> _Plan:
    literal, variables = _read_template(template)
    # Tokens added for the data's sake (training.lora.newTokens) are not special and stay what they are in a text.
    control = {
        str(t) for t in tokenizer.added_tokens_decoder.values() if t.special or (str(t) in literal and len(str(t)) > 1)
    }
    pattern = "|".join(re.escape(t) for t in sorted(control, key=len, reverse=True)) or "(?!)"
    return _Plan(
        template=template,
        has_marks=re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None,
        takes_input="input" in variables,
        control=re.compile(pattern),
        variables=dict(tokenizer.special_tokens_map),
        stop_ids=(),
    )


def _read_template(template: str) -> tuple[str, set[str]]:
    """A template's literal text, and the variables that it reads from outside."""
    # {% generation %} is an extension's tag, which plain jinja can't parse; the marks change neither text nor variables.
    bare = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(bare)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"The chat template is no valid jinja: line {error.lineno}: {error.message}") from error
    literals = [node.data for node in tree.find_all(jinja2.nodes.TemplateData)]
    literals += [node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)]
    return "\0".join(literals), jinja2.meta.find_undeclared_variables(tree)


def _find_stop(tokenizer: PreTrainedTokenizerBase, plan: _Plan) -> int | None:
    """The control token that the template writes right after an answer; None where it writes none."""
    text, _ = _render(plan, _turns(plan, _PROBE, None), None, False)
    if _PROBE_ANSWER not in text:
        return None
    end = text.rfind(_PROBE_ANSWER) + len(_PROBE_ANSWER)
    added = tokenizer.added_tokens_decoder
    for token in encode_texts(tokenizer, [text[end:].lstrip()])[0].ids:
        return token if token in added else None
    return None


def _turns(plan: _Plan, messages: Turns, input: str | None) -> list[dict[str, str]]:
    """Messages as the template wants them, with an input that it doesn't know joined to the first user turn."""
    turns = [{"role": m.role, "content": m.content} if isinstance(m, Message) else {**m} for m in messages]
    if not turns:
        raise TemplateError("The conversation has no messages.")
    if not input or plan.takes_input:
        return turns
    for turn in turns:
        if turn["role"] == "user":
            turn["content"] = f"{turn['content']}\n\n{input}" if turn["content"] else input
            break
    return turns


def _guard_text(plan: _Plan, text: str | None) -> str | None:
    if not text:
        return text
    return mark(text, plan.control)


def _guard(plan: _Plan, turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """Mark what reads like a control token in the messages' text."""
    return [{**t, "content": _guard_text(plan, t["content"]) or ""} for t in turns]


def _render(
    plan: _Plan, turns: list[dict[str, str]], input: str | None, add_generation_prompt: bool, track: bool = False
) -> Rendered:
    """Text of the conversation, and with `track` the character spans inside generation marks."""
    variables = {**plan.variables, "input": input or ""} if plan.takes_input else plan.variables
    try:
        with _RENDERING:
            texts, spans = render_jinja_template(
                conversations=[turns],
                chat_template=plan.template,
                return_assistant_tokens_mask=track,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
    except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
        raise TemplateError(f"The chat template can't render this conversation: {error}") from error
    return texts[0], [tuple(span) for span in spans[0]] if track else []


def _render_row(plan: _Plan, messages: Turns, input: str | None) -> Rendered | TemplateError:
    try:
        turns = _guard(plan, _turns(plan, messages, input))
        guarded_input = _guard_text(plan, input)
        if plan.has_marks:
            return _render(plan, turns, guarded_input, False, track=True)
        return _render_by_prefixes(plan, turns, guarded_input)
    except TemplateError as error:
        return error


def _render_by_prefixes(plan: _Plan, turns: list[dict[str, str]], input: str | None) -> Rendered:
    """Text and answer spans of a template without marks: an answer is what a turn adds to the prompt before it."""
    whole, _ = _render(plan, turns, input, False)
    spans: Spans = []
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        until, _ = _render(plan, turns[: i + 1], input, False)
        prompt, _ = _render(plan, turns[:i], input, True)
        if not whole.startswith(until):
            raise TemplateError(
                "The chat template rewrites earlier turns and has no {% generation %} marks, so that the answers can't be found: add "
                "the marks, or set data.template to alpaca, vicuna or chatml."
            )
        start = len(prompt)
        if not until.startswith(prompt):
            # Some templates open an answer in the prompt with words that they leave out of the history ("<think>").
            before, _ = _render(plan, turns[:i], input, False)
            start = until.find(turn["content"], len(before)) if until.startswith(before) else -1
        if start < 0:
            raise TemplateError(
                "The chat template writes a prompt that is no beginning of the conversation and has no {% generation %} marks: add "
                "the marks, or set data.template to alpaca, vicuna or chatml."
            )
        spans.append((start, len(until)))
    return whole, spans


def _encode_rendered(
    tokenizer: PreTrainedTokenizerBase, plan: _Plan, rendered: list[Rendered | TemplateError]
) -> list[Encoded | TemplateError]:
    tokenised = iter(tokenise(tokenizer, plan.control, [r for r in rendered if not isinstance(r, TemplateError)]))
    return [r if isinstance(r, TemplateError) else _mask_tokens(plan, *next(tokenised)) for r in rendered]


def _mask_tokens(plan: _Plan, tokens: Tokens, spans: Spans) -> Encoded | TemplateError:
    """The mask from the answers' spans: a token that overlaps one is trained, up to the span's last stop token."""
    ids = tokens.ids
    mask = np.zeros(len(ids), dtype=np.uint8)
    for start, end in spans:
        found = tokens.find(start, end) if end > start else None
        if found is None:
            continue
        first, last = found
        while last >= first and ids[last] not in plan.stop_ids:
            last -= 1
        if last < first:
            return TemplateError(
                "No stop token is trained: the chat template writes none inside the answer, or leaves it out of its {% generation %} marks. "
                "Put it inside, or set data.template to alpaca, vicuna or chatml."
            )
        mask[first : last + 1] = 1
    if not mask.any():
        return TemplateError("Nothing is trained: the conversation has no assistant turn that the chat template shows.")
    return Encoded(np.array(ids, dtype=np.uint32), mask)
