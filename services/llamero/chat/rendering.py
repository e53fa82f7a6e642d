"""Prompts rendered here, for adapters whose chat template is not their base's: TGI and vLLM know one template a server.

The named template's text goes to the engine's /v1/completions, and what comes back becomes a chat completion. No tokenizer is at
hand: the engine adds its beginning-of-text token itself, and reads control tokens wherever it sees their text. So that no message
can end a turn or open one, text that reads like one (`<|…|>`, the usual `<s>`, `</s>`, and what ends answers here) gets an
invisible character after its first: the model then sees plain text. Control tokens of other forms are beyond what can be known here.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llamero.chat.errors import INVALID, UNPROCESSABLE, ChatError, engine_broke_off
from llamero.chat.heads import read_json
from llamero.chat.routing import Destination
from llamero.chat.stops import StopCutter
from llamero.spec.routes import Target
from llamero.spec.templates import CHATML_END, TEMPLATES, chatml_ending_with

COMPLETIONS_PATH = "/v1/completions"
MAX_ENGINE_STOPS = 4  # TGI's --max-stop-sequences
DEFAULT_TGI_TOKENS = (
    256  # TGI stops after 100 where a completion names no limit, and has no word for "all the room there is"
)
WORD_JOINER = "\u2060"

# What is passed on as it is, by engine; `stream`, `stop`, limits and log-probabilities are put in the completion's own form.
_SAMPLING: Final = ("temperature", "top_p", "seed", "frequency_penalty", "presence_penalty", "repetition_penalty")
_VLLM_MORE: Final = ("top_k", "min_p", "logit_bias", "response_format", "stop_token_ids", "user")
_FINISHES: Final[Mapping[str, str | None]] = {"eos_token": "stop", "stop_sequence": "stop", "": None}

_GENERATION = re.compile(r"\{%(-?)\s*generation\s*(-?)%\}")
_END_GENERATION = re.compile(r"\{%(-?)\s*endgeneration\s*(-?)%\}")
CONTROL_FORMS = r"<\|[^\s<>|]{1,64}\|>|</?s>"


class Rendered:
    """One chat request to one backend, as a text completion there."""

    path = COMPLETIONS_PATH

    def __init__(self, body: Mapping[str, Any], destination: Destination, answer_id: str, now: int) -> None:
        self._body = body
        self._destination = destination
        self._engine = destination.backend.engine
        self._head = {"id": answer_id, "created": now, "model": destination.route.model}
        self._with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        stops = join_stops(destination.target.stop, body.get("stop"))
        self._cutter = StopCutter(stops)
        self._stops = stops
        self._has_role = self._is_finished = False
        self._usage: Any = None
        _refuse_unavailable(body, self._engine)

    def question(self) -> bytes:
        """The completion that is asked for; raises ChatError where the template can't render the messages."""
        body = self._body
        asked: dict[str, Any] = {
            "model": self._destination.upstream_model,
            "prompt": render_prompt(self._destination.target, body["messages"]),
            "stream": bool(body.get("stream")),
        }
        passed = _SAMPLING + (_VLLM_MORE if self._engine == "vllm" else ())
        asked |= {name: body[name] for name in passed if body.get(name) is not None}
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        if self._engine == "vllm":
            # null is all the room there is, and absence 16 tokens. Special tokens must be seen to be stopped at.
            asked |= {"max_tokens": limit, "stop": self._stops, "skip_special_tokens": False}
            if body.get("logprobs"):
                asked["logprobs"] = body.get("top_logprobs") or 0
            if asked["stream"]:
                asked["stream_options"] = {"include_usage": self._with_usage}
        else:
            asked |= {"max_tokens": limit or DEFAULT_TGI_TOKENS, "stop": self._stops[:MAX_ENGINE_STOPS]}
        return json.dumps(asked, separators=(",", ":")).encode()

    def event(self, event: bytes) -> bytes:
        """The chat chunks that a completion's event becomes."""
        data = event.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return b"".join(map(_write, self._closing())) + event
        payload = read_json(data)
        if not isinstance(payload, dict):
            raise engine_broke_off()
        return b"".join(map(_write, self._chunks(payload)))

    def whole(self, answer: bytes) -> bytes:
        """The chat completion that a whole completion becomes."""
        payload = read_json(answer)
        try:
            choice = payload["choices"][0]
            text = self._cutter.take(choice["text"]) + self._cutter.rest()
            finish = "stop" if self._cutter.is_cut else _finish(choice)
            told = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
            if self._body.get("logprobs"):
                told["logprobs"] = _chat_logprobs(choice.get("logprobs"))
            usage = payload.get("usage")
        except (TypeError, KeyError, IndexError):
            raise engine_broke_off() from None
        return json.dumps({**self._head, "object": "chat.completion", "choices": [told], "usage": usage}).encode()

    def _chunks(self, payload: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        self._usage = payload.get("usage") or self._usage
        for choice in payload.get("choices") or []:
            if self._is_finished:
                return
            if not self._has_role:
                self._has_role = True
                yield self._chunk({"role": "assistant", "content": ""}, None)
            finish = _finish(choice)
            # TGI's last event carries the end-of-text token itself.
            text = "" if choice.get("finish_reason") == "eos_token" else str(choice.get("text") or "")
            shown = self._cutter.take(text)
            if finish is not None:
                shown += self._cutter.rest()
            logprobs = _chat_logprobs(choice.get("logprobs")) if self._body.get("logprobs") else None
            if shown or logprobs:
                yield self._chunk({"content": shown}, None, logprobs)
            if (
                finish is not None or self._cutter.is_cut
            ):  # the engine may not have been told of this stop: TGI takes four
                self._is_finished = True
                yield self._chunk({}, "stop" if self._cutter.is_cut else finish)

    def _closing(self) -> Iterator[dict[str, Any]]:
        if self._has_role and not self._is_finished:
            raise engine_broke_off()
        if self._with_usage and self._usage is not None:
            yield {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage}

    def _chunk(self, delta: dict[str, str], finish: str | None, logprobs: Any = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish} | ({"logprobs": logprobs} if logprobs else {})
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        return chunk | {"usage": None} if self._with_usage else chunk


def render_prompt(target: Target, messages: Sequence[Mapping[str, Any]]) -> str:
    """The prompt of a target's template, without a beginning-of-text token, which the engine adds. Raises ChatError."""
    ends = tuple(target.stop)
    if target.template not in TEMPLATES:
        raise ChatError(UNPROCESSABLE, f"This model's chat template {target.template!r} is not known here.")
    control = _control_pattern(ends)
    turns = [_read_turn(m, control) for m in messages]
    try:
        return _template(target.template, ends).render(
            messages=turns, add_generation_prompt=True, eos_token=ends[-1] if ends else ""
        )
    except (jinja2.TemplateError, TypeError, KeyError) as error:
        told = type(error).__name__  # the message may quote the prompt
        raise ChatError(UNPROCESSABLE, f"The chat template can't render these messages ({told}).", "messages") from None


def join_stops(target_stops: Sequence[str], asked: Any) -> list[str]:
    """What ends an answer: the text that the template writes after one, the caller's, then what else ends one; each once."""
    own = [asked] if isinstance(asked, str) else list(asked or [])
    return list(dict.fromkeys(s for s in [*target_stops[:1], *own, *target_stops[1:]] if s))


@functools.lru_cache(maxsize=64)
def _template(name: str, ends: tuple[str, ...]) -> jinja2.Template:
    source = TEMPLATES[name]
    if name == "chatml" and ends and CHATML_END not in ends:
        source = chatml_ending_with(ends[0])  # the tokenizer has no <|im_end|>
    # The marks say what is trained; for a prompt they are blocks that are always shown.
    source = _END_GENERATION.sub(r"{%\1 endif \2%}", _GENERATION.sub(r"{%\1 if true \2%}", source))
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source)


