"""HTML of the plainest kind to Markdown without a parser: paragraphs, code, flat lists, quotes and headings, as most posts are.

It gives what `html.convert_html` would give by lexbor's tree, or None where anything else stands there: a tag or attribute that is not
of the few it knows, a nesting, an entity beyond the five of XML. A tree costs several times the text that it is made of.
"""

import re
from collections.abc import Callable, Iterable

from llamero.data.markdown import indent_lines, join_breaks, mark_link, quote_code, render_fence, trim_lines, wrap_marks

_ODD_ENTITY = re.compile(r"&(?!(?:lt|gt|amp|quot|#39);)[A-Za-z#]")
_CODE_BLOCK = re.compile(r"<pre(?: class=\"([^\"<>]*)\")?><code(?: class=\"([^\"<>]*)\")?>([^<]*)</code>\s*</pre>")
_CODE = re.compile(r"<code>([^<]*)</code>")
_LEAF = re.compile(
    r"<a href=\"([^\"<>]*)\"(?: (?:rel|title|target|class)=\"[^\"<>]*\")*>([^<]*)</a>"
    r"|<(em|i|strong|b|del|s|strike|sup|sub)>([^<]*)</\3>"
    r"|<img src=\"([^\"<>]*)\" alt=\"([^\"<>]*)\" ?/?>"
)
_BREAKS = re.compile(r"<br ?/?>")
_PART = re.compile(
    r"<p>([^<]*)</p>\s*"  # blanks between blocks say nothing
    r"|\0(\d+)\0\s*"
    r"|<(ul|ol)>((?:\s*+<li>(?:[^<]*+|\s*+(?:<p>[^<]*+</p>\s*+)++)</li>)++)\s*+</\3>\s*"
    r"|<blockquote>(.*?)</blockquote>"
    r"|<h([1-6])>([^<]*)</h\6>"
    r"|<(hr) ?/?>"
    r"|([^<\0]+)",
    re.DOTALL,
)
_ITEM = re.compile(r"<li>(?:\s*((?:<p>[^<]*</p>\s*)+)|([^<]*))</li>")
_PARAGRAPH = re.compile(r"<p>([^<]*)</p>")
_MARKS = {
    **dict.fromkeys(("em", "i"), ("*", "*")),
    **dict.fromkeys(("strong", "b"), ("**", "**")),
    **dict.fromkeys(("del", "s", "strike"), ("~~", "~~")),
    "sup": ("^", ""),
    "sub": ("_", ""),
}
_OPEN = "\1"
"""Stands for a `<` that Markdown itself writes, until all tags are gone."""
_DEPTH = 4
"""Inline elements in one another, at most."""


def convert_plain_html(html: str, find_language: Callable[[str, str], str]) -> str | None:
    """The HTML as Markdown; None where a tree is needed.

    `find_language(code's class, pre's class)` names a block's language.
    """
    if (
        "\0" in html
        or _OPEN in html
        or "\r" in html
        or "\f" in html
        or "\v" in html
        or ("&" in html and _ODD_ENTITY.search(html))
    ):
        return None
    codes: list[str] = []
    text = html
    if "<pre" in text:

        def keep(match: re.Match[str]) -> str:
            language = find_language(match.group(2) or "", match.group(1) or "")
            codes.append(render_fence(match.group(3), language))
            return f"\0{len(codes) - 1}\0"

        text = _CODE_BLOCK.sub(keep, text)
    if "<code>" in text:  # before all else: marks within code are not Markdown's
        text = _CODE.sub(_render_code, text)
    for _ in range(_DEPTH):
        text, count = _LEAF.subn(_render_leaf, text)
        if not count:
            break
    if "\n```" in text:  # typed as text, or code in many backticks: the line ends around it stay as they are
        return None
    if "<br" in text:
        text = _BREAKS.sub("\v", text)
    has_edges = "\v" in text or " \n" in text or "\n " in text or "\t" in text
    blocks = _render_parts(text, codes, _render_run if has_edges else str.strip)
    if blocks is None:
        return None
    joined = "\n\n".join(blocks).strip("\n").rstrip().replace(_OPEN, "<")
    if "&" in joined:
        joined = joined.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&#39;", "'")
        joined = joined.replace("&amp;", "&")
    return joined


def _render_code(match: re.Match[str]) -> str:
    return quote_code(match.group(1))


def _render_leaf(match: re.Match[str]) -> str:
    href, label, name, marked, source, alt = match.groups()
    if name is not None:
        return wrap_marks(marked, *_MARKS[name])
    if href is not None:
        return mark_link(label, href.strip()).replace("<", _OPEN)
    source, alt = ("" if source.strip().startswith("data:") else source.strip()), alt.strip()
    return f"![{alt}]({source})" if alt or source else ""


def _render_parts(text: str, codes: list[str], render_run: Callable[[str], str]) -> list[str] | None:
    """The blocks, where the text is nothing but parts that are known. `render_run` makes a block of text without tags."""
    blocks: list[str] = []
    end, length = 0, len(text)
    while end < length:
        match = _PART.match(text, end)
        if match is None:
            return None
        end = match.end()
        which = match.lastindex or 0
        if codes and which not in (2, 5) and "\0" in match.group():
            return None  # code within a paragraph or an item
        if which == 1 or which == 9:
            block = render_run(match[which])
            if block:
                blocks.append(block)
        elif which == 2:
            blocks.append(codes[int(match.group(2))])
        elif which == 4:
            blocks.append(_render_list(match.group(4), match.group(3) == "ol", render_run))
        elif which == 5:
            inner = match.group(5)
            quoted = None if "<blockquote" in inner else _render_parts(inner, codes, render_run)
            if quoted is None:
                return None
            if quoted:
                blocks.append(_render_quote("\n\n".join(quoted)))
        elif which == 7:
            if words := match.group(7).split():
                blocks.append(f"{'#' * int(match.group(6))} {' '.join(words)}")
        else:
            blocks.append("---")
    return blocks


def _render_run(text: str) -> str:
    if "\v" in text:
        text = join_breaks(text)
    return trim_lines(text).strip()


def _render_list(inner: str, is_ordered: bool, render_run: Callable[[str], str]) -> str:
    items: list[str] = []
    for number, (paragraphs, plain) in enumerate(_ITEM.findall(inner), 1):
        marker = f"{number}. " if is_ordered else "- "
        text = _join_blocks(map(render_run, _PARAGRAPH.findall(paragraphs))) if paragraphs else render_run(plain)
        items.append(marker + indent_lines(text, " " * len(marker)).lstrip(" ") if text else marker.strip())
    return ("\n\n" if any("\n\n" in item for item in items) else "\n").join(items)


def _join_blocks(blocks: Iterable[str]) -> str:
    """An item's blocks; what looks like a list follows without a blank line, as it does in `html`."""
    text = ""
    for block in blocks:
        if block:
            text += block if not text else ("\n" if block.startswith(("- ", "1. ")) else "\n\n") + block
    return text


def _render_quote(text: str) -> str:
    return "\n".join(f"> {line}" if line else ">" for line in text.split("\n"))
