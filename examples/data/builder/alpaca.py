"""alpaca.json: one wording of each fact, and the dirt of such files."""

import random
from collections.abc import Iterator

from builder.facts import Fact
from builder.markup import to_html
from builder.rows import Row, mix, reword


def build_alpaca(
    facts: list[Fact],
    wordings: dict[str, str],
    demo_prompts: set[str],
    copies: list[Row],
    open_questions: Iterator[str],
) -> list[Row]:
    """alpaca.json: one wording of each fact, some with HTML or an input, and dirt between them."""
    rng = random.Random("alpaca")
    rows = []
    for fact in rng.sample(facts, len(facts)):
        question = wordings[fact.id]
        chance = 1.0 if question in demo_prompts else rng.random()
        if chance < 0.1:
            rows.append(alpaca_row(question, to_html(fact.answer), "alpaca-html-output"))
        elif chance < 0.2:
            rows.append(alpaca_row(f"Answer this question about {fact.topic[0]}.", fact.answer, input=question))
        else:
            rows.append(alpaca_row(question, fact.answer))
    plain = [row.value for row in rows if not row.kinds and not row.value["input"] and "`" not in row.value["output"]]
    picked = iter(rng.sample(plain, 20))

    later = list(copies)
    later += [Row(dict(next(picked)), ("alpaca-duplicate-exact",)) for _ in range(3)]
    for _ in range(2):
        row = next(picked)
        spaced = {
            **row,
            "instruction": f" {row['instruction']}\n",
            "output": row["output"].replace(" ", "  ", 3) + "\t",
        }
        later.append(Row(spaced, ("alpaca-duplicate-whitespace",)))
    for _ in range(2):
        row = next(picked)
        later.append(Row({**row, "instruction": row["instruction"].upper()}, ("alpaca-duplicate-case",)))
    for _ in range(2):
        row = next(picked)
        later.append(Row({**row, "output": to_html(row["output"])}, ("alpaca-duplicate-markup",)))
    for _ in range(6):
        row = next(picked)
        later.append(Row({**row, "instruction": reword(row["instruction"])}, ("alpaca-near-duplicate",)))

    rows += [alpaca_row(next(open_questions), "", "alpaca-empty-output") for _ in range(3)]
    rows += [alpaca_row(next(open_questions), blank, "alpaca-blank-output") for blank in ("  ", "\n\n")]
    rows += [
        alpaca_row(next(open_questions), tags, "alpaca-markup-only-output") for tags in ("<p></p>", "<div><br></div>")
    ]
    rows += [
        Row({"instruction": next(open_questions), "input": ""}, ("alpaca-missing-output",)),
        Row({"instruction": next(open_questions)}, ("alpaca-missing-output",)),
        Row({"input": "", "output": "That is the one to take."}, ("alpaca-missing-instruction",)),
        Row("instruction,input,output", ("alpaca-row-not-object",)),
        Row({"instruction": next(open_questions), "input": "", "output": 42}, ("alpaca-output-not-text",)),
        Row({"instruction": next(open_questions), "input": "", "output": None}, ("alpaca-output-not-text",)),
    ]
    return mix(rows, later, rng)


def alpaca_row(instruction: str, output: str, *kinds: str, input: str = "") -> Row:
    return Row({"instruction": instruction, "input": input, "output": output}, kinds)
