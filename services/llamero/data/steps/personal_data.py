"""Personal data in any field of a record: masked by kind, or the record dropped.

Found by shape and checked (Luhn, public addresses, dialling formats): what merely looks like it (years, amounts, versions, ISBNs) stays.
So some is missed: names, street addresses, numbers in no common format. The kinds' names are those of `PersonalDataStep`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

from llamero.data.content import show_turns
from llamero.data.steps.record import Drop, Record, StepContext
from llamero.spec.records import Message
from llamero.spec.steps import PersonalDataStep

Span = tuple[int, int]
Finder = Callable[[str], Iterator[Span]]

_SINGULAR = {
    "email": "an e-mail address",
    "phone": "a phone number",
    "card": "a payment card's number",
    "ip": "a public IP address",
    "key": "a key or token",
}
_PLURAL = {
    "email": "e-mail addresses",
    "phone": "phone numbers",
    "card": "payment cards' numbers",
    "ip": "public IP addresses",
    "key": "keys or tokens",
}

# -- keys -------------------------------------------------------------------------------------------------------------------------

_KEYS: Final[tuple[tuple[tuple[str, ...], re.Pattern[str]], ...]] = tuple(
    (markers, re.compile(pattern))
    for markers, pattern in (
        # Private keys, also such as are cut off before their end.
        (
            ("PRIVATE KEY",),
            r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
            r"(?:(?:(?!-----BEGIN)[\s\S]){0,20000}?-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----|(?:\s*[A-Za-z0-9+/=]{16,76}(?![\w+/=]))+)",
        ),
        (("eyJ",), r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{16,}"),  # JSON web tokens
        (("AKIA", "ASIA"), r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),  # AWS
        (
            ("ecret",),
            r"(?i:\baws_?secret_?(?:access_?)?key)[\"']?\s*[=:]\s*[\"']?(?P<key>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])",
        ),
        (("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"\bgh[pousr]_[A-Za-z0-9]{36,255}\b"),  # GitHub
        (("github_pat_",), r"\bgithub_pat_[A-Za-z0-9_]{22,255}\b"),
        (("glpat-",), r"\bglpat-[\w-]{20,64}"),  # GitLab
        (("xox",), r"\bxox[abeoprs]-[A-Za-z0-9-]{10,250}"),  # Slack
        (("hooks.slack.com/services/",), r"hooks\.slack\.com/services/(?P<key>T\w{6,}/B\w{6,}/\w{16,})"),
        (("AIza",), r"\bAIza[\w-]{35}(?![\w-])"),  # Google
        (("ya29.",), r"\bya29\.[\w-]{20,}"),
        # OpenAI, and those who took its shape over
        (("sk-",), r"\bsk-(?:(?:proj|svcacct|admin|ant|or|lf)-[\w-]{20,}|[A-Za-z0-9]{32,})"),
        (("k_live_", "k_test_"), r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}"),  # Stripe
        (("hf_",), r"\bhf_[A-Za-z0-9]{30,}\b"),  # Hugging Face
        (("npm_",), r"\bnpm_[A-Za-z0-9]{36}\b"),
        (("pypi-",), r"\bpypi-[\w-]{50,}"),
        (("SG.",), r"\bSG\.[\w-]{16,}\.[\w-]{32,}"),  # SendGrid
        (("AccountKey=",), r"AccountKey=(?P<key>[A-Za-z0-9+/]{86}==)"),  # Azure
        ((":AA",), r"\b[0-9]{8,10}:AA[\w-]{33}(?![\w-])"),  # Telegram
    )
)
"""Keys by the text that must stand in them, which is cheap to look for, and their shape."""


def _find_keys(text: str) -> Iterator[Span]:
    for markers, pattern in _KEYS:
        if not any(marker in text for marker in markers):
            continue
        for match in pattern.finditer(text):
            yield match.span("key") if "key" in pattern.groupindex else match.span()


# -- e-mail -----------------------------------------------------------------------------------------------------------------------

_EMAIL = re.compile(
    r"(?<![\w.+%-])(?P<name>\w[\w.+%'-]{0,63})@(?P<domain>(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}(?P<top>[^\W\d_]{2,24}))(?![\w@-]|\.\w)"
)
# `icon@2x.png` is a file, `git@host:path` a place.
_FILE_ENDINGS = frozenset(
    ("png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "ts", "jsx", "tsx", "mjs", "py", "rb", "json", "html", "htm", "xml", "txt", "pdf")
)  # fmt: skip


def _find_emails(text: str) -> Iterator[Span]:
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        if match["top"].lower() in _FILE_ENDINGS:
            continue
        if match["name"] == "git" and text[match.end() : match.end() + 1] in (":", "/"):
            continue
        yield match.span()


# -- IP addresses -----------------------------------------------------------------------------------------------------------------

_IPV4 = re.compile(r"(?<![\w.:/+-])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w+-]|\.[0-9]|/[0-9])")
_IPV4_IN_LINK = re.compile(r"(?<=://)(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w+-]|\.[0-9])")
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,35}(?![\w:]|/[0-9])")
_VERSION_BEFORE = re.compile(
    r"(?:\b(?:version|versions|ver|v|release|build|firmware|section|chapter|clause|figure|table|step|example|rfc)\.?|§|#)[ \t:=]*\Z",
    re.IGNORECASE,
)
_RESOLVERS = frozenset(
    (
        "8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "149.112.112.112", "208.67.222.222", "208.67.220.220",
        "2001:4860:4860::8888", "2001:4860:4860::8844", "2606:4700:4700::1111", "2606:4700:4700::1001",
    )
)  # fmt: skip
"""Everybody's name servers, nobody's address."""


def _find_addresses(text: str) -> Iterator[Span]:
    if text.count(".") >= 3:
        for pattern in (_IPV4, _IPV4_IN_LINK):
            for match in pattern.finditer(text):
                if _is_public_v4(match.group()) and not _VERSION_BEFORE.search(
                    text[max(0, match.start() - 16) : match.start()]
                ):
                    yield match.span()
    if text.count(":") >= 2:
        for match in _IPV6.finditer(text):
            address = match.group().rstrip(":")
            if _is_public_v6(address):
                yield match.start(), match.start() + len(address)


def _is_public_v4(text: str) -> bool:
    try:
        address = IPv4Address(text)
    except AddressValueError:
        return False
    # 1.2.3.4 is a version or a section far more often than somebody's address.
    is_version_like = all(len(part) == 1 for part in text.split("."))
    return address.is_global and not address.is_multicast and not is_version_like and text not in _RESOLVERS


def _is_public_v6(text: str) -> bool:
    try:
        address = IPv6Address(text)
    except AddressValueError:
        return False
    return address.is_global and str(address) not in _RESOLVERS


# -- payment cards ----------------------------------------------------------------------------------------------------------------

_CARD = re.compile(
    r"(?<![\w.,$€£+-])(?:[0-9]{13,19}"
    r"|[0-9]{4}(?P<s>[ -])[0-9]{4}(?P=s)[0-9]{4}(?P=s)[0-9]{1,7}|[0-9]{4}(?P<t>[ -])[0-9]{6}(?P=t)[0-9]{4,5})(?![\w-]|[.,][0-9])"
)
_CARD_BEGINNING = re.compile(
    r"(?:4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})|5[1-5][0-9]{14}|2(?:2(?:2[1-9]|[3-9][0-9])|[3-6][0-9][0-9]|7(?:[01][0-9]|20))[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[689][0-9])[0-9]{11}"
    r"|(?:6011|64[4-9][0-9]|65[0-9][0-9])[0-9]{12}|(?:62[0-9][0-9]|35(?:2[89]|[3-8][0-9]))[0-9]{12}|(?:50|5[6-9]|6[37])[0-9]{11,17})"
)
_LUHN_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def _find_cards(text: str) -> Iterator[Span]:
    for match in _CARD.finditer(text):
        digits = match.group().replace(" ", "").replace("-", "")
        if _CARD_BEGINNING.fullmatch(digits) and is_luhn(digits):
            yield match.span()


def is_luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1)."""
    values = [int(d) for d in reversed(digits)]
    return (sum(values[::2]) + sum(_LUHN_DOUBLED[v] for v in values[1::2])) % 10 == 0


