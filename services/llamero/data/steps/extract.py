"""The main content of whole HTML pages that stand in a record's fields, as Markdown: by CSS, by XPath, or by where the text is dense.

What frames a page (navigation, adverts, headers, footers, forms, cookie notices) goes first. A text that is no page is left alone.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from selectolax.lexbor import LexborHTMLParser, LexborNode, SelectolaxError

from llamero.data.errors import DataError
from llamero.data.html import convert_tree
from llamero.data.normalise import normalise_text
from llamero.data.steps.record import Drop, Record, StepContext
from llamero.spec.records import Message
from llamero.spec.steps import ExtractStep

_PAGE = re.compile(
    r"\s*(?:<\?xml[^<>]{0,200}\?>\s*|<!--(?:(?!-->).){0,2000}-->\s*){0,8}<(?:!doctype\s+html|html|head|body)\b",
    re.IGNORECASE | re.DOTALL,
)

_FRAME: Final = ", ".join(
    (
        "script", "style", "noscript", "template", "iframe", "object", "embed", "svg", "canvas", "audio", "video",
        "nav", "footer", "aside", "form", "button", "input", "select", "textarea", "dialog", "menu",
        "[role=navigation]", "[role=banner]", "[role=contentinfo]", "[role=search]", "[role=complementary]", "[role=dialog]",
        "[role=alertdialog]", "[role=menu]", "[role=menubar]", "[role=toolbar]", "[aria-hidden=true]", "[hidden]",
    )
)  # fmt: skip
_HEADER = "header"
_NAMED_FRAME = re.compile(
    r"(?:^|[\s_-])(?:ads?|adverts?|advertisements?|adsense|banners?|breadcrumbs?|carousel|comments?|consent|cookies?|cookiebar|disqus|footer|gdpr"
    r"|masthead|menu|menubar|modal|nav|navbar|navigation|newsletter|outbrain|overlay|pager|pagination|popup|promo|promoted|recommended|related"
    r"|share|sharing|sidebar|signup|skip|social|sponsor|sponsored|subscribe|subscription|taboola|toolbar|topbar|widget)(?:$|[\s_-])",
    re.IGNORECASE,
)
_HOLDS_CONTENT = "main, article, [role=main], [itemprop=articleBody]"
_MARKED_CONTENT = ("main", "[role=main]", "[itemprop=articleBody]", "article")
_NEVER_FRAME = frozenset({"html", "body", "main", "article"})

_ENOUGH = 0.6
"""An element that holds this share of a page's unlinked text holds its content."""

_MAX_LINK_SHARE = 0.6
"""A block of the content with a larger share of its text in links is a list of links."""

_FRAMED_SHARE = 0.5
"""An element with a frame's name that holds a larger share of the page's text is none."""

MAX_DEPTH = 500
"""A page whose elements are nested deeper is hostile or broken: it becomes its mere text. Browsers stop there too."""

_BLOCKS = "div, section, ul, ol, table, dl"
_CONTAINERS = frozenset({"div", "section", "main", "article", "table", "tbody", "tr", "td", "center", "span"})


@dataclass(slots=True)
class _Amount:
    """Characters of an element's text, blanks not counted; how many of them stand in links; and how many links."""

    characters: int = 0
    linked: int = 0
    links: int = 0

    @property
    def unlinked(self) -> int:
        return self.characters - self.linked


def is_page(text: str) -> bool:
    """Whether the text is a whole HTML page."""
    return "<" in text[:4096] and _PAGE.match(text) is not None


