"""What a rewrite must keep, each kind on both sides."""

import pytest

from llamero.data.steps.preserved import find_losses

CODE = "Use it so:\n\n```python\nx = [1,\n     2]\nprint(x)\n```\n\nThen call `run()`."

KEPT = {
    "code as it was": (CODE, "First:\n```py\nx = [1,\n     2]  \nprint(x)\n```\nAnd now `run()` it, 1, 2."),
    "code, its fence of another kind": (CODE, "~~~\nx = [1,\n     2]\nprint(x)\n~~~\nCall `run()`."),
    "a number with its separators": ("It has 1,000,000 rows and 3.5 of them.", "3.5 of 1000000 rows."),
    "a number as a word": ("There are 3 of them.", "There are three of them."),
    "a word stays a word": ("There are three of them.", "There are some of them."),
    "list numbers": ("1. red\n2. blue", "The colours are red and blue."),
    "prose that becomes a list": ("First 1, then 2.", "1. this\n2. that"),
    "a number before a unit": ("It weighs 5kg.", "Its weight is 5 kg."),
    "a name": ("It was found by Marie Curie.", "The discoverer was MARIE CURIE."),
    "a name in the genitive": ("We read Anna's letter.", "The letter of Anna was read."),
    "the first word of a sentence": ("Bananas are yellow. Apples are red.", "They are yellow or red."),
    "the first word of a list's item": ("- Bananas\n- Apples", "fruit"),
    "a word that is small elsewhere": ("The Sun shines. It is the sun.", "It shines."),
    "a headline": ("Ten Ways To Sleep Better\n\nRest.", "Rest well."),
    "I": ("Then I said that I'm here.", "Then they were there."),
}

LOST = {
    "a line of code": (
        CODE,
        "```python\nx = [1, 2]\nprint(x)\n```\nCall `run()`.",
        "code",
        "x = [1,\n     2]\nprint(x)",
    ),
    "inline code": (CODE, CODE.replace("`run()`", "it"), "code", "run()"),
    "a number": ("It costs 3.5 euros.", "It costs 35 euros.", "numbers", "3.5"),
    "a great number as a word": ("It costs 21 euros.", "It costs twenty-one euros.", "numbers", "21"),
    "a number that is a part of another": ("In 1999 it rained.", "In 19990 it rained.", "numbers", "1999"),
    "a name": ("It was found by Marie Curie.", "It was found by Marie.", "names", "Curie"),
    "an identifier": ("Then get_rows runs.", "Then it runs.", "names", "get_rows"),
    "camel case": ("Then getRows runs.", "Then it runs.", "names", "getRows"),
    "a name in a line of names": ("John and Lisa", "John and his friend", "names", "Lisa"),
    "an abbreviation": ("NASA flew there.", "They flew there.", "names", "NASA"),
}


@pytest.mark.parametrize(("original", "rewrite"), KEPT.values(), ids=KEPT.keys())
def test_nothing_is_lost(original: str, rewrite: str) -> None:
    assert find_losses(original, rewrite, ["code", "numbers", "names"]) == []


@pytest.mark.parametrize(("original", "rewrite", "kind", "item"), LOST.values(), ids=LOST.keys())
def test_what_is_lost_is_named(original: str, rewrite: str, kind: str, item: str) -> None:
    losses = {loss.kind: loss.items for loss in find_losses(original, rewrite, ["code", "numbers", "names"])}
    assert item in losses[kind]  # type: ignore[index]


def test_only_the_kinds_asked_for_count() -> None:
    assert find_losses("Bob has 3.5 `x`.", "nothing", ["numbers"])[0].items == ("3.5",)
    assert find_losses("Bob has 3.5 `x`.", "nothing", []) == []
