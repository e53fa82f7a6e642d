"""Steps that look at the text of one record: its content, language, form and quality."""

from typing import Annotated, Final, Literal

from pydantic import Field

from llamero.spec.base import SpecModel
from llamero.spec.steps.fields import Field_, Share, Text, Uri

PersonalDataKind = Literal["email", "phone", "card", "ip", "key"]


def _all_kinds() -> list[PersonalDataKind]:
    return ["email", "phone", "card", "ip", "key"]


SELF_INSTRUCT_BLOCKED_WORDS: Final = (
    "image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot", "go to",
)  # fmt: skip
"""What a language model can't serve, as a word of an instruction (Self-Instruct's code)."""


ALPACA_BLOCKED_WORDS: Final = ("video", "audio", "music", "flowchart", "diagram")
"""What Alpaca's code adds to them."""


class ExtractStep(SpecModel):
    """Takes the main content out of whole HTML pages that stand in a record's fields, as Markdown."""

    css: Text | None = Field(
        None, description="CSS selector of the main content; by default it is found by the density of its text."
    )
    xpath: Text | None = Field(None, description="XPath of the main content, instead of `css`.")
    drop: Annotated[list[Text], Field(max_length=64)] = Field(
        default_factory=list,
        description="CSS selectors of what is removed first (navigation, adverts, headers, footers, forms and cookie "
        "notices always are).",
    )
    min_characters: int = Field(
        1, ge=1, description="Pages with less main content are dropped, as are those where `css` or `xpath` finds none."
    )


class ContentStep(SpecModel):
    """Drops what a reader would not want: listed words and patterns, boilerplate, poor, unreadable or misspelled text. Off unless set."""

    words: Annotated[list[Text], Field(max_length=256)] = Field(
        default_factory=list, description="Words or phrases, whatever their case, matched as whole words."
    )
    words_uri: Uri | None = Field(
        None, description="A file with a word or phrase a line, besides `words`; lines that begin with # are comments."
    )
    patterns: Annotated[list[Text], Field(max_length=64)] = Field(
        default_factory=list, description="Regular expressions (RE2: linear time)."
    )
    max_matches: int = Field(0, ge=0, description="Matches of words and patterns that a record may hold.")
    max_boilerplate_fraction: Share | None = Field(
        None, description="Share of a field's lines that are navigation, adverts, cookie or share notices."
    )
    min_lines: int = Field(3, ge=1, description="Fields with fewer lines are not searched for boilerplate.")
    min_lexical_richness: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="Least MTLD (measure of textual lexical diversity, threshold 0.72) of an answer.",
    )
    min_reading_ease: float | None = Field(
        None, ge=-200, le=121, description="Least Flesch reading ease of an answer (English)."
    )
    max_misspelled_fraction: Share | None = Field(
        None,
        description="Share of an answer's lower-case words that a word list that ships with the package does not know "
        "(English).",
    )
    short_text_words: int = Field(
        50,
        ge=1,
        description="Richness, readability and spelling of answers with fewer words (for spelling, lower-case ones) are not judged.",
    )


class PersonalDataStep(SpecModel):
    """Masks or drops personal data."""

    kinds: Annotated[list[PersonalDataKind], Field(min_length=1, max_length=5)] = Field(
        default_factory=_all_kinds,
        description="email addresses; phone numbers; payment cards (Luhn-checked); public IP addresses; API keys, "
        "private keys and tokens of known shapes.",
    )
    action: Literal["mask", "drop"] = Field(
        "mask", description="mask: put `[email]`, `[phone]`, … in their place. drop: reject the record."
    )


class LanguageStep(SpecModel):
    """Keeps records in the listed languages; code, maths and links are not judged."""

    keep: Annotated[list[Annotated[str, Field(pattern=r"^[a-z]{2}$")]], Field(min_length=1, max_length=64)] = Field(
        default_factory=lambda: ["en"], description="ISO 639-1 codes."
    )
    min_confidence: Share = Field(
        0.65,
        description="A text is rejected whose language is not listed and has at least this probability, and one of "
        "`sureWords` or more in which the listed ones together have less.",
    )
    min_words: int = Field(
        8,
        ge=1,
        description="Texts with fewer words are not judged (a record whose prompt and answer both have fewer is judged "
        "as a whole).",
    )
    sure_words: int = Field(
        50, ge=1, description="Texts with fewer words are kept where no language is sure, as lists of names are."
    )
    mixed: Literal["drop", "keep"] = Field(
        "drop",
        description="Records of which prompt or answer is in a listed language and the other is not, such as "
        "translations.",
    )


class ConversationsStep(SpecModel):
    """Vicuna's rules for shared conversations. That one of several with the same id or first turns stays is `duplicates`' rule."""

    min_turn_characters: int = Field(
        16,
        ge=0,
        description="A conversation with a shorter turn is dropped (Vicuna, code); one with an empty turn always is.",
    )
    drop_refusals: bool = Field(
        True,
        description="Drop conversations with an answer about quotas, errors or the chat page itself instead of the "
        "question.",
    )
    refusal_phrases: Annotated[list[Text], Field(max_length=256)] = Field(
        default_factory=list, description="Further phrases that mark such an answer."
    )


class LengthStep(SpecModel):
    """Keeps records whose field has a length within bounds."""

    field: Field_ = Field(
        "answer", description="prompt (first user turn and input), answer (last assistant turn), or record (all turns)."
    )
    unit: Literal["characters", "words"] = Field("characters", description="What is counted.")
    min: int | None = Field(None, ge=0, description="Least length.")
    max: int | None = Field(None, ge=0, description="Greatest length.")


