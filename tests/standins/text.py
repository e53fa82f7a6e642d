"""A base's words: its tokenizer, its chat template, its stop tokens. An adapter's own are never looked at, as in both servers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer


class TemplateFault(Exception):
    """A conversation that the template can't render."""


class _Generation(Extension):
    """`{% generation %}`, which marks what is trained and renders as its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Any) -> str:
        return str(caller())


class Words:
    """Text to token ids and back."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = _read(folder / "tokenizer_config.json")
        self._specials = {
            key: value["content"] if isinstance(value, dict) else value
            for key, value in config.items()
            if key in ("bos_token", "eos_token") and value
        }
        source = folder / "chat_template.jinja"
        text = source.read_text() if source.is_file() else config.get("chat_template")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation])
        self._template = environment.from_string(text) if isinstance(text, str) else None
        stops = _read(folder / "generation_config.json").get("eos_token_id", [])
        self.stops = frozenset(stops if isinstance(stops, list) else [stops])
        eos = self._tokenizer.token_to_id(self._specials.get("eos_token", ""))
        if eos is not None:
            self.stops |= {eos}
        added = json.loads(self._tokenizer.to_str())["added_tokens"]
        self.special = frozenset(token["id"] for token in added if token["special"])

    def encode(self, text: str) -> list[int]:
        """Ids with the special tokens that the tokenizer adds."""
        return list(self._tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Text; special tokens are left out unless asked for."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not special))

    def render(self, messages: list[dict[str, Any]]) -> str:
        """A conversation, ready for the next answer. Raises TemplateFault."""
        if self._template is None:
            raise TemplateFault("template not found")
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._specials)
        except (jinja2.TemplateError, TypeError) as error:
            raise TemplateFault(str(error)) from error


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}