def extract_content(html: str, options: ExtractStep) -> str:
    """The page's main content as Markdown; nothing where there is none. Raises DataError for selectors that are none."""
    if options.xpath is not None:
        html = "".join(_find_by_xpath(html, options.xpath))
        if not html.strip():
            return ""
    page = LexborHTMLParser(html)
    if page.body is None:
        return ""
    if _is_deep(page.body):
        return normalise_text(page.body.text(separator=" "))
    for selector in options.drop:
        _remove(_select(page.body, selector))
    if options.css is not None:
        chosen = _outermost(_select(page.body, options.css))
    elif options.xpath is not None:
        chosen = list(page.body.iter())
    else:
        _remove_frame(page.body)
        amounts = _measure(page.body)
        chosen = _find_dense(page.body, amounts)
        _remove_link_lists(chosen, amounts)
    if options.css is not None or options.xpath is not None:
        for node in chosen:
            _remove([n for n in node.css(_FRAME) if n.mem_id != node.mem_id])
    parts = [normalise_text(_convert(node)) for node in chosen]
    return "\n\n".join(part for part in parts if part)


def _convert(node: LexborNode) -> str:
    # A list or a table is rendered by its parent: its own children alone would lose their marks.
    if node.tag in ("ul", "ol", "table", "pre", "blockquote", "dl") or (node.tag or "").startswith("h"):
        holder = LexborHTMLParser(f"<body>{node.html}").body
        return convert_tree(holder) if holder is not None else ""
    return convert_tree(node)


def _select(node: LexborNode, selector: str) -> list[LexborNode]:
    return [found for found in node.css(selector) if found.tag not in ("html", "head")]


def _outermost(nodes: list[LexborNode]) -> list[LexborNode]:
    """Those that lie in none of the others."""
    chosen = {node.mem_id for node in nodes}
    return [node for node in nodes if not any(parent.mem_id in chosen for parent in _walk_up(node))]


def _walk_up(node: LexborNode) -> Iterator[LexborNode]:
    parent = node.parent
    while parent is not None:
        yield parent
        parent = parent.parent


def _is_deep(body: LexborNode) -> bool:
    """Whether elements are nested beyond MAX_DEPTH."""
    level = [body]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in node.iter()]
        if not level:
            return False
    return True


def _find_by_xpath(html: str, xpath: str) -> list[str]:
    """The HTML of what the expression finds, each in an element of its own; texts and attributes too."""
    from html import escape

    from lxml import etree
    from lxml import html as lxml_html

    parser = lxml_html.HTMLParser(encoding="utf-8", no_network=True)
    try:
        tree = lxml_html.document_fromstring(html.encode("utf-8", "replace"), parser=parser)
    except etree.ParserError:  # nothing but blanks and comments
        return []
    found = tree.xpath(xpath)
    if not isinstance(found, list):
        found = [found]
    shown = [
        lxml_html.tostring(item, encoding="unicode", with_tail=False)
        if isinstance(item, etree._Element)
        else escape(str(item))
        for item in found
    ]
    return [f"<div>{item}</div>" for item in shown]


def _remove(nodes: list[LexborNode]) -> None:
    """Take the elements out of their page; what lies in one that is gone goes with it."""
    for node in _outermost(nodes):
        if node.tag != "body":
            node.decompose()


def _remove_frame(body: LexborNode) -> None:
    _remove(body.css(_FRAME))
    # A header of an article holds its title; one of the page, its navigation.
    _remove([n for n in body.css(_HEADER) if not any(p.tag in ("main", "article") for p in _walk_up(n))])
    amounts = _measure(body)
    most = _FRAMED_SHARE * amounts[body.mem_id].characters
    named = [n for n in body.css("[class], [id]") if n.tag not in _NEVER_FRAME and _has_frame_name(n)]
    holders = {p.mem_id for n in body.css(_HOLDS_CONTENT) for p in (n, *_walk_up(n))}
    _remove([n for n in named if amounts[n.mem_id].characters <= most and n.mem_id not in holders])


def _has_frame_name(node: LexborNode) -> bool:
    attributes = node.attributes
    return any(_NAMED_FRAME.search(attributes.get(key) or "") for key in ("class", "id"))


