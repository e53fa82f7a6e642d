"""The text that ships with the running Python, as plain documents and as conversations.

It knows documentation strings, the topics of `help()` and how to ask about them; tokens and training are left to
`pretrain.py`. The same Python and the same seed give the same corpus.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# ---------------------------------------------------------------------------------------------------------------
# What Python says about itself

SKIPPED_FOLDERS = frozenset({"__pycache__", "dist-packages", "idlelib", "lib2to3", "site-packages", "test", "tests"})
# These carry their documentation in C, out of the reach of `ast`.
COMPILED_MODULES = (
    "array", "binascii", "builtins", "cmath", "collections", "datetime", "errno", "fcntl", "functools", "gc", "grp",
    "hashlib", "io", "itertools", "marshal", "math", "mmap", "operator", "os", "pwd", "pyexpat", "random", "re",
    "resource", "select", "signal", "socket", "struct", "sys", "syslog", "termios", "time", "unicodedata", "weakref",
    "zlib",
)  # fmt: skip
HELD_OUT_PERCENT = 2
LONGEST_ANSWER_CHARACTERS = 320


@dataclass(frozen=True)
class Entry:
    """One documented object of the standard library."""

    name: str
    kind: str  # module, class, function, method or topic
    signature: str  # "" where there is none
    text: str


def read_standard_library(root: Path) -> list[Entry]:
    """Every documentation string below `root`, in the order of sorted paths and then of the source."""
    entries: list[Entry] = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED_FOLDERS & set(parts) or parts[0].startswith("config-") or parts[0] == "pydoc_data":
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # a few files are templates or deliberately broken
        module = ".".join(part for part in parts if part != "__init__")
        entries.extend(read_definitions(tree, module, "module"))
    return entries


def read_definitions(node: ast.AST, name: str, kind: str) -> Iterator[Entry]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = (ast.get_docstring(node) or "").strip()
        if text:
            yield Entry(name, kind, build_signature(node, name), text)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from read_definitions(child, f"{name}.{child.name}", "class")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            child_kind = "method" if isinstance(node, ast.ClassDef) else "function"
            yield from read_definitions(child, f"{name}.{child.name}", child_kind)
        elif isinstance(child, ast.If | ast.Try):
            yield from read_definitions(child, name, kind)


def build_signature(node: ast.AST, name: str) -> str:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return ""
    signature = f"{name}({ast.unparse(node.args)})"
    return signature if len(signature) <= 160 else ""


def read_compiled_modules(names: Iterable[str]) -> list[Entry]:
    """Documentation of the public objects of `names` that no Python source documents."""
    entries: list[Entry] = []
    for module_name in names:
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue  # not on this platform
        for attribute, member in sorted(vars(module).items()):
            if attribute.startswith("_") or inspect.ismodule(member) or inspect.isfunction(member):
                continue
            name = attribute if module_name == "builtins" else f"{module_name}.{attribute}"
            if inspect.isclass(member):
                if member.__module__ not in {module_name, f"_{module_name}", "builtins"}:
                    continue
                entries.extend(read_compiled(name, "class", member))
                for method_name, method in sorted(vars(member).items()):
                    if not method_name.startswith("_") and not inspect.isfunction(method):
                        entries.extend(read_compiled(f"{name}.{method_name}", "method", method))
            elif callable(member):
                entries.extend(read_compiled(name, "function", member))
    return entries


def read_compiled(name: str, kind: str, member: object) -> Iterator[Entry]:
    text = inspect.cleandoc(member.__doc__) if isinstance(member.__doc__, str) else ""
    signature = getattr(member, "__text_signature__", None) or ""
    signature = name + re.sub(r"\$\w+,? ?", "", signature) if signature else ""
    if len(text) > 20:
        yield Entry(name, kind, signature, text)


def read_topics() -> list[Entry]:
    """The chapters of the language reference that `help()` prints."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    emphasis = re.compile(r"(?<![\w*])(\*{1,2})(\w[^*\n]*)\1(?![\w*])")
    return [Entry(name, "topic", "", emphasis.sub(r"\2", topics[name]).strip()) for name in sorted(topics)]


