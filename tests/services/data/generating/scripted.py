"""A "model" for tests of generating: answers the prompts that grow a pool as a sensible model would, by a function of the prompt alone.

It knows the prompts' forms, not their wording: how many tasks are asked for, and whether labels, examples or yes/no are wanted.
"""

import hashlib
import re
from random import Random
from typing import Any

Body = dict[str, Any]

_SYLLABLES = ("ba", "de", "fi", "go", "lu", "mo", "na", "pe", "ri", "so", "tu", "va", "ze", "ko", "li")
_VERBS = ("Explain", "Compare", "Summarise", "List", "Describe", "Translate", "Invent")


def digest(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")


def invent_words(generator: Random, count: int) -> list[str]:
    """Words that hardly ever come twice, so that two texts of them have little in common."""
    return ["".join(generator.choices(_SYLLABLES, k=4)) for _ in range(count)]


def invent_task(key: object) -> str:
    generator = Random(digest("task", key))
    return f"{generator.choice(_VERBS)} {' '.join(invent_words(generator, generator.randint(6, 14)))}."


def find_kind(body: Body) -> str:
    """What a request asks for: tasks, blocks, class, labels or examples."""
    system, prompt = body["messages"][0]["content"], body["messages"][-1]["content"]
    if "from ###" in prompt:
        return "blocks"
    if "numbered" in prompt:
        return "tasks"
    if "answer yes or no" in system:
        return "class"
    return "labels" if "Label:" in system else "examples"


def answer(body: Body) -> str:
    """A usable answer to any prompt of a growing pool."""
    prompt = body["messages"][-1]["content"]
    key = digest(body["messages"], body.get("temperature"))
    kind = find_kind(body)
    if kind == "class":
        return "yes" if digest(prompt) % 3 == 0 else "No."
    if kind == "labels":
        return "\n\n".join(f"Label: {label}\nInput: {invent_task((key, label))}" for label in ("good", "bad"))
    if kind == "examples":
        if digest(prompt) % 2:
            return f"Output: {invent_task((key, 'out'))}"
        pairs = [f"Example {n}\nInput: {invent_task((key, n))}\nOutput: {invent_task((key, n, 'out'))}" for n in (1, 2)]
        return "\n\n".join([*pairs, "Example 3\nInput: half a thought\nOutput: The following holds:"])
    first, last = map(int, re.findall(r"\d+", prompt.split("new ones")[-1])[:2])
    if kind == "tasks":
        shown = re.findall(r"^\d+\. (.*)$", prompt, re.MULTILINE)
        tasks = {number: invent_task((key, number)) for number in range(first, last + 1)}
        tasks[first] = shown[digest(key) % len(shown)]  # repeats what it was shown
        tasks[first + 1] = "Draw a picture of " + tasks[first + 1]
        return "\n".join(f"{number}. {task}" for number, task in tasks.items())
    blocks = []
    for number in range(first, last + 1):
        given = "<noinput>" if number % 2 else f"{invent_task((key, number, 'in'))}\nA second line."
        parts = {"Instruction": invent_task((key, number)), "Input": given, "Output": invent_task((key, number, "out"))}
        blocks.append(f"### {number}\n" + "\n".join(f"{name}: {text}" for name, text in parts.items()))
    return "\n\n".join(blocks)


def babble_sometimes(body: Body) -> str:
    """As `answer`, but that one question in four gets nonsense at first: asked again, and warmer, it gets a usable answer."""
    if body.get("temperature", 0) == 0 and digest("babble", body["messages"]) % 4 == 0:
        return "Certainly! I would be happy to help you with that.\nWhat do you have in mind?"
    return answer(body)
