"""What a model is asked while a pool grows: new tasks, whether a task is a classification, instances of a task. Pure; in words of our own.

The answers' forms are asked for here and read in `answers.py`.
"""

from collections.abc import Sequence

from llamero.data.asking.questions import Question
from llamero.data.generating.seeds import Task
from llamero.spec.records import Message

NO_INPUT = "<noinput>"

_NEW_TASKS = (
    "You think up tasks for an assistant that reads and writes text and nothing else: it sees no pictures, opens no files and presses no "
    "buttons. Make the tasks differ: other verbs, other fields, other forms (questions, orders, games, lists, arguments, code, tables), easy "
    "and hard ones. Each is one or two sentences that somebody could really ask, in English, and repeats none of the tasks shown."
)
_LIST = (
    "These are tasks that there are already:\n\n{shown}\n\nGo on with {count} new ones, numbered {first} to {last}: each begins on a new line with "
    "its number and a full stop, and nothing else stands before, between or after them."
)
_BLOCKS = (
    "Each task has an instruction, an input where the instruction is about something given (a text, a list, figures), and the output of a perfect "
    "assistant. An input is real and specific, of at most a hundred words; where none is needed write {no_input}. An output is right and "
    "complete."
)
_BLOCK_LIST = (
    "These are tasks that there are already, in the form that I want:\n\n{shown}\n\nGo on with {count} new ones in the same form, from ### {first} "
    "to ### {last}, and write nothing else."
)
_CLASSIFY = (
    "A task is a classification where every possible output is one of a few labels that are known before the input is seen: sentiment, yes or no, "
    "true or false, a category, the best of listed options. Tasks with open outputs are none, however short the outputs. Say whether the task "
    "is one: answer yes or no, nothing else."
)
_INPUT_FIRST = (
    "You are given an instruction and make examples of it. Think first whether it needs something to work on. If it does, give up to {count} "
    "examples that differ, each with an input and its output. If it does not, give one output and no input. Inputs are real and specific, never "
    "placeholders; outputs are right and complete. Use this form and write nothing else:\n\nExample 1\nInput: the input, left out where none is "
    "needed\nOutput: the output\n\nExample 2\n…"
)
_OUTPUT_FIRST = (
    "You are given an instruction whose answer is one of a few labels, and make examples of it. Go through the possible labels, at most {count}, "
    "and for each write an input for which it is the right answer, so that no label is commoner than the others. Where the instruction needs no "
    "input, give a label alone. Use this form and write nothing else:\n\nLabel: the label\nInput: the input\n\nLabel: another label\nInput: …"
)


def ask_tasks(shown: Sequence[Task], count: int) -> Question:
    """New instructions, as a numbered list that goes on from those shown."""
    lines = "\n".join(f"{number}. {_in_one_line(task.instruction)}" for number, task in enumerate(shown, 1))
    first = len(shown) + 1
    prompt = _LIST.format(shown=lines, count=count, first=first, last=first + count - 1)
    return _build(_NEW_TASKS, prompt)


def ask_whole_tasks(shown: Sequence[Task], count: int) -> Question:
    """New tasks with an instance each, as blocks that go on from those shown (Alpaca)."""
    blocks = "\n\n".join(
        f"### {number}\nInstruction: {_in_one_line(task.instruction)}\nInput: {task.input or NO_INPUT}\nOutput: {task.output}"
        for number, task in enumerate(shown, 1)
    )
    first = len(shown) + 1
    prompt = _BLOCK_LIST.format(shown=blocks, count=count, first=first, last=first + count - 1)
    return _build(f"{_NEW_TASKS} {_BLOCKS.format(no_input=NO_INPUT)}", prompt)


def ask_class(instruction: str, examples: Sequence[Task]) -> Question:
    """Whether an instruction is a classification; `examples` are seeds of which it is known."""
    turns = [Message("system", _CLASSIFY)]
    for task in examples:
        turns += [
            Message("user", _show(task.instruction)),
            Message("assistant", "yes" if task.is_classification else "no"),
        ]
    return Question((*turns, Message("user", _show(instruction))))


def ask_instances(instruction: str, is_classification: bool, count: int, examples: Sequence[Task]) -> Question:
    """Instances of an instruction: output first for a classification, input first for any other."""
    turns = [Message("system", (_OUTPUT_FIRST if is_classification else _INPUT_FIRST).format(count=count))]
    for task in examples:
        answer = _show_label(task) if is_classification else _show_example(task)
        turns += [Message("user", _show(task.instruction)), Message("assistant", answer)]
    return Question((*turns, Message("user", _show(instruction))))


def _show(instruction: str) -> str:
    return f"Instruction: {instruction}"


def _show_example(task: Task) -> str:
    given = f"Input: {task.input}\n" if task.input else ""
    return f"Example 1\n{given}Output: {task.output}"


def _show_label(task: Task) -> str:
    return f"Label: {task.output}" + (f"\nInput: {task.input}" if task.input else "")


def _build(system: str, prompt: str) -> Question:
    return Question((Message("system", system), Message("user", prompt)))


def _in_one_line(text: str) -> str:
    return " ".join(text.split())
