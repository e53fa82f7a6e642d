"""HTML to Markdown on lexbor's tree: code, lists, links, tables and maths are kept, everything else becomes plain text.

Knows what HTML looks like and how to tell it from text that merely holds `<`. Which fields are HTML is decided by `normalise`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator

from selectolax.lexbor import LexborHTMLParser, LexborNode

from llamero.data.markdown import (
    BREAK,
    indent_lines,
    join_breaks,
    mark_link,
    quote_code,
    render_fence,
    trim_lines,
    wrap_marks,
)
from llamero.data.plainhtml import convert_plain_html


def _words(text: str) -> list[str]:
    return text.split()


_INLINE_TAGS = _words(
    "a abbr acronym b bdi bdo big br center cite code data del dfn em font i img ins kbd label mark nobr q rp rt ruby s samp small "
    "span strike strong sub sup time tt u var wbr"
)
_BLOCK_TAGS = _words(
    "address article aside blockquote body caption col colgroup dd details div dl dt fieldset figcaption figure footer h1 h2 h3 h4 h5 h6 "
    "header hr html legend li main nav ol p pre section summary table tbody td tfoot th thead tr ul"
)
_DROPPED_TAGS = _words(
    "applet area audio base button canvas embed frame frameset head iframe input link map meta noframes noscript object optgroup option "
    "param script select source style svg template textarea title track video"
)
_MATHS_TAGS = _words(
    "math semantics annotation mrow mi mo mn ms mtext mspace msup msub msubsup mfrac msqrt mroot mover munder munderover mtable mtr mtd "
    "mstyle mpadded menclose mphantom merror"
)
# In an answer these are code to be shown, not the markup of the answer: pages, forms, media.
_SHOWN_TAGS = frozenset(
    _DROPPED_TAGS + _words("html body form label fieldset legend font center nav main header footer")
)
# Scraped chats carry buttons and bars; their classes tell.
_CHAT_PAGE = re.compile(r"class=\"[^\"]*(?:\bmarkdown\b|\bhljs\b|\bbg-black\b)")
_STYLING = re.compile(r"\s(?:style|on\w+|className|bgcolor|border|cellpadding)\s*=", re.IGNORECASE)
_VOID_TAGS = frozenset(_words("area base br col embed hr img input link meta param source track wbr"))

_BLOCK = frozenset(_BLOCK_TAGS)
_DROPPED = frozenset(_DROPPED_TAGS)
_KNOWN = frozenset(_INLINE_TAGS + _BLOCK_TAGS + _DROPPED_TAGS + _MATHS_TAGS + ["form"])

_ATTRIBUTES = (
    r"(?:\s+(?:[A-Za-z_:@][\w:.@-]*\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'<>`=]+)"
    r"|(?:allowfullscreen|async|checked|controls|defer|disabled|hidden|nowrap|open|reversed)(?=[\s/>])))*+"
)
_NAMES = "|".join(sorted(_KNOWN, key=len, reverse=True))
# A `<` that opens no known tag is text: `x <- lm(y ~ .)`, `#include <stdio.h>`, `List<String>`.
_STRAY = re.compile(rf"<(?!/?(?:{_NAMES}){_ATTRIBUTES}\s*/?>|!--)", re.IGNORECASE)
_TAG_LIKE = re.compile(r"<(/?)([A-Za-z!][\w:.-]*+)([^<>]*+)>")
_TAG = re.compile(rf"</?({_NAMES}){_ATTRIBUTES}\s*/?>", re.IGNORECASE)

_LANGUAGE_HINT = re.compile(r"^\s*language(?:-all)?:\s*(?:lang-)?([\w+#.-]+)\s*$")
_LANGUAGE_CLASS = re.compile(r"(?:^|[\s!])lang(?:uage)?-([\w+#.-]+)")
_NOT_LANGUAGES = frozenset({"none", "default", "text", "plaintext", "prettyprint", "undefined"})

MAX_DEPTH = 80
"""Elements nested deeper are taken as their text: real pages stay below, hostile ones would exhaust the stack."""


def is_html(text: str) -> bool:
    """Whether the text as a whole is HTML markup, and not prose or code that shows some.

    It is where each thing that looks like a tag is a known one of a page's body and every opened one is closed. Fenced or
    backticked text, whole pages, forms and styled elements (code, in a training set), generics (`List<int>`) and comparisons
    are not.
    """
    if "<" not in text or "```" in text or "`<" in text:
        return False
    shown = frozenset[str]() if _CHAT_PAGE.search(text) else _SHOWN_TAGS
    balance: Counter[str] = Counter()
    found = False
    for match in _TAG_LIKE.finditer(text):
        closing, name = match.group(1), match.group(2).lower()
        if name.startswith("!--"):
            continue
        if name not in _KNOWN or name in shown or not _TAG.fullmatch(match.group()):
            return False
        if shown and _STYLING.search(match.group(3)):
            return False
        found = True
        if name not in _VOID_TAGS and not match.group(3).endswith("/"):
            balance[name] += -1 if closing else 1
    return found and not any(balance.values())


_ABOUT_MARKUP = re.compile(
    r"html|css|xml|\bjsx?\b|javascript|react|\bvue\b|\bweb|\btags?\b|mark-?up|markdown|\bcod(?:e|ing)\b|\bprograms?\b|hyperlink|\blinks?\b|\bbold|italic"
    r"|\bfont|\bstyl|\bformat|layout|template|\btables?\b|\bbutton|\bcolou?r|highlight|underlin|\belement",
    re.IGNORECASE,
)


def asks_for_markup(prompt: str) -> bool:
    """Whether the prompt speaks of markup, so that tags in its record are what is talked about and must stay."""
    return _ABOUT_MARKUP.search(prompt) is not None


def convert_html(html: str) -> str:
    """The HTML as Markdown. Any text goes; entities are unescaped once, and text outside tags is kept as it stands."""
    if "<" not in html and "&" not in html:
        return html.strip()
    plain = convert_plain_html(html, _find_language)
    if plain is not None:
        return plain
    return convert_by_tree(html)


def convert_by_tree(html: str) -> str:
    """As `convert_html`, whatever the HTML."""
    parser = LexborHTMLParser("<body>" + _STRAY.sub("&lt;", html))
    body = parser.body
    if body is None:
        return ""
    return convert_tree(body)


def convert_tree(node: LexborNode) -> str:
    """An element of a parsed page as Markdown."""
    return "\n\n".join(_render_blocks(node, 0)).strip("\n").rstrip()


def _children(node: LexborNode) -> Iterator[LexborNode]:
    child = node.first_child
    while child is not None:
        yield child
        child = child.next


def _render_blocks(node: LexborNode, depth: int) -> list[str]:
    """The node's content as blocks of Markdown, to be joined by blank lines."""
    if depth > MAX_DEPTH:
        return [node.text()]
    blocks: list[str] = []
    run: list[str] = []
    language = ""
    child = node.first_child
    while child is not None:
        tag = child.tag
        if tag == "-text":
            run.append(child.text_content or "")
        elif tag in _BLOCK:
            _flush(run, blocks)
            if tag == "p":
                blocks += _render_blocks(child, depth + 1)
            elif tag == "pre":
                blocks.append(_render_code(child, language))
                language = ""
            else:
                blocks += _BLOCK_RENDERERS.get(tag, _render_blocks)(child, depth + 1)
        elif tag == "-comment":
            hint = _LANGUAGE_HINT.match(child.comment_content or "")
            language = hint.group(1) if hint else language
        elif tag not in _DROPPED:
            run.append(_render_inline(child, tag or "", depth + 1))
        child = child.next
    _flush(run, blocks)
    return blocks


