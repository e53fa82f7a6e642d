"""How the steps that rewrite records ask: several questions a record, the answers given back to the records that they belong to."""

from collections.abc import Callable, Sequence

from llamero.data.asking.asker import Asker
from llamero.data.asking.client import Backoff
from llamero.data.asking.ledger import Account
from llamero.data.asking.questions import Question, Unanswered
from llamero.data.steps.record import StepContext
from llamero.spec.records import Message
from llamero.spec.steps import LanguageModel

Parse = Callable[[str], str]


class Asking:
    """What a step asks one model with. `accounts` tells what that took, an account each time it was opened."""

    def __init__(
        self, model: LanguageModel, purpose: str, context: StepContext, backoff: Backoff | None = None
    ) -> None:
        self._model, self._purpose, self._context, self._backoff = model, purpose, context, backoff
        self.accounts: list[Account] = []
        self._build()  # what can't be asked is said before anything is read

    def open(self) -> Asker:
        """An asker, to be entered."""
        asker = self._build()
        self.accounts.append(asker.account)
        return asker

    def _build(self) -> Asker:
        context = self._context
        return Asker(
            self._model,
            self._purpose,
            context.answers,
            context.workers,
            allow_http=context.allow_http,
            preparation=context.preparation,
            backoff=self._backoff,
        )


def build_question(system: str, prompt: str) -> Question:
    """A question with what is wanted as the system's turn, and what it is wanted for as the user's."""
    return Question((Message("system", system), Message("user", prompt)))


def ask_groups(asker: Asker, groups: Sequence[Sequence[Question]], parse: Parse) -> list[tuple[str, ...] | Unanswered]:
    """The parsed answers of each group of questions, all asked together; the first Unanswered of a group that has one."""
    flat = [question for group in groups for question in group]
    answers = iter(asker.ask(flat, parse) if flat else [])
    outcome: list[tuple[str, ...] | Unanswered] = []
    for group in groups:
        given = [next(answers) for _ in group]
        missing = next((a for a in given if isinstance(a, Unanswered)), None)
        outcome.append(missing if missing is not None else tuple(a for a in given if isinstance(a, str)))
    return outcome
