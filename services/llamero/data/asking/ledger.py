"""What asking has cost: counts of questions, tokens and money, how shards' accounts add up, and when a cap is reached. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from llamero.data.errors import DataError
from llamero.spec.steps import LanguageModel

SUMMARY_KEY: Final = "asked"
"""Under which a task's summary holds the list of its accounts, each an `Account.to_dict`."""

_COUNTS: Final = (
    "asked",
    "answered",
    "cached",
    "unanswered",
    "requests",
    "retries",
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "cached_output_tokens",
    "estimated",
)
_NAMES: Final = ("purpose", "model", "endpoint")


class BudgetSpent(DataError):
    """A step's `maxCost` or `maxTotalTokens` is reached. What was answered is in the cache: nothing of it is asked or paid for again."""


@dataclass
class Account:
    """What an Asker did. `purpose` names the step, `endpoint` is the base URL without credentials.

    `asked` questions were put (embeddings: texts), `unanswered` of them got no usable answer. Answers come from the endpoint (`answered`)
    or the cache (`cached`); a question that was asked again since its answer could not be parsed has several. `requests` counts what was
    sent, `retries` those of them that were sent again. Tokens are those that the endpoint reported; for `estimated` answers it reported
    none that make sense, and a quarter of the characters counts. Cached tokens were paid for earlier and are in no cost.
    """

    purpose: str
    model: str
    endpoint: str
    asked: int = 0
    answered: int = 0
    cached: int = 0
    unanswered: int = 0
    requests: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cached_output_tokens: int = 0
    estimated: int = 0
    cost: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON, in camelCase."""
        return {_camel(name): getattr(self, name) for name in (*_NAMES, *_COUNTS)} | {"cost": round(self.cost, 6)}


def sum_accounts(summaries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Accounts (as `Account.to_dict`) added up by purpose, model and endpoint, in the order of these."""
    sums: dict[tuple[str, ...], dict[str, Any]] = {}
    for one in summaries:
        key = tuple(str(one[name]) for name in _NAMES)
        total = sums.setdefault(key, dict(zip(_NAMES, key, strict=True)))
        for name in (*map(_camel, _COUNTS), "cost"):
            total[name] = total.get(name, 0) + one[name]
    return [sums[key] | {"cost": round(sums[key]["cost"], 6)} for key in sorted(sums)]


def compute_cost(model: LanguageModel, input_tokens: int, output_tokens: int) -> float:
    """What tokens cost by the manifest's prices."""
    paid = input_tokens * model.price_per_million_input_tokens + output_tokens * model.price_per_million_output_tokens
    return paid / 1e6


def check_budget(model: LanguageModel, purpose: str, input_tokens: int, output_tokens: int) -> None:
    """Whether another request may be sent, given what all workers have spent. Raises BudgetSpent with a sentence."""
    total = input_tokens + output_tokens
    if model.max_total_tokens is not None and total >= model.max_total_tokens:
        raise BudgetSpent(
            f"{purpose}: asking `{model.model}` has used {total:,} tokens, and maxTotalTokens is {model.max_total_tokens:,}. "
            "Raise it to go on: what was answered is kept and is not asked again."
        )
    cost = compute_cost(model, input_tokens, output_tokens)
    if model.max_cost is not None and cost >= model.max_cost:
        raise BudgetSpent(
            f"{purpose}: asking `{model.model}` has cost {cost:,.4f} ({input_tokens:,} tokens asked, {output_tokens:,} answered), and "
            f"maxCost is {model.max_cost:,g}. Raise it to go on: what was answered is kept and is not asked again."
        )


def check_prices(model: LanguageModel, purpose: str) -> None:
    """A cap on cost needs prices. Raises DataError."""
    if model.max_cost is not None and not compute_cost(model, 1, 1):
        raise DataError(
            f"{purpose}: `{model.model}` has a maxCost, but no price: give pricePerMillionInputTokens and "
            "pricePerMillionOutputTokens, or maxTotalTokens instead."
        )


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.title() for part in rest)