def _flush(run: list[str], blocks: list[str]) -> None:
    if not run:
        return
    text = "".join(run)
    run.clear()
    if BREAK in text:
        text = join_breaks(text)
    if "\n```" not in text:
        text = trim_lines(text)
    text = text.strip()
    if text:
        blocks.append(text)


def _render_inline(node: LexborNode, tag: str, depth: int) -> str:
    """One inline element as Markdown."""
    if tag == "br":
        return BREAK
    if tag in ("code", "kbd", "samp", "tt"):
        return quote_code(_read_raw(node))
    if tag == "img":
        return _render_image(node)
    if tag == "math" or (tag == "span" and "katex" in (node.attributes.get("class") or "")):
        return _render_maths(node)
    content = _render_inline_children(node, depth)
    if tag == "a":
        return _render_link(node, content)
    marks = _MARKS.get(tag)
    return wrap_marks(content, *marks) if marks else content


def _render_inline_children(node: LexborNode, depth: int) -> str:
    if depth > MAX_DEPTH:
        return node.text()
    parts: list[str] = []
    child = node.first_child
    while child is not None:
        tag = child.tag
        if tag == "-text":
            parts.append(child.text_content or "")
        elif tag in _BLOCK:
            inner = (
                [_render_code(child, "")]
                if tag == "pre"
                else _BLOCK_RENDERERS.get(tag, _render_blocks)(child, depth + 1)
            )
            parts.append("\n\n" + "\n\n".join(inner) + "\n\n")
        elif tag != "-comment" and tag not in _DROPPED:
            parts.append(_render_inline(child, tag or "", depth + 1))
        child = child.next
    return "".join(parts)


