"""How Markdown is written: code, fences, links, marks, indentation. Knows strings; what they were made of is the converters' business."""

import re

BACKTICKS = re.compile(r"`+")
BREAK = "\v"
"""A line break, and with the source's own line end after it still one."""

# The lookbehinds keep long runs of blanks from being tried from each of their places.
_BREAK_EDGES = re.compile(r"(?<![ \t\r\f])[ \t\r\f]*+\v[ \t\r\f]*+\n?")
_LINE_EDGES = re.compile(r"(?<![ \t\r\f])[ \t\r\f]*+\n[ \t\r\f]*+")


def join_breaks(text: str) -> str:
    """The text with its breaks as line ends."""
    return _BREAK_EDGES.sub("\n", text)


def trim_lines(text: str) -> str:
    """The text without blanks around its line ends."""
    # Most text has none, and looking is several times quicker than replacing.
    if "\n" in text and (" \n" in text or "\n " in text or "\t" in text or "\r" in text or "\f" in text):
        return _LINE_EDGES.sub("\n", text)
    return text


def wrap_marks(content: str, before: str, after: str) -> str:
    """Marks around the content, blanks left outside; `10<sup>6</sup>` must not become 106."""
    inner = content.strip()
    if not inner:
        return content
    if not after and not inner.isalnum():
        before, after = f"{before}(", ")"
    start = content[: len(content) - len(content.lstrip())]
    return f"{start}{before}{inner}{after}{content[len(start) + len(inner) :]}"


def mark_link(content: str, href: str) -> str:
    """A link on the content; the content alone where there is nothing to link, or it is the address itself."""
    text = content.strip()
    if not href or not text or href == text:
        return content if text or not href else ""
    start = content[: len(content) - len(content.lstrip())]
    target = f"<{href}>" if " " in href or ")" in href else href
    return f"{start}[{text}]({target}){content[len(start) + len(text) :]}"


def quote_code(code: str) -> str:
    """Inline code in as many backticks as it needs."""
    if not code.strip():
        return code
    if "`" not in code:
        return f"`{code}`"
    ticks = "`" * (max(len(run) for run in BACKTICKS.findall(code)) + 1)
    return f"{ticks} {code} {ticks}"


def render_fence(code: str, language: str) -> str:
    """A fenced block, the fence longer than any in the code."""
    runs = [len(run) for run in BACKTICKS.findall(code)] if "`" in code else []
    fence = "`" * max(3, max(runs, default=0) + 1)
    code = code.strip("\n").rstrip()
    return f"{fence}{language}\n{code}\n{fence}"


def indent_lines(text: str, by: str) -> str:
    """Each line that is not empty moved to the right."""
    if "\n" not in text:
        return by + text if text else text
    return "\n".join(by + line if line else line for line in text.split("\n"))