def _measure(root: LexborNode) -> dict[int, _Amount]:
    """The amounts of the root and of each element in it, by `mem_id`; in one pass, whatever the depth."""
    nodes, parents, in_links = [root], [-1], [False]
    amounts = [_Amount()]
    place = 0
    while place < len(nodes):
        child = nodes[place].first_child
        while child is not None:
            if child.tag == "-text":
                count = sum(map(len, (child.text_content or "").split()))
                amounts[place].characters += count
                amounts[place].linked += count if in_links[place] else 0
            elif child.tag != "-comment":
                is_link = child.tag == "a"
                nodes.append(child)
                parents.append(place)
                in_links.append(in_links[place] or is_link)
                amounts.append(_Amount(links=int(is_link)))
            child = child.next
        place += 1
    for place in range(len(nodes) - 1, 0, -1):  # each after all that it holds
        into, amount = amounts[parents[place]], amounts[place]
        into.characters += amount.characters
        into.linked += amount.linked
        into.links += amount.links
    return {node.mem_id: amount for node, amount in zip(nodes, amounts, strict=True)}


def _find_dense(body: LexborNode, amounts: dict[int, _Amount]) -> list[LexborNode]:
    """What is marked as the content, or the deepest element that holds most of the unlinked text."""
    enough = _ENOUGH * amounts[body.mem_id].unlinked
    for selector in _MARKED_CONTENT:
        marked = _outermost(body.css(selector))
        if marked and sum(amounts[n.mem_id].unlinked for n in marked) >= enough:
            return marked
    node: LexborNode | None = body
    while node is not None:
        found, node = (
            node,
            next((c for c in node.iter() if c.tag in _CONTAINERS and amounts[c.mem_id].unlinked >= enough), None),
        )
    return [found]


def _remove_link_lists(chosen: list[LexborNode], amounts: dict[int, _Amount]) -> None:
    """Blocks of the content that are links for the most part: related articles, tags, authors."""
    for node in chosen:
        blocks = [(b, amounts[b.mem_id]) for b in node.css(_BLOCKS) if b.mem_id != node.mem_id]
        _remove([b for b, amount in blocks if amount.links > 1 and amount.linked > _MAX_LINK_SHARE * amount.characters])


class _Extract:
    def __init__(self, options: ExtractStep) -> None:
        self._options = options

    def apply(self, records: Sequence[Record]) -> list[Record | Drop]:
        return [self._handle(record) for record in records]

    def _handle(self, record: Record) -> Record | Drop:
        if not any(is_page(m.content) for m in record.messages) and not is_page(record.input):
            return record
        texts = [self._extract(m.content) for m in (*record.messages, Message("user", record.input))]
        for text in texts:
            if isinstance(text, Drop):
                return text
        kept = [text for text in texts if isinstance(text, str)]
        messages = tuple(Message(m.role, text) for m, text in zip(record.messages, kept[:-1], strict=True))
        return replace(record, messages=messages, input=kept[-1])

    def _extract(self, text: str) -> str | Drop:
        if not is_page(text):
            return text
        content = extract_content(text, self._options)
        least = self._options.min_characters
        if len(content) >= least:
            return content
        by = next((f"`{s}` finds" for s in (self._options.css, self._options.xpath) if s), "there are")
        detail = f"Of the page's main content {by} {len(content)} characters, where at least {least} are wanted."
        return Drop("minCharacters", detail, len(content), least)


def build(options: ExtractStep, context: StepContext) -> _Extract:
    """The step. Raises DataError for a selector or an expression that is none."""
    if options.css is not None and options.xpath is not None:
        raise DataError("The extract step has both css and xpath: give one of them.")
    page = LexborHTMLParser("<body><p>x</p>")
    for selector in (*options.drop, *([options.css] if options.css is not None else [])):
        try:
            page.css(selector)
        except SelectolaxError:
            raise DataError(f"The extract step's selector `{selector}` is no CSS: mend it.") from None
    if options.xpath is not None:
        from lxml import etree

        try:
            etree.XPath(options.xpath)(etree.fromstring("<p>x</p>"))
        except etree.XPathError as error:
            raise DataError(
                f"The extract step's expression `{options.xpath}` is no XPath ({error}): mend it."
            ) from None
    return _Extract(options)