_MARKS: dict[str, tuple[str, str]] = {
    "em": ("*", "*"),
    "i": ("*", "*"),
    "strong": ("**", "**"),
    "b": ("**", "**"),
    "del": ("~~", "~~"),
    "s": ("~~", "~~"),
    "strike": ("~~", "~~"),
    "q": ('"', '"'),
    "sup": ("^", ""),
    "sub": ("_", ""),
}


def _render_link(node: LexborNode, content: str) -> str:
    return mark_link(content, (node.attributes.get("href") or "").strip())


def _render_image(node: LexborNode) -> str:
    alt, source = (node.attributes.get("alt") or "").strip(), (node.attributes.get("src") or "").strip()
    if source.startswith("data:"):
        source = ""
    return f"![{alt}]({source})" if alt or source else ""


def _render_maths(node: LexborNode) -> str:
    annotation = node.css_first("annotation")
    if annotation is None:
        return node.text()
    return f"${annotation.text().strip()}$"


def _read_raw(node: LexborNode) -> str:
    """The text of a code element as it stands: line breaks kept, buttons left out."""
    parts: list[str] = []
    stack = [node.first_child]
    while stack:
        child = stack.pop()
        if child is None:
            continue
        stack.append(child.next)
        tag = child.tag
        if tag == "-text":
            parts.append(child.text_content or "")
        elif tag == "br":
            parts.append("\n")
        elif tag not in _DROPPED and tag != "-comment":
            stack.append(child.first_child)
    return "".join(parts)


def _render_code(pre: LexborNode, language: str) -> str:
    """A fenced block. Where a chat page put a bar over the code (its language, a copy button), the code element alone counts."""
    codes = pre.css("code")
    single = codes[0] if len(codes) == 1 else None
    has_bar = single is not None and pre.css_first("div") is not None
    text = _read_raw(single if has_bar and single is not None else pre)
    return render_fence(text, _find_language(_read_class(single), _read_class(pre), language))


def _read_class(node: LexborNode | None) -> str:
    return (node.attributes.get("class") or "") if node is not None else ""


def _find_language(code_class: str, pre_class: str, hint: str = "") -> str:
    """A block's language, by the class of its code, else of its pre, else by the hint before it."""
    match = _LANGUAGE_CLASS.search(code_class) or _LANGUAGE_CLASS.search(pre_class)
    language = match.group(1) if match else hint
    return "" if language in _NOT_LANGUAGES else language


def _render_heading(node: LexborNode, depth: int) -> list[str]:
    text = " ".join(_render_inline_children(node, depth).split())
    return [f"{'#' * int((node.tag or 'h1')[1])} {text}"] if text else []


