"""A worker that asks, as a process of its own: `python ask_worker.py` with its orders as JSON on standard input, its account on standard output.

`{"model": {...}, "purpose", "answers", "workers", "questions": [texts], "batch": n}`; where the budget is spent, `"spent"` has the sentence.
"""

import json
import sys
from typing import Any

from llamero.data.asking.asker import Asker, BudgetSpent
from llamero.data.asking.client import Backoff
from llamero.data.asking.questions import Question
from llamero.spec.records import Message
from llamero.spec.steps import LanguageModel


def work(orders: dict[str, Any]) -> dict[str, Any]:
    model = LanguageModel.model_validate(orders["model"])
    questions = [Question((Message("user", text),)) for text in orders["questions"]]
    batch = orders.get("batch") or len(questions)
    quick = Backoff(first_seconds=0.01)
    with Asker(model, orders["purpose"], orders["answers"], orders["workers"], backoff=quick) as asker:
        try:
            for start in range(0, len(questions), batch):
                asker.ask(questions[start : start + batch])
            spent = None
        except BudgetSpent as error:
            spent = str(error)
        return {"account": asker.account.to_dict(), "spent": spent}


if __name__ == "__main__":
    json.dump(work(json.load(sys.stdin)), sys.stdout)
