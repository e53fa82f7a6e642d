"""What facts.yaml holds, as values; which wording goes to which file is decided here, what a file looks like elsewhere."""

import random
from dataclasses import dataclass

STACKEXCHANGE, ALPACA, SHAREGPT, DIRT = "stackexchange/Posts.xml", "alpaca.json", "sharegpt.json", "dirt.json"


@dataclass(frozen=True)
class Fact:
    """One fact: three wordings of a question and their answer, all in small Markdown."""

    id: str
    topic: tuple[str, ...]
    questions: tuple[str, str, str]
    answer: str


def deal_wordings(facts: list[Fact], demo_prompts: set[str]) -> dict[str, dict[str, str]]:
    """Which wording of each fact goes to which file: each to one, by chance; a demo's prompt to Alpaca, where it stands alone."""
    rng = random.Random("wordings")
    dealt: dict[str, dict[str, str]] = {STACKEXCHANGE: {}, ALPACA: {}, SHAREGPT: {}}
    for fact in facts:
        wordings = rng.sample(fact.questions, 3)
        wordings.sort(key=lambda wording: wording in demo_prompts)
        dealt[SHAREGPT][fact.id], dealt[STACKEXCHANGE][fact.id], dealt[ALPACA][fact.id] = wordings
    return dealt