def _render_list(node: LexborNode, depth: int) -> list[str]:
    is_ordered = node.tag == "ol"
    start = (node.attributes.get("start") or "1").strip()
    number = int(start) if start.lstrip("-").isdecimal() and len(start) < 10 else 1
    items: list[str] = []
    for child in _children(node):
        tag = child.tag
        if tag == "li":
            marker = f"{number}. " if is_ordered else "- "
            number += 1
            items.append(_render_item(child, marker, depth))
        elif tag == "-text":
            if text := (child.text_content or "").strip():
                items.append(text)
        elif tag in ("ul", "ol"):
            items.append(indent_lines("\n".join(_render_list(child, depth + 1)), "  "))
        elif tag != "-comment" and tag not in _DROPPED:
            items += _render_blocks_of_one(child, depth)
    separator = "\n\n" if any("\n\n" in item for item in items) else "\n"
    return [separator.join(items)] if items else []


def _render_blocks_of_one(node: LexborNode, depth: int) -> list[str]:
    tag = node.tag or ""
    if tag == "pre":
        return [_render_code(node, "")]
    if tag in _BLOCK:
        return _BLOCK_RENDERERS.get(tag, _render_blocks)(node, depth + 1)
    return [_render_inline(node, tag, depth + 1)]


def _render_item(node: LexborNode, marker: str, depth: int) -> str:
    if depth > MAX_DEPTH:
        return marker + node.text().strip()
    blocks = _render_blocks(node, depth + 1)
    text = ""
    for block in blocks:
        is_list = block.startswith(("- ", "1. "))
        text += block if not text else ("\n" if is_list else "\n\n") + block
    return marker + indent_lines(text, " " * len(marker)).lstrip(" ") if text else marker.strip()


def _render_quote(node: LexborNode, depth: int) -> list[str]:
    text = "\n\n".join(_render_blocks(node, depth))
    return ["\n".join(f"> {line}" if line else ">" for line in text.split("\n"))] if text else []


def _render_rule(node: LexborNode, depth: int) -> list[str]:
    return ["---"]


def _render_table(node: LexborNode, depth: int) -> list[str]:
    """A pipe table; the first row stands as its head. What is no row (a caption) comes before it."""
    before: list[str] = []
    rows: list[list[str]] = []
    for child in _children(node):
        if child.tag in ("thead", "tbody", "tfoot"):
            for row in _children(child):
                if row.tag == "tr":
                    rows.append(_render_row(row, depth + 1))
        elif child.tag == "tr":
            rows.append(_render_row(child, depth + 1))
        elif child.tag in _BLOCK:
            before += _render_blocks(child, depth + 1)
    rows = [row for row in rows if any(row)]
    if not rows:
        return before
    width = max(len(row) for row in rows)
    lines = ["| " + " | ".join(row + [""] * (width - len(row))) + " |" for row in rows]
    return [*before, "\n".join([lines[0], "|" + " --- |" * width, *lines[1:]])]


def _render_row(row: LexborNode, depth: int) -> list[str]:
    cells = [cell for cell in _children(row) if cell.tag in ("td", "th")]
    return [" ".join(" ".join(_render_blocks(cell, depth + 1)).split()).replace("|", "\\|") for cell in cells]


_BLOCK_RENDERERS: dict[str, Callable[[LexborNode, int], list[str]]] = {
    **dict.fromkeys(("h1", "h2", "h3", "h4", "h5", "h6"), _render_heading),
    "ul": _render_list,
    "ol": _render_list,
    "blockquote": _render_quote,
    "hr": _render_rule,
    "table": _render_table,
}


# What the page of a chat leaves in copied text: the bar over a code block, the button that copies it, the pager of answers.
_CODE_BAR = re.compile(r"```[ \t]*+([\w+#.-]*?)[ \t]*Copy code[ \t]*\n?")
_COPY_LINE = re.compile(r"^[ \t]*(?:Copy code|Copied!)[ \t]*\n", re.MULTILINE)
_PAGER = re.compile(r"\A\s*\d{1,3} / \d{1,3}[ \t]*(?:\n|\Z)|(?:\A|\n)[ \t]*\d{1,3} / \d{1,3}\s*\Z")


def strip_interface_remains(text: str) -> str:
    """The text without "Copy code" buttons and "1 / 2" pagers. A pager counts only as a line of its own at the start or the end."""
    if "Cop" in text:
        text = _COPY_LINE.sub("", _CODE_BAR.sub(r"```\1\n", text))
    if " / " in text:
        text = _PAGER.sub("", text)
    return text
