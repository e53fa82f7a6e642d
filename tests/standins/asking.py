"""Plain HTTP for the stand-ins' tests: no client that smooths anything over."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    status: int
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def events(self) -> list[Any]:
        """A stream's events; `[DONE]` stays text, comments are left out."""
        blocks = [b for b in self.text.split("\n\n") if b.startswith("data:")]
        texts = [b.removeprefix("data:").strip() for b in blocks]
        return [t if t == "[DONE]" else json.loads(t) for t in texts]


def ask(url: str, body: Any = None, seconds: float = 30) -> Answer:
    """GET, or POST where there is a body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} if data else {})
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:
            return Answer(response.status, response.read().decode())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read().decode())


def chat(text: str, model: str, **more: Any) -> dict[str, Any]:
    """A body of /v1/chat/completions, greedy and short."""
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "max_tokens": 6, "temperature": 0, **more}
