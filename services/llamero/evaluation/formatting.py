"""How the report writes numbers, durations and foreign text. Pure; what is shown where is the template's business."""

import math
import unicodedata
from urllib.parse import urlsplit, urlunsplit

MINUS = "\N{MINUS SIGN}"
UNIT_SPACE = "\N{NO-BREAK SPACE}"
DASH = "\N{EN DASH}"
MISSING = DASH
MAX_SHOWN_CHARACTERS = 6000

_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean_text(text: str) -> str:
    """The text with what would break or forge a page made visible.

    Lone surrogates and non-characters (not encodable, or not allowed in XML) become U+FFFD, control characters their
    pictures (U+2400 and on), and marks that reorder what follows (Trojan Source, CVE-2021-42574) their code points.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_clean_character, text))


def _clean_character(character: str) -> str:
    code = ord(character)
    if character in "\n\t":
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\N{SYMBOL FOR DELETE}"
    if character in _BIDI_CONTROLS:
        return f"⟨U+{code:04X}⟩"
    if unicodedata.category(character) in ("Cc", "Cs") or code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF:
        return "\N{REPLACEMENT CHARACTER}"
    return character


def shorten_text(text: str, limit: int = MAX_SHOWN_CHARACTERS) -> str:
    """At most `limit` characters, then how many more there are."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]} … ({format_count(len(text) - limit)} more characters)"


def split_fences(text: str) -> list[tuple[bool, str]]:
    """The text as (is code, part) at Markdown's fences of three backticks; one that is left open runs to the end."""
    parts: list[tuple[bool, str]] = []
    lines: list[str] = []
    is_code = False
    for line in text.split("\n"):
        if not line.lstrip().startswith("```"):
            lines.append(line)
            continue
        parts.append((is_code, "\n".join(lines)))
        lines, is_code = [], not is_code
    parts.append((is_code, "\n".join(lines)))
    return [(code, part if code else part.strip("\n")) for code, part in parts if part.strip()]


def strip_credentials(uri: str) -> str:
    """The URI without user, password and query: a signed URL's query is a key to the data."""
    if "://" not in uri:
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri.partition("?")[0]
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="…" if parts.query else ""))


def format_count(value: float) -> str:
    """`1,234,567`."""
    return f"{round(value):,}".replace("-", MINUS)


def format_compact(value: float) -> str:
    """Three figures and a unit: `12.3 M`."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            # 10,000 is where thousands are abbreviated; the unit itself stays a thousand.
            return f"{format_figure(value / (1e3 if unit == 'k' else limit), 3)}{UNIT_SPACE}{unit}"
    return format_count(value)


def format_figure(value: float | None, digits: int = 4) -> str:
    """A measured figure to so many significant digits: `1.413`, `124.2`, `3.1 × 10⁻⁵`; a dash where there is none."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4 or exponent >= 9:
        mantissa = f"{value / 10**exponent:.{digits - 1}f}".rstrip("0").rstrip(".")
        return f"{mantissa} × 10{_superscript(exponent)}".replace("-", MINUS)
    return f"{value:,.{max(0, digits - 1 - exponent)}f}".replace("-", MINUS)


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def format_plain(value: float) -> str:
    """A setting or an axis tick as one would write it: `0.002`, `64`, `2 × 10⁻⁴`."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return format_figure(value, 3)
    return f"{value:,.6g}".replace("-", MINUS)


def format_share(share: float | None) -> str:
    """A share of a whole: `12.4%`; what is neither nothing nor all never reads as 0% or 100%."""
    if share is None or math.isnan(share):
        return MISSING
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    return f"{share:.0%}" if share in (0, 1) else f"{share * 100:.1f}%"


def format_change(before: float | None, after: float | None) -> str:
    """The relative change with its sign: `−98.9%`."""
    if before is None or after is None or not before or not math.isfinite(before) or not math.isfinite(after):
        return MISSING
    change = after / before - 1
    if abs(change) >= 10:
        return f"× {format_figure(after / before, 3)}"
    text = f"{change * 100:+.1f}%".replace("-", MINUS)
    return "±0.0%" if text in ("+0.0%", f"{MINUS}0.0%") else text


def format_duration(seconds: float) -> str:
    """`0.8 s`, `42 s`, `3 min 07 s`, `2 h 05 min`, `3 d 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f}{UNIT_SPACE}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{UNIT_SPACE}s"
    if whole < 3600:
        return f"{whole // 60}{UNIT_SPACE}min {whole % 60:02d}{UNIT_SPACE}s"
    if whole < 86_400:
        return f"{whole // 3600}{UNIT_SPACE}h {whole % 3600 // 60:02d}{UNIT_SPACE}min"
    return f"{whole // 86_400}{UNIT_SPACE}d {whole % 86_400 // 3600}{UNIT_SPACE}h"


def format_bytes(size: float) -> str:
    """`731 B`, `12.4 MiB`."""
    if size < 1024:
        return f"{round(size)}{UNIT_SPACE}B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1000:
            return f"{format_figure(size, 3)}{UNIT_SPACE}{unit}"
    return f"{format_figure(size / 1024, 3)}{UNIT_SPACE}TiB"