@functools.lru_cache(maxsize=64)
def _control_pattern(ends: tuple[str, ...]) -> re.Pattern[str]:
    forms = [re.escape(e) for e in sorted(ends, key=len, reverse=True) if len(e) > 1]
    return re.compile("|".join([*forms, CONTROL_FORMS]))


def _read_turn(message: Mapping[str, Any], control: re.Pattern[str]) -> dict[str, str]:
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    role = "system" if message["role"] == "developer" else message["role"]
    return {"role": role, "content": control.sub(lambda found: found[0][0] + WORD_JOINER + found[0][1:], content)}


def _refuse_unavailable(body: Mapping[str, Any], engine: str) -> None:
    """What a text completion has not is refused, never dropped."""
    if body.get("tools") or body.get("tool_choice") not in (None, "none", "auto"):
        raise ChatError(UNPROCESSABLE, "This model's chat template has no tools.", "tools")
    wanted = body.get("response_format")
    if engine != "vllm" and isinstance(wanted, dict) and wanted.get("type", "text") != "text":
        raise ChatError(UNPROCESSABLE, "This model's engine has `response_format` text only.", "response_format")
    if engine != "vllm" and body.get("logprobs"):
        raise ChatError(UNPROCESSABLE, "This model's engine gives no log-probabilities.", "logprobs")
    if body.get("top_logprobs") is not None and not body.get("logprobs"):
        raise ChatError(INVALID, "`top_logprobs` goes with `logprobs`: true.", "top_logprobs")


def _finish(choice: Mapping[str, Any]) -> str | None:
    told = choice.get("finish_reason")
    return None if told is None else _FINISHES.get(told, str(told))


def _chat_logprobs(told: Any) -> dict[str, Any] | None:
    """A completion's log-probabilities (lists by token) in a chat completion's form."""
    if not isinstance(told, dict):
        return None
    tokens, values = told.get("tokens") or [], told.get("token_logprobs") or []
    tops = told.get("top_logprobs") or [None] * len(tokens)
    content = [
        {**_scored(token, value), "top_logprobs": [_scored(t, v) for t, v in (top or {}).items()]}
        for token, value, top in zip(tokens, values, tops, strict=False)
    ]
    return {"content": content}


def _scored(token: str, value: float | None) -> dict[str, Any]:
    return {"token": token, "logprob": value, "bytes": list(token.encode())}


def _write(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"
