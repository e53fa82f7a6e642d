"""Each rule of a growing pool on both sides of its threshold."""

import pytest

from llamero.data.generating.answers import Instance
from llamero.data.generating.recipe import settle_recipe
from llamero.data.generating.refusing import Refusals, judge_instances
from llamero.spec.steps import GenerateSpec

POOL = ["one two three four five six seven eight nine ten"]


def build(**options: object) -> Refusals:
    model = {"url": "https://host/v1", "model": "m"}
    return Refusals(settle_recipe(GenerateSpec.model_validate({"model": model, **options})), POOL)


def words(count: int) -> str:
    return " ".join(f"w{n}" for n in range(count))


SELF_INSTRUCT = {
    "three words": ("Tell me something", "minWords"),
    "four words": ("Tell me something nice", None),
    "150 words": (words(150), None),
    "151 words": (words(151), "maxWords"),
    "begins with punctuation": ("-Tell me something nice", "requireAsciiStart"),
    "begins with an accent": ("Écris quelque chose de beau", "requireAsciiStart"),
    "punctuation within": ("Tell me - something nice", None),
    "a blocked word": ("Describe the Images that you see", "blockedWords"),
    "a part of a longer word": ("Describe the imagery that you see", None),
    "a blocked phrase": ("Please go to the shop today", "blockedWords"),
    "its words apart": ("Please go and listen to the radio", None),
    "write a program": ("Write a program that adds figures", "allowPrograms"),
    "a program elsewhere": ("Explain how to write a program", None),
    "what only Alpaca blocks": ("Describe the music of the baroque", None),
    # 7 of 10 words in order: F is 0.7, and 8 of 10 is more.
    "ROUGE-L F of 0.7": ("one two three four five six seven a b c", None),
    "ROUGE-L F of 0.8": ("one two three four five six seven eight b c", "maxRouge"),
}


@pytest.mark.parametrize(("instruction", "rule"), SELF_INSTRUCT.values(), ids=SELF_INSTRUCT.keys())
def test_an_instruction_is_judged_by_self_instructs_rules(instruction: str, rule: str | None) -> None:
    drop = build().judge_instruction(instruction)
    assert (drop.rule if drop else None) == rule


@pytest.mark.parametrize("word", ["video", "audio", "music", "flowchart", "diagram", "image"])
def test_alpaca_blocks_more(word: str) -> None:
    drop = build(variant="alpaca").judge_instruction(f"Describe the {word} of the baroque")
    assert drop is not None
    assert drop.rule == "blockedWords"


def test_thresholds_come_from_the_manifest() -> None:
    refusals = build(minWords=2, maxWords=3, maxRouge=0.2, blockedWords=["sky"])
    assert refusals.judge_instruction("Tell me something") is None
    for instruction, rule in (
        ("Tell", "minWords"),
        ("Tell me something nice", "maxWords"),
        ("The sky", "blockedWords"),
    ):
        drop = refusals.judge_instruction(instruction)
        assert drop is not None
        assert drop.rule == rule
    alike = refusals.judge_instruction("one two three")
    assert alike is not None
    assert (alike.rule, alike.threshold) == ("maxRouge", 0.2)


def test_what_is_admitted_counts_from_then_on() -> None:
    refusals = build()
    instruction = "Say which of the two is heavier"
    assert refusals.judge_instruction(instruction) is None
    refusals.admit(instruction)
    drop = refusals.judge_instruction(instruction)
    assert drop is not None
    assert (drop.rule, drop.value) == ("maxRouge", 1.0)
    assert instruction in drop.detail


INSTANCES = {
    "a good one": ([("a", "b")], [True]),
    "output equal to the input": ([("a", "a")], [False]),
    "no output": ([("a", "")], [False]),
    "an output that ends with a colon": ([("a", "It is:")], [False]),
    "an input that ends with a colon": ([("As follows:", "b")], [False]),
    "colons within": ([("a: b", "c: d")], [True]),
    "no input": ([("", "b")], [True]),
    "the same twice": ([("a", "b"), ("a", "b")], [True, False]),
    "the same input with different outputs": ([("a", "b"), ("c", "d"), ("a", "e")], [False, False, False]),
    "the same input, of which one output is refused by itself": ([("a", "b"), ("a", "a")], [True, False]),
    "no input and different outputs": ([("", "b"), ("", "c")], [True, True]),
}


@pytest.mark.parametrize(("pairs", "kept"), INSTANCES.values(), ids=INSTANCES.keys())
def test_instances_are_judged_by_themselves_and_together(pairs: list[tuple[str, str]], kept: list[bool]) -> None:
    verdicts = judge_instances(build(), "Say it in other words", [Instance(*pair) for pair in pairs])
    assert [drop is None for _, drop in verdicts] == kept
    assert all(drop.rule == "checkInstances" and drop.detail for _, drop in verdicts if drop)


@pytest.mark.parametrize(("variant", "figures"), [("self-instruct", (6, 2, 8, False)), ("alpaca", (3, 0, 20, True))])
def test_a_variant_settles_what_the_manifest_leaves_open(variant: str, figures: tuple[int, int, int, bool]) -> None:
    model = {"url": "https://host/v1", "model": "m"}
    spec = GenerateSpec.model_validate({"model": model, "variant": variant, "records": 7})
    recipe = settle_recipe(spec)
    assert (recipe.human_examples, recipe.machine_examples, recipe.tasks_per_call, recipe.with_instances) == figures
    assert recipe.max_calls == 140
    told = settle_recipe(spec.model_copy(update={"human_examples": 2, "machine_examples": 1, "tasks_per_call": 4}))
    assert (told.human_examples, told.machine_examples, told.tasks_per_call) == (2, 1, 4)