# -- phone numbers ----------------------------------------------------------------------------------------------------------------

_PHONE = re.compile(
    r"(?<![\w.,/+$€£#=*-])(?:"
    # +49 30 1234567, +1 (415) 555-2671, +442079460958
    r"(?P<plus>\+[1-9][0-9]{0,14}(?:[ .\-/]?\(0?[0-9]{1,4}\))?(?:(?:[ .\-/]|(?<=\)))[0-9]{2,14}){0,6})"
    # (415) 555-2671
    r"|(?P<area>(?:1[ .-])?\([1-9][0-9]{2}\)[ ]?[0-9]{3}[ .-][0-9]{4})"
    # 415-555-2671, 1.415.555.2671
    r"|(?P<american>(?:1-)?[1-9][0-9]{2}-[0-9]{3}-[0-9]{4}|(?:1\.)?[2-9][0-9]{2}\.[2-9][0-9]{2}\.[0-9]{4})"
    # 01 23 45 67 89
    r"|(?P<pairs>0[1-9](?P<gap>[ .-])[0-9]{2}(?:(?P=gap)[0-9]{2}){3})"
    # 020 7946 0958, 0171/1234567, (030) 123456
    r"|(?P<zero>0[1-9][0-9]{1,3}(?:[ ]?/[ ]?|[ ])[0-9]{3,4}(?:[ ]?[0-9]{3,4})|\(0[1-9][0-9]{1,4}\)[ ]?[0-9]{3,4}[ -]?[0-9]{2,4})"
    r")(?![\w/-]|[.,:][0-9]|[ ]?[%€$£]|[ ][0-9])"
)
# Ten or more digits in a row are a phone number where the text says so.
_TOLD = re.compile(
    r"(?i:\b(?:phone|telephone|tel|mobile|cell|cellphone|whatsapp|fax|call|text|dial|sms)\b)[^0-9\n+]{0,20}?"
    r"(?P<number>(?:\+|00)?[0-9]{10,13}|[2-9][0-9]{2}[ ][2-9][0-9]{2}[ ][0-9]{4})(?![\w-]|[.,][0-9])"
)
_DIGITS = re.compile(r"\D")
_NO_PHONE_BEFORE = re.compile(
    r"(?:\b(?:isbn|issn|doi|id|order|invoice|ticket|part|serial|model)\b[\w .:#-]{0,10}|[0-9)=+×*^][ \t]*)\Z",
    re.IGNORECASE,
)