def collect_entries(limit: int | None = None) -> list[Entry]:
    """All entries with distinct texts, first come first kept; `limit` keeps every n-th for a small corpus.

    Call it in a fresh interpreter: who replaces a hook of `sys` replaces its documentation too.
    """
    stdlib = Path(sysconfig.get_path("stdlib"))
    found = [*read_standard_library(stdlib), *read_compiled_modules(COMPILED_MODULES), *read_topics()]
    distinct = list({entry.text: entry for entry in reversed(found)}.values())[::-1]
    return distinct if limit is None else distinct[:: max(1, len(distinct) // limit)][:limit]


def digest_entries(entries: Sequence[Entry]) -> str:
    lines = (json.dumps([e.name, e.kind, e.signature, e.text]) for e in entries)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def is_held_out(entry: Entry) -> bool:
    """Decided by content, so that a new Python version moves no old text across the split."""
    return int(hashlib.sha256(entry.text.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def split_entries(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    return [e for e in entries if not is_held_out(e)], [e for e in entries if is_held_out(e)]


# ---------------------------------------------------------------------------------------------------------------
# The two forms: as it stands, and as questions and answers

Message = dict[str, str]

SYSTEMS = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "You answer questions about Python.",
    "You are a careful tutor. Keep to the facts.",
)
QUESTIONS_WHAT = (
    "What does {name} do?",
    "What is {name}?",
    "What is {name} for?",
    "Explain {name} in one sentence.",
    "Describe {name}.",
    "Describe the {kind} {name}.",
    "Tell me about {name}.",
    "Can you explain {name}?",
    "Please explain the {kind} {name}.",
    "In short, what is {name}?",
    "How would you describe {name}?",
    "What should I know about {name}?",
    "I keep seeing {name}. What is it?",
    "When would I use {name}?",
    "Why would I need {name}?",
    "Give me a summary of {name}.",
    "How does {name} work?",
    "what is {name}",
    "{name}?",
    "What does {short} do in {parent}?",
    "In {parent}, what is {short}?",
    "What is the purpose of {short} in {parent}?",
)
QUESTIONS_WHICH = (
    'Which {kind} of {parent} does this: "{summary}"',
    "{summary} What is that called?",
    "What is this {kind} of {parent}? {summary}",
    "Name the {kind}: {summary}",
)
ANSWERS_WHICH = ("It is {name}.", "That is {name}.", "`{name}`", "{name}")
QUESTIONS_CALL = (
    "How do I call {name}?",
    "What is the signature of {name}?",
    "Which arguments does {name} take?",
    "Show me how to write a call of {name}.",
)
ANSWERS_CALL = ("```python\n{signature}\n```", "Write `{signature}`.", "`{signature}`")
QUESTIONS_WHERE = ("Where is {short} found?", "Which part of Python has {short}?", "What does {short} belong to?")
ANSWERS_WHERE = ("{short} is part of {parent}.", "It belongs to {parent}.", "In {parent}.")
FOLLOW_UPS = ("Tell me more.", "Can you say more?", "Go on.", "And in detail?", "What else should I know?")
THANKS = (("Thanks!", "You are welcome."), ("Thank you.", "Glad to help."), ("Great, thanks", "You are welcome."))


def shorten_paragraph(text: str) -> str:
    """The first whole sentences of a paragraph, on one line; "" where it is not prose."""
    line = " ".join(text.split())
    if ">>>" in line or "->" in line or len(line) < 16 or not re.search(r"[a-z]{3} [a-z]", line):
        return ""
    if len(line) <= LONGEST_ANSWER_CHARACTERS:
        return line
    cut = line.rfind(". ", 0, LONGEST_ANSWER_CHARACTERS)
    return line[: cut + 1] if cut > 0 else ""


def pick_paragraphs(entry: Entry) -> list[str]:
    """The first two paragraphs of prose: the answer, and what a follow-up question brings out."""
    if entry.kind == "topic":
        text = re.sub(r"\A[^\n]*\n[=*\-\"~]+\n", "", entry.text)
        return [p for p in map(shorten_paragraph, text.split("\n\n")[:4]) if p][:2]
    return [p for p in map(shorten_paragraph, entry.text.split("\n\n")) if p][:2]


def is_askable(entry: Entry) -> bool:
    hidden = any(part.startswith("_") for part in entry.name.split("."))
    return not hidden and bool(pick_paragraphs(entry))


def build_turns(entry: Entry, rng: random.Random) -> list[Message]:
    """One question about `entry` with its answer, now and then with a follow-up."""
    paragraphs = pick_paragraphs(entry)
    parent, _, short = entry.name.rpartition(".")
    words = {
        "name": entry.name,
        "short": short,
        "parent": parent or "Python",
        "kind": entry.kind,
        "summary": paragraphs[0],
        "signature": entry.signature,
    }
    draw = rng.random()
    if entry.signature and draw < 0.12:
        question, answer = rng.choice(QUESTIONS_CALL), rng.choice(ANSWERS_CALL)
    elif draw < 0.24 and len(paragraphs[0]) < 200:
        question, answer = rng.choice(QUESTIONS_WHICH), rng.choice(ANSWERS_WHICH)
    elif draw < 0.28:
        question, answer = rng.choice(QUESTIONS_WHERE), rng.choice(ANSWERS_WHERE)
    else:
        question, answer = rng.choice(QUESTIONS_WHAT), "{summary}"
    turns = build_pair(question.format(**words), answer.format(**words))
    if answer == "{summary}" and len(paragraphs) > 1 and rng.random() < 0.3:
        turns += build_pair(rng.choice(FOLLOW_UPS), paragraphs[1])
    return turns


def build_pair(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def build_conversations(entries: Sequence[Entry], rng: random.Random) -> list[list[Message]]:
    """Each entry asked twice: alone, and in a conversation of up to 24 questions about its neighbours."""
    askable = [entry for entry in entries if is_askable(entry)]
    conversations = [build_turns(entry, rng) for entry in askable]
    start = 0
    while start < len(askable):
        length = rng.choice((1, 1, 1, 2, 2, 3, 4, 6, 12, 24))
        turns = [turn for entry in askable[start : start + length] for turn in build_turns(entry, rng)]
        if rng.random() < 0.1:
            turns += build_pair(*rng.choice(THANKS))
        if rng.random() < 0.25:
            turns.insert(0, {"role": "system", "content": rng.choice(SYSTEMS)})
        conversations.append(turns)
        start += length
    return conversations


def build_texts(entries: Sequence[Entry]) -> list[str]:
    """The plain form: a heading with the signature or name, then the documentation string as it stands."""
    return [f"{entry.signature or entry.name}\n\n{entry.text}" for entry in entries]