class AnswerStyleStep(SpecModel):
    """LIMA's rules for answers: they stand by themselves."""

    min_characters: int = Field(1200, ge=0, description="Least length of an answer (LIMA).")
    max_characters: int = Field(4096, ge=1, description="Greatest length of an answer (LIMA).")
    allow_first_person: bool = Field(False, description="Keep answers written in the first person.")
    allow_references: bool = Field(
        False, description="Keep answers that refer to other answers (`as mentioned`, `the answer above`)."
    )
    strip_links: bool = Field(
        True, description="Remove links (their text stays), images and other markup but code and lists."
    )
    prompt: Literal["title", "body", "random", "both"] = Field(
        "random",
        description="Stack Exchange: what becomes the prompt: the title, the body, one of them at random (by content "
        "hash), or both.",
    )


class InstructionsStep(SpecModel):
    """Self-Instruct's rules for instructions and their instances (arXiv:2212.10560, code)."""

    min_words: int = Field(4, ge=1, description="Instructions with fewer words are dropped (3 or fewer, code).")
    max_words: int = Field(150, ge=1, description="Instructions with more words are dropped (code).")
    blocked_words: Annotated[list[Text], Field(max_length=256)] = Field(
        default_factory=lambda: list(SELF_INSTRUCT_BLOCKED_WORDS),
        description="What a language model can't serve (code); the profile `alpaca` adds video, audio, music, flowchart, diagram.",
    )
    allow_programs: bool = Field(False, description="Keep instructions that start with `Write a program`.")
    require_ascii_start: bool = Field(
        True, description="Drop instructions that start with punctuation or a non-ASCII character."
    )
    check_instances: bool = Field(
        True,
        description="Drop records whose answer is empty or equals the input, and those whose answer or input ends with a "
        "colon (code).",
    )


class QualityStep(SpecModel):
    """Gopher's quality rules (paper: arXiv:2112.11446, appendix A). Defaults: profile `instruction`."""

    scope: Literal["document", "fields"] = Field(
        "fields",
        description="document: the whole record as one text, as in the paper. fields: the answers by all rules, "
        "prompts by none of length.",
    )
    words: Literal["blanks", "signs"] = Field(
        "blanks",
        description="What a word is. blanks: what stands between blanks, as people count. signs: signs are words of their own, as "
        "datatrove's tokeniser has it (gopher-strict).",
    )
    min_words: int | None = Field(
        None, ge=0, description="Least words of a document, or of an answer (gopher-strict: 50)."
    )
    max_words: int = Field(100_000, ge=1, description="Most words (paper).")
    min_mean_word_length: float = Field(3.0, ge=0, description="Least mean length of a word in characters (paper).")
    max_mean_word_length: float = Field(10.0, ge=0, description="Greatest mean length of a word in characters (paper).")
    max_hash_ratio: float = Field(0.1, ge=0, description="Most # per word (paper).")
    max_ellipsis_ratio: float = Field(0.1, ge=0, description="Most ellipses (... or …) per word (paper).")
    max_bullet_lines: Share = Field(0.9, description="Largest share of lines that begin with a bullet (paper).")
    max_ellipsis_lines: Share = Field(0.3, description="Largest share of lines that end with an ellipsis (paper).")
    min_alphabetic_words: Share = Field(0.8, description="Least share of words with a letter (paper).")
    min_stop_words: int = Field(2, ge=0, description="Least number of the stop words (paper).")
    stop_words: Annotated[list[Text], Field(max_length=256)] = Field(
        default_factory=lambda: ["the", "be", "to", "of", "and", "that", "have", "with"], description="Paper."
    )
    short_text_words: int = Field(
        50,
        ge=0,
        description="Shares, means and stop words are not judged on texts with fewer words (gopher-strict: 0).",
    )
    exempt_code: bool = Field(
        True,
        description="Fenced and inline code and maths are not judged, and numbers, sums and operators are no words of which shares and means "
        "are taken (gopher-strict: they are).",
    )


class RepetitionStep(SpecModel):
    """Gopher's repetition rules (paper: arXiv:2112.11446, table A1). Defaults: profile `instruction`."""

    scope: Literal["document", "fields"] = Field(
        "fields", description="The whole record as one text, as in the paper, or each answer by itself."
    )
    words: Literal["blanks", "signs"] = Field(
        "blanks",
        description="What a word is. blanks: what stands between blanks, as people count. signs: signs are words of their own, as "
        "datatrove's tokeniser has it (gopher-strict).",
    )
    max_duplicate_lines: Share = Field(0.3, description="Largest share of lines that repeat another (paper).")
    max_duplicate_paragraphs: Share = Field(0.3, description="Largest share of paragraphs that repeat another (paper).")
    max_duplicate_line_characters: Share = Field(0.2, description="Their share of the characters (paper).")
    max_duplicate_paragraph_characters: Share = Field(0.2, description="Their share of the characters (paper).")
    max_top_ngram_characters: Annotated[dict[Text, float], Field(max_length=16)] = Field(
        default_factory=lambda: {"2": 0.2, "3": 0.18, "4": 0.16},
        description="Largest share of the characters in the most frequent n-gram, by n (paper).",
    )
    max_duplicate_ngram_characters: Annotated[dict[Text, float], Field(max_length=16)] = Field(
        default_factory=lambda: {"5": 0.15, "6": 0.14, "7": 0.13, "8": 0.12, "9": 0.11, "10": 0.1},
        description="Largest share of the characters in n-grams that repeat another, by n (paper).",
    )
    short_text_words: int = Field(50, ge=0, description="Texts with fewer words are not judged (gopher-strict: 0).")
    exempt_code: bool = Field(True, description="Fenced code is not judged (gopher-strict: it is).")