def _find_phones(text: str) -> Iterator[Span]:
    for match in _PHONE.finditer(text):
        count = len(_DIGITS.sub("", match.group()))
        if match["plus"] and not 8 <= count <= 15:
            continue
        if not _NO_PHONE_BEFORE.search(text[max(0, match.start() - 24) : match.start()]):
            yield match.span()
    for match in _TOLD.finditer(text):
        yield match.span("number")


_ENOUGH_DIGITS = re.compile(r"[0-9](?:[ ().\-/]{0,2}[0-9]){6}")

_FINDERS: Final[dict[str, Finder]] = {
    "key": _find_keys,
    "email": _find_emails,
    "ip": _find_addresses,
    "card": _find_cards,
    "phone": _find_phones,
}
"""In this order: what an earlier one masks no later one sees."""

_OF_DIGITS = frozenset({"card", "phone"})
_MARKERS = ("@", *(marker for markers, _ in _KEYS for marker in markers))
_DIGIT = re.compile(r"[0-9]")


def may_hold(text: str) -> bool:
    """A cheap look: False where no kind of personal data can be in the text."""
    return _DIGIT.search(text) is not None or any(marker in text for marker in _MARKERS)


def mask_text(text: str, kinds: frozenset[str] | None = None) -> tuple[str, Counter[str]]:
    """The text with `[kind]` in the place of personal data, and how many of each kind. Masking again finds nothing more."""
    counts: Counter[str] = Counter()
    if not may_hold(text):
        return text, counts
    has_found = True
    while has_found:  # again, since a mask can lay bare what its neighbours hid
        has_found = False
        has_numbers = _ENOUGH_DIGITS.search(text) is not None
        for kind, find in _FINDERS.items():
            if (kinds is not None and kind not in kinds) or (kind in _OF_DIGITS and not has_numbers):
                continue
            if spans := sorted(find(text)):
                text, found = _mask_spans(text, spans, f"[{kind}]")
                counts[kind] += found
                has_found = True
    return text, counts


def _mask_spans(text: str, spans: Sequence[Span], mask: str) -> tuple[str, int]:
    parts: list[str] = []
    end = found = 0
    for start, stop in spans:
        if start < end:
            continue
        parts += [text[end:start], mask]
        end = stop
        found += 1
    return "".join([*parts, text[end:]]), found


class _PersonalData:
    def __init__(self, options: PersonalDataStep) -> None:
        self._kinds = frozenset(options.kinds)
        self._is_masking = options.action == "mask"

    def apply(self, records: Sequence[Record]) -> list[Record | Drop]:
        return [self._handle(record) for record in records]

    def _handle(self, record: Record) -> Record | Drop:
        if not any(may_hold(m.content) for m in record.messages) and not may_hold(record.input):
            return record
        counts: Counter[str] = Counter()

        def mask(text: str) -> str:
            masked, found = mask_text(text, self._kinds)
            counts.update(found)
            return masked

        messages = tuple(Message(m.role, mask(m.content)) for m in record.messages)
        given = mask(record.input) if record.input else ""
        if not counts:
            return record
        if not self._is_masking:
            named = " and ".join(
                f"{n} {_PLURAL[kind]}" if n > 1 else _SINGULAR[kind] for kind, n in sorted(counts.items())
            )
            # What the record is dropped for stands in no file of its rejections either.
            shown = show_turns(messages, given)
            return Drop("kinds", f"The record holds {named}.", counts.total(), 0, shown)
        return replace(record, messages=messages, input=given).with_meta(personalData=dict(sorted(counts.items())))


def build(options: PersonalDataStep, context: StepContext) -> _PersonalData:
    """The step."""
    return _PersonalData(options)
