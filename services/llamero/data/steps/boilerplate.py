"""Lines that a page's frame leaves in a text: navigation, adverts, cookie and share notices, legal small print. English, with a few others."""

import re
from typing import Final

_NOTICES: Final = (
    # cookies and consent
    r"(?:we|this (?:web)?site|our (?:web)?site|our partners)(?: and our partners)? (?:also )?uses? cookies\b.*",
    r"by (?:continuing|using|browsing|clicking)\b.{0,80}\b(?:cookies?|agree|accept|consent)\b.*",
    r"(?:accept|reject|allow|decline|manage|customi[sz]e)(?: all)?(?: (?:necessary|optional))? (?:cookies?|preferences|choices)",
    r"(?:your )?(?:cookie|privacy|consent) (?:settings|preferences|choices|notice|policy|statement)",
    r"accept all|reject all|i agree|got it!?|ok,? i understand",
    r"(?:diese|unsere) (?:web)?(?:seite|site) verwendet cookies\b.*|nous utilisons des cookies\b.*|utilizamos cookies\b.*",
    # legal small print
    r"(?:copyright\s*)?(?:©|\(c\)|&copy;)\s*(?:copyright\s*)?(?:\d{4}|[^\d\n]{0,40}\d{4}).{0,80}",
    r"copyright \d{4}.{0,80}|all rights reserved\.?|.{0,60}\ball rights reserved\.?",
    r"(?:terms|conditions)(?: (?:of (?:use|service|sale)|and conditions|& conditions))?|privacy(?: policy)?"
    r"|legal notice|disclaimer|imprint|impressum",
    r"powered by [\w .-]{1,40}|(?:theme|design(?:ed)?|website) by [\w .-]{1,40}",
    # navigation
    r"(?:home|menu|main menu|navigation|toggle navigation|sitemap|site map|search|search\.\.\.|search for:?"
    r"|skip to (?:main )?content|back to top|top)",
    r"(?:go back|back|next|previous|older posts|newer posts|next page|previous page|page \d+ of \d+"
    r"|« prev(?:ious)?|next »|load more|show more|view all|see all)",
    r"(?:about|about us|contact|contact us|help|faq|support|careers|jobs|press|blog|news|shop|store"
    r"|cart|checkout|wishlist|my account|account)",
    r"(?:log ?in|log ?out|sign ?in|sign ?up|sign ?out|register|create (?:an )?account|forgot (?:your )?password\??|my profile)",
    r"you are here:?.{0,80}",
    # sharing and following
    r"(?:share|tweet|pin|like|follow|print|e-?mail|save|bookmark|comment|reply|report|flag|embed|copy link"
    r"|link copied)(?: (?:this|it|us|article|page|post)){0,2}[.!]?",
    r"(?:share|follow|find|like|join) (?:this (?:article|page|post|story) )?(?:us )?(?:on|via|with"
    r"|in) (?:facebook|twitter|x|linkedin|pinterest|instagram|youtube|reddit|whatsapp|e-?mail|social media"
    r"|friends)\b.{0,40}",
    r"(?:facebook|twitter|linkedin|pinterest|instagram|youtube|reddit|whatsapp|telegram|rss|tiktok|snapchat|tumblr)",
    r"\d+(?:[.,]\d+)?k? (?:shares?|likes?|comments?|views?|followers?|retweets?|responses?|replies)"
    r"|(?:no|leave a|add a|post a|view) comments?",
    # adverts and calls
    r"advertisements?|adverts?|sponsored(?: (?:content|post|links?))?|promoted|ads? by [\w .-]{1,40}"
    r"|paid (?:content|partnership)|affiliate disclosure.{0,120}",
    r"(?:subscribe|sign up|join)\b.{0,60}\b(?:newsletter|mailing list|updates|channel|e-?mails?)\b.{0,60}"
    r"|subscribe(?: now)?!?|(?:enter )?your e-?mail(?: address)?",
    r"(?:click|tap) (?:here|to)\b.{0,60}|(?:read|learn|find out|see|show|discover|view|continue) (?:more|reading)(?: ?[»›>→…]|\.\.\.)?",
    r"(?:download|get|install|try)(?: (?:the|our))? app\b.{0,40}|buy now!?|shop now!?|order now!?"
    r"|add to (?:cart|basket|wishlist)|free shipping.{0,40}",
    r"(?:related|recommended|similar|popular|recent|latest|trending|more)(?: (?:articles?|posts?|stories"
    r"|topics|products|news|reading|from .{1,40}))s?:?",
    r"you (?:may|might) also (?:like|be interested in|enjoy):?|tags?:|filed under:?.{0,80}|posted (?:in|by|on)\b.{0,80}",
    # what a page says of itself
    r"(?:please )?(?:enable|turn on) javascript\b.{0,100}|.{0,40}\bjavascript is (?:disabled|required|not enabled)\b.{0,100}",
    r"loading(?:\.\.\.|…)?|please wait(?:\.\.\.|…)?|(?:image|photo|picture) (?:credit|source|courtesy)\b.{0,80}"
    r"|(?:reading time:? )?\d+ min(?:ute)?s? read",
    r"copy code|regenerate response",
)
"""Each is a whole line, whatever its case, with a list's or a heading's marks before it."""

_LINE = re.compile(rf"(?:[-*+#>•·]+\s+)?(?:{'|'.join(_NOTICES)})", re.IGNORECASE)
_SEPARATOR = re.compile(r"\s*[|›»>•·→]\s*")
_MAX_CHARACTERS = 240


def is_boilerplate(line: str) -> bool:
    """Whether the line, taken by itself, belongs to a page's frame."""
    line = line.strip()
    if not line or len(line) > _MAX_CHARACTERS:
        return False
    return _LINE.fullmatch(line) is not None or _is_menu(line)


def _is_menu(line: str) -> bool:
    """Three names or more with bars or arrows between them, most of which stand in menus: a row of a table has others."""
    items = [item for item in _SEPARATOR.split(line) if item]
    if len(items) < 3:
        return False
    return 2 * sum(1 for item in items if _LINE.fullmatch(item)) > len(items)


def find_boilerplate_fraction(text: str, min_lines: int = 1) -> float:
    """The share of the text's lines (blank ones not counted) that are boilerplate; 0 where it has fewer than `min_lines`."""
    lines = [line for line in text.split("\n") if line.strip()]
    return sum(map(is_boilerplate, lines)) / len(lines) if len(lines) >= max(min_lines, 1) else 0.0
