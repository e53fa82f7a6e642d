"""The bodies that clients send, in TGI's and OpenAI's forms, checked and turned into sampling parameters.

https://huggingface.github.io/text-generation-inference/ and https://platform.openai.com/docs/api-reference
"""

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llamero.engine.requests import EngineError, ErrorKind, Sampling
from llamero.spec.records import ROLES, Message

MAX_STOP_STRINGS = 4
MAX_STOP_CHARACTERS = 200
MAX_MESSAGES = 512
MAX_TOP_TOKENS = 20
MAX_SEED = 2**63 - 1


class WireModel(BaseModel):
    """A body from outside: unknown fields are read past, as TGI and OpenAI's servers do."""

    model_config = ConfigDict(extra="ignore", frozen=True)


StopList = list[str]
Body = TypeVar("Body", bound=WireModel)


def check_stops(stops: list[str]) -> None:
    """Raise ValueError on too many or too long stop strings."""
    if len(stops) > MAX_STOP_STRINGS:
        raise ValueError(f"`stop` may hold at most {MAX_STOP_STRINGS} strings, given: {len(stops)}")
    if any(not s or len(s) > MAX_STOP_CHARACTERS for s in stops):
        raise ValueError(f"each string in `stop` must have 1 to {MAX_STOP_CHARACTERS} characters")


class GenerateParameters(WireModel):
    """TGI's `parameters`. What this engine has not (best_of, grammar, watermark, typical_p) is refused, never dropped."""

    adapter_id: str | None = Field(None, max_length=512)
    best_of: int | None = None
    decoder_input_details: bool = False
    details: bool = False
    do_sample: bool = False
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    grammar: Any = None
    max_new_tokens: int | None = Field(None, ge=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    return_full_text: bool = False
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    stop: StopList = Field(default_factory=list)
    temperature: float | None = Field(None, gt=0, le=100)
    top_k: int | None = Field(None, ge=1)
    top_n_tokens: int | None = Field(None, ge=0, le=MAX_TOP_TOKENS)
    top_p: float | None = Field(None, gt=0, le=1)
    truncate: int | None = Field(None, ge=1)
    typical_p: float | None = None
    watermark: bool = False

    @model_validator(mode="before")
    @classmethod
    def _read_nulls_as_absent(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _refuse_what_is_missing(self) -> "GenerateParameters":
        if self.best_of is not None and self.best_of > 1:
            raise ValueError("`best_of` above 1 is not supported by this engine")
        for name in ("grammar", "typical_p", "watermark"):
            if getattr(self, name):
                raise ValueError(f"`{name}` is not supported by this engine")
        check_stops(self.stop)
        return self

    def sampling(self) -> Sampling:
        """TGI samples where do_sample is set or any of temperature, top_k and top_p changes the distribution."""
        warped = (self.temperature or 1.0) != 1.0 or bool(self.top_k) or (self.top_p or 1.0) < 1.0
        return Sampling(
            do_sample=self.do_sample or warped,
            temperature=self.temperature or 1.0,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty or 1.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            seed=self.seed,
        )


class GenerateBody(WireModel):
    """Body of /generate, /generate_stream and /."""

    inputs: str
    parameters: GenerateParameters = GenerateParameters()
    stream: bool = False

    @model_validator(mode="before")
    @classmethod
    def _read_nulls_as_absent(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class StreamOptions(WireModel):
    include_usage: bool = False


class TextPart(WireModel):
    type: Literal["text"]
    text: str


class ChatMessage(WireModel):
    role: str
    content: str | list[TextPart] | None = None

    def to_message(self) -> Message:
        if isinstance(self.content, list):
            return Message(self.role, "".join(part.text for part in self.content))
        return Message(self.role, self.content or "")


class OpenAIParameters(WireModel):
    """What /v1/chat/completions and /v1/completions share. Without a temperature they sample at 1, as OpenAI does."""

    model: str | None = Field(None, max_length=512)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    max_tokens: int | None = Field(None, ge=1)
    n: int | None = None
    seed: int | None = Field(None, ge=-MAX_SEED - 1, le=MAX_SEED)
    stop: str | StopList | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_k: int | None = Field(None, ge=-1)
    top_p: float | None = Field(None, gt=0, le=1)
    logit_bias: Any = None

    @model_validator(mode="after")
    def _refuse_what_is_missing(self) -> "OpenAIParameters":
        if self.n is not None and self.n != 1:
            raise ValueError("`n` must be 1: this engine gives one answer a request")
        if self.logit_bias:
            raise ValueError("`logit_bias` is not supported by this engine")
        check_stops(self.stop_strings())
        return self

    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    def sampling(self) -> Sampling:
        temperature = 1.0 if self.temperature is None else self.temperature
        return Sampling(
            do_sample=temperature > 0,
            temperature=temperature or 1.0,
            top_k=self.top_k if self.top_k is not None and self.top_k > 0 else None,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty or 1.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            seed=None if self.seed is None else self.seed % (MAX_SEED + 1),
        )


class ChatBody(OpenAIParameters):
    """Body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_TOKENS)
    response_format: Any = None
    tools: Any = None

    @model_validator(mode="after")
    def _refuse_more(self) -> "ChatBody":
        unknown = sorted({m.role for m in self.messages} - {*ROLES, "developer"})
        if unknown:
            raise ValueError(f"unknown role {unknown[0]!r}: roles are {', '.join(ROLES)}")
        if self.tools:
            raise ValueError("`tools` are not supported by this engine")
        if isinstance(self.response_format, dict) and self.response_format.get("type", "text") != "text":
            raise ValueError("`response_format` other than text is not supported by this engine")
        return self


class CompletionBody(OpenAIParameters):
    """Body of /v1/completions, with one prompt."""

    prompt: str | list[str]
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_TOKENS)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1, le=1)
    suffix: str | None = None

    @model_validator(mode="after")
    def _refuse_more(self) -> "CompletionBody":
        if isinstance(self.prompt, list) and len(self.prompt) != 1:
            raise ValueError("`prompt` must be one text: this engine gives one answer a request")
        if self.suffix:
            raise ValueError("`suffix` is not supported by this engine")
        return self

    def text(self) -> str:
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class TokenizeBody(WireModel):
    """Body of /tokenize."""

    inputs: str
    add_special_tokens: bool = True
    parameters: GenerateParameters = GenerateParameters()


class LoadBody(WireModel):
    """Body of /v1/load_lora_adapter."""

    lora_name: str = Field(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$")
    lora_path: str = Field(min_length=1, max_length=4096)


class UnloadBody(WireModel):
    """Body of /v1/unload_lora_adapter."""

    lora_name: str = Field(min_length=1, max_length=256)


def parse_body(kind: type[Body], data: Any) -> Body:
    """A checked body; raises EngineError with the field and the reason."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise EngineError(ErrorKind.VALIDATION, f"{where}: {message}" if where else message) from None
