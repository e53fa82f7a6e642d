"""The steps that a manifest can put its data through: each a model with its thresholds as defaults, documented beside themselves.

A step is an object with exactly one kind (`{quality: {...}}`), and optionally the sources that it is for. What the kinds do stands in
`llamero.data.steps`; named lists of them in `profiles.py`. "Paper" and "code" in a description say where a threshold comes from.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from llamero.spec.base import SpecModel

Text = Annotated[str, Field(max_length=256)]
Uri = Annotated[str, Field(min_length=1, max_length=2048)]
Share = Annotated[float, Field(ge=0, le=1)]
Field_ = Literal["prompt", "answer", "record"]

DEFAULT_PROFILE: Final = "instruction"
"""The profile (`profiles.PROFILES`) of a manifest that names no steps."""

PersonalDataKind = Literal["email", "phone", "card", "ip", "key"]
Kept = Literal["code", "numbers", "names"]
Operation = Literal["constraints", "deepen", "concretise", "reasoning", "complicate", "broaden"]


def _all_kinds() -> list[PersonalDataKind]:
    return ["email", "phone", "card", "ip", "key"]


def _keep_all() -> list[Kept]:
    return ["code", "numbers", "names"]


def _all_operations() -> list[Operation]:
    return ["constraints", "deepen", "concretise", "reasoning", "complicate", "broaden"]


SCORES: Final = (
    "judge", "quality", "complexity", "perplexity", "ifd", "sourceScore", "questionScore",
    "promptWords", "answerWords", "answerCharacters", "neighbourDistance", "rarity",
)  # fmt: skip
"""Names of scores: written by steps into a record's `scores`, or computed from the record when asked for (words, characters)."""


SELF_INSTRUCT_BLOCKED_WORDS: Final = (
    "image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot", "go to",
)  # fmt: skip
"""What a language model can't serve, as a word of an instruction (Self-Instruct's code)."""

ALPACA_BLOCKED_WORDS: Final = ("video", "audio", "music", "flowchart", "diagram")
"""What Alpaca's code adds to them."""


class ModelSecretRef(SpecModel):
    """A secret of the job's namespace; on a laptop the environment variable named by `key` is read."""

    name: Annotated[str, Field(max_length=253)] = Field(description="The secret's name.")
    key: Annotated[str, Field(max_length=253)] = Field(
        "token", description="The key in the secret, and the variable's name."
    )


class LanguageModel(SpecModel):
    """A language model behind an OpenAI-compatible endpoint, and how much may be asked of it."""

    url: Uri = Field(
        description="The endpoint's base, such as `https://host/v1`; `/chat/completions` or `/embeddings` is added."
    )
    model: Text = Field(description="The model's name as the endpoint knows it.")
    secret_ref: ModelSecretRef | None = Field(None, description="The API key.")
    temperature: float = Field(0.0, ge=0, le=2, description="Sampling temperature.")
    max_tokens: int = Field(1024, ge=1, le=32_768, description="Longest answer.")
    concurrency: int = Field(8, ge=1, le=256, description="Requests under way at once, over all workers together.")
    requests_per_minute: int | None = Field(
        None, ge=1, description="Requests a minute, over all workers together; by default unlimited."
    )
    tokens_per_minute: int | None = Field(
        None, ge=1, description="Tokens a minute (asked and answered), over all workers together."
    )
    timeout_seconds: float = Field(120.0, gt=0, le=3600, description="Longest wait for one answer.")
    retries: int = Field(
        6,
        ge=0,
        le=20,
        description="Times a request is sent again after 408, 409, 429, 5xx or a broken connection, with growing "
        "pauses; Retry-After is kept to.",
    )
    price_per_million_input_tokens: float = Field(0.0, ge=0, description="For the account and `maxCost`.")
    price_per_million_output_tokens: float = Field(0.0, ge=0, description="For the account and `maxCost`.")
    max_cost: float | None = Field(
        None,
        gt=0,
        description="The most a preparation may spend on this step; past it the job stops with a sentence, and what "
        "was answered is kept.",
    )
    max_total_tokens: int | None = Field(None, gt=0, description="The most tokens a preparation may use on this step.")


class Embedding(SpecModel):
    """How a record becomes a vector (of L2 norm 1)."""

    kind: Literal["hashed", "local", "endpoint"] = Field(
        "hashed",
        description="hashed: hashed TF-IDF reduced by SVD, needs no model. local: mean-pooled last layer of a "
        "transformers model in `uri`. endpoint: `model`'s /embeddings.",
    )
    dimensions: int = Field(256, ge=2, le=4096, description="Length of `hashed` vectors.")
    uri: Uri | None = Field(None, description="For `local`: a folder with the model's files.")
    model: LanguageModel | None = Field(None, description="For `endpoint`.")


# -- content and text -----------------------------------------------------------------------------------------------------------


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


# -- across records --------------------------------------------------------------------------------------------------------------


class DuplicatesStep(SpecModel):
    """Drops records that share a key with an earlier one. Equal records are dropped in any case, before the first such step."""

    by: Literal["record", "prompt", "id", "first-turns"] = Field(
        "prompt",
        description="What two records must share: everything, the prompt, the source's id, or the first two turns.",
    )
    keep: Literal["first", "longest", "best"] = Field(
        "longest",
        description="Which of them stays: the first, the one with the longest answer, or the best by `score`. A held-out "
        "record stays before any other.",
    )
    score: Text | None = Field(None, description="For `best`: a score's name.")
    conflicting: Literal["keep", "drop", "drop-instruction"] = Field(
        "keep",
        description="What becomes of records of one instruction that give the same input (not none) different answers. "
        "drop: they all go. drop-instruction: so do all others of the instruction (Self-Instruct, code).",
    )


class NearDuplicatesStep(SpecModel):
    """Finds near duplicates by MinHash, verifies each pair, and keeps the best of each cluster.

    Numbers count: records that differ in a number are not the same.
    """

    field: Field_ = Field("record", description="What is compared.")
    ngram: int = Field(1, ge=1, le=10, description="Words in a shingle.")
    permutations: int = Field(128, ge=16, le=1024, description="Length of a MinHash sketch.")
    threshold: float = Field(
        0.75,
        gt=0,
        le=1,
        description="Least verified similarity of two duplicates. Of two texts that differ in one word in ten, 97% are at "
        "least as alike as the default; prompts alone are short and want more (0.9).",
    )
    verify: Literal["jaccard", "rouge-l"] = Field(
        "jaccard",
        description="jaccard: exact, of the shingles of the field. rouge-l: F of the prompts' longest common "
        "subsequence of words.",
    )
    keep: Literal["best", "longest", "first"] = Field(
        "longest",
        description="Which of a cluster stays: the best by `score`, the one with the longest answer, or the first. Of "
        "equal ones the one with the smallest content hash. A held-out record stays before any other.",
    )
    score: Text | None = Field(None, description="For `best`: a score's name.")


class EvaluationSet(SpecModel):
    """A set that training records must not overlap."""

    uri: Uri = Field(
        description="A file of prompts and answers: JSONL, JSON, CSV, Parquet, or text with a passage a line."
    )
    columns: Annotated[list[Text], Field(max_length=16)] = Field(
        default_factory=list, description="Columns that hold text; by default all texts of a row."
    )


class DecontaminateStep(SpecModel):
    """Drops training records that overlap an evaluation set; the job's own held-out split is always one of them.

    Texts are compared as words: case, punctuation, operators and white space don't count, numbers do.
    """

    against: Annotated[list[EvaluationSet], Field(max_length=32)] = Field(
        default_factory=list, description="Evaluation sets besides the held-out split."
    )
    ngram: int = Field(
        12,
        ge=2,
        le=64,
        description="So many words in a row, in the prompt or in an answer, that also stand in an evaluation record are an "
        "overlap.",
    )
    min_words: int = Field(
        5,
        ge=1,
        le=64,
        description="A prompt of fewer words than `ngram` but at least so many is an overlap where it equals a text of a "
        "set in `against` as a whole. A shorter one never is, nor one that equals a held-out prompt alone.",
    )
    jaccard_ngram: int = Field(13, ge=2, le=64, description="Words in a shingle of the Jaccard rule (Gopher).")
    max_jaccard: Share = Field(
        0.8,
        description="Greatest Jaccard similarity of a record's shingles to an evaluation record's (Gopher). A record of "
        "fewer words is one shingle.",
    )
    boilerplate: int = Field(
        10,
        ge=1,
        description="Words in a row, or short prompts, that stand in more evaluation records than this are boilerplate (a "
        "template, a licence) and no overlap.",
    )


# -- asking language models ------------------------------------------------------------------------------------------------------


class JudgeStep(SpecModel):
    """AlpaGasus: language models score each training record; what they score too low is dropped (arXiv:2307.08701)."""

    models: Annotated[list[LanguageModel], Field(min_length=1, max_length=8)] = Field(
        description="The judges; more than one vote."
    )
    dimension: Literal["accuracy", "helpfulness", "quality", "complexity"] = Field(
        "accuracy", description="What is scored."
    )
    scale: int = Field(5, ge=2, le=100, description="Scores run from 0 to this.")
    min_score: float | None = Field(
        4.5, ge=0, description="Records below it are dropped (AlpaGasus: 4.5); null only scores."
    )
    vote: Literal["mean", "median", "min"] = Field("mean", description="How several judges' scores become one.")
    score: Text = Field("judge", description="The name that the score gets.")


class RewriteStep(SpecModel):
    """A model rewrites each answer in one given style (arXiv:2307.01003, 2306.11644); the original stays in the lineage."""

    model: LanguageModel = Field(description="Who rewrites.")
    mode: Literal["style", "textbook"] = Field(
        "style",
        description="style: the answer in the words of `style`. textbook: the passage as a lesson with exercises.",
    )
    style: Annotated[str, Field(max_length=2048)] = Field(
        "Polite, clear and complete, in whole sentences.", description="What the answers should be like."
    )
    keep: Annotated[list[Kept], Field(max_length=3)] = Field(
        default_factory=_keep_all,
        description="A rewrite that loses one of them is quarantined: the record keeps its original answer and says "
        "so.",
    )


class EvolveStep(SpecModel):
    """A model deepens or broadens each instruction and answers it (Evol-Instruct, arXiv:2304.12244)."""

    model: LanguageModel = Field(description="Who evolves and answers.")
    operations: Annotated[
        list[Operation],
        Field(min_length=1, max_length=6),
    ] = Field(
        default_factory=_all_operations,
        description="One is chosen for a record by its content hash.",
    )
    rounds: int = Field(1, ge=1, le=4, description="Times each instruction is evolved.")
    max_rouge: Share = Field(
        0.9,
        description="An evolved instruction whose ROUGE-L F with the one it came from is greater is refused: it says the same.",
    )
    refusal_words: int = Field(
        80, ge=0, description="An answer with fewer words that says `sorry` is a refusal (Evol-Instruct: 80)."
    )


class BackTranslateStep(SpecModel):
    """A model writes the instruction that a text answers, scores the pair, and the best are kept (arXiv:2308.06259)."""

    model: LanguageModel = Field(description="Who writes and scores.")
    min_score: float = Field(4.0, ge=0, le=5, description="Pairs scored lower are dropped.")


class PrinciplesStep(SpecModel):
    """A model answers each prompt anew, guided by principles (arXiv:2305.03047)."""

    model: LanguageModel = Field(description="Who answers.")
    principles: Annotated[list[Annotated[str, Field(max_length=1024)]], Field(min_length=1, max_length=32)] = Field(
        description="The principles, a sentence each."
    )


# -- choosing ---------------------------------------------------------------------------------------------------------------------


class ScoreStep(SpecModel):
    """Measures records under the base model; the scores can be chosen by later."""

    indicators: Annotated[list[Literal["perplexity", "ifd"]], Field(min_length=1, max_length=2)] = Field(
        description="perplexity: of the answer given the prompt. ifd: that loss over the loss of the answer alone "
        "(instruction-following difficulty, arXiv:2308.12032)."
    )
    max_tokens: int = Field(512, ge=16, le=8192, description="Longer records are measured on their beginning.")


class ThresholdStep(SpecModel):
    """Keeps training records whose score lies within bounds."""

    score: Text = Field(description="A score's name.")
    min: float | None = Field(None, description="Least score.")
    max: float | None = Field(None, description="Greatest score.")


class KCenterStep(SpecModel):
    """LTD: greedy k-center from cluster centres; always the record farthest from its nearest centre (arXiv:2305.09246)."""

    fraction: float | None = Field(
        0.05, gt=0, le=1, description="Share of the training records to keep (LTD: 0.005 to 0.1)."
    )
    records: int | None = Field(None, ge=1, description="Records to keep, instead of `fraction`.")
    clusters: int = Field(64, ge=1, le=4096, description="Clusters whose centres' nearest records come first.")
    clustering: Literal["k-means", "agglomerative"] = Field(
        "k-means", description="How the clusters are found; agglomerative (Ward) on a sample of 4,096."
    )
    embedding: Embedding = Field(default_factory=lambda: Embedding(), description="How records become vectors.")


class DiversityStep(SpecModel):
    """DEITA: from the best by quality times complexity downwards, keep what is not too similar to a kept one (arXiv:2312.15685)."""

    scores: Annotated[list[Text], Field(min_length=1, max_length=4)] = Field(
        default_factory=lambda: ["quality", "complexity"], description="Scores that are multiplied."
    )
    max_similarity: float = Field(0.9, gt=0, le=1, description="Greatest cosine similarity to a kept record.")
    records: int | None = Field(None, ge=1, description="Stop after so many; by default none.")
    embedding: Embedding = Field(default_factory=lambda: Embedding(), description="How records become vectors.")


class RankStep(SpecModel):
    """InstructionGPT-4: several indicators, normalised, weighted, and ranked within clusters, the best of each kept (arXiv:2308.12067)."""

    weights: Annotated[dict[Text, float], Field(min_length=1, max_length=16)] = Field(
        default_factory=lambda: {"answerWords": 1.0, "rarity": 1.0},
        description="Weights by score; each score is first scaled to 0…1 by its 5th and 95th percentile.",
    )
    fraction: float | None = Field(0.2, gt=0, le=1, description="Share of each cluster to keep.")
    records: int | None = Field(
        None, ge=1, description="Records to keep in all, by the clusters' sizes, instead of `fraction`."
    )
    clusters: int = Field(64, ge=1, le=4096, description="Clusters.")
    embedding: Embedding = Field(default_factory=lambda: Embedding(), description="How records become vectors.")


class MiningStep(SpecModel):
    """Instruction Mining: rank by a linear rule over cheap indicators, keep the lowest (arXiv:2307.06290)."""

    coefficients: Annotated[dict[Text, float], Field(min_length=1, max_length=16)] = Field(
        description="Coefficients by score; the sum estimates a loss: lower is better."
    )
    intercept: float = Field(0.0, description="Added to the sum.")
    fraction: float | None = Field(0.2, gt=0, le=1, description="Share of the training records to keep.")
    records: int | None = Field(None, ge=1, description="Records to keep, instead of `fraction`.")
    embedding: Embedding = Field(default_factory=lambda: Embedding(), description="For `neighbourDistance`.")


class SampleStep(SpecModel):
    """LIMA: sample over groups with a temperature, the best-scored of each first (arXiv:2305.11206)."""

    group_by: Literal["tags", "domain", "source"] = Field("tags", description="The groups; of several tags the rarest.")
    temperature: float = Field(
        3.0, gt=0, le=100, description="A group's chance is its share to the power 1/temperature (LIMA: 3)."
    )
    records: int = Field(1000, ge=1, description="Records to keep (LIMA: 1,000).")
    order: Text = Field("questionScore", description="The score that the best of a group is told by.")
    min_answer_score: float | None = Field(
        10.0, description="Stack Exchange answers with a lower score are dropped (LIMA: 10)."
    )


class RandomStep(SpecModel):
    """Keeps a random part of the training records, by content hash and seed."""

    fraction: float | None = Field(None, gt=0, le=1, description="Share to keep.")
    records: int | None = Field(None, ge=1, description="Records to keep, instead of `fraction`.")


NO_KINDS: Final = ("sources", "models")
"""Fields of a step that are not a kind."""


class DataStep(SpecModel):
    """One step: exactly one kind."""

    sources: Annotated[list[Text], Field(max_length=64)] = Field(
        default_factory=list, description="Names of the sources whose records it is for; by default all."
    )
    use: Text | None = Field(None, description="A named list of steps, in its place: see the profiles.")
    models: Annotated[list[LanguageModel], Field(max_length=8)] = Field(
        default_factory=list, description="For `use`: who is asked by the profile's steps that ask."
    )
    extract: ExtractStep | None = Field(None, description="Main content of whole pages.")
    content: ContentStep | None = Field(None, description="Listed words, boilerplate, richness, readability, spelling.")
    personal_data: PersonalDataStep | None = Field(None, description="Masks or drops personal data.")
    language: LanguageStep | None = Field(None, description="Keeps listed languages.")
    conversations: ConversationsStep | None = Field(None, description="Vicuna's rules.")
    length: LengthStep | None = Field(None, description="Lengths within bounds.")
    answer_style: AnswerStyleStep | None = Field(None, description="LIMA's rules for answers.")
    instructions: InstructionsStep | None = Field(None, description="Self-Instruct's rules.")
    quality: QualityStep | None = Field(None, description="Gopher's quality rules.")
    repetition: RepetitionStep | None = Field(None, description="Gopher's repetition rules.")
    duplicates: DuplicatesStep | None = Field(None, description="One record a key.")
    near_duplicates: NearDuplicatesStep | None = Field(None, description="MinHash, verified.")
    decontaminate: DecontaminateStep | None = Field(None, description="No overlap with evaluation sets.")
    judge: JudgeStep | None = Field(None, description="Models score records.")
    rewrite: RewriteStep | None = Field(None, description="A model rewrites answers.")
    evolve: EvolveStep | None = Field(None, description="A model evolves instructions.")
    back_translate: BackTranslateStep | None = Field(None, description="A model writes instructions for texts.")
    principles: PrinciplesStep | None = Field(None, description="A model answers anew by principles.")
    score: ScoreStep | None = Field(None, description="Measures under the base model.")
    threshold: ThresholdStep | None = Field(None, description="Scores within bounds.")
    k_center: KCenterStep | None = Field(None, description="LTD's choice.")
    diversity: DiversityStep | None = Field(None, description="DEITA's choice.")
    rank: RankStep | None = Field(None, description="InstructionGPT-4's choice.")
    mining: MiningStep | None = Field(None, description="Instruction Mining's choice.")
    sample: SampleStep | None = Field(None, description="LIMA's sampling.")
    random: RandomStep | None = Field(None, description="A random part.")

    @property
    def kinds(self) -> list[str]:
        """The kinds that are set, in camelCase; a valid step has one."""
        return [
            info.alias or name
            for name, info in type(self).model_fields.items()
            if name not in NO_KINDS and getattr(self, name) is not None
        ]

    @property
    def kind(self) -> str:
        """The step's kind in camelCase (`use` for a profile)."""
        return self.kinds[0]

    @property
    def options(self) -> Any:
        """The kind's own model; the profile's name for `use`."""
        name = next(n for n, i in type(self).model_fields.items() if (i.alias or n) == self.kind)
        return getattr(self, name)


class GenerateSpec(SpecModel):
    """Makes the source's records with a language model: grows a pool of instructions from the seeds that `uri` names."""

    model: LanguageModel = Field(description="Who writes.")
    variant: Literal["self-instruct", "alpaca"] = Field(
        "self-instruct",
        description="self-instruct: 8 examples a prompt, classification tasks recognised first, output-first "
        "instances for them (arXiv:2212.10560). alpaca: 3 seeds, 20 new tasks a call, instances with "
        "them.",
    )
    records: int = Field(1000, ge=1, le=1_000_000, description="Instructions to make.")
    human_examples: int | None = Field(
        None, ge=1, le=32, description="Seeds in a prompt; by default 6, for alpaca 3 (code)."
    )
    machine_examples: int | None = Field(
        None,
        ge=0,
        le=32,
        description="Machine-made instructions in a prompt, once there are some; by default 2, for alpaca 0 (code).",
    )
    tasks_per_call: int | None = Field(
        None, ge=1, le=64, description="New tasks asked for in a call; by default 8, for alpaca 20 (code)."
    )
    max_instances: int = Field(5, ge=1, le=32, description="self-instruct: most instances of an instruction (code: 5).")
    min_words: int = Field(
        4, ge=1, description="Instructions with fewer words are dropped (Self-Instruct: 3 or fewer are)."
    )
    max_words: int = Field(150, ge=1, description="Instructions with more words are dropped.")
    blocked_words: Annotated[list[Text], Field(max_length=256)] | None = Field(
        None,
        description="Instructions with one of these words are dropped; by default Self-Instruct's list, for alpaca with video, audio, "
        "music, flowchart and diagram (code).",
    )
    max_rouge: Share = Field(
        0.7, description="Instructions whose ROUGE-L F with any of the pool is greater are dropped."
    )
    max_calls: int | None = Field(
        None,
        ge=1,
        description="Stop after so many questions, however many records there are; by default 20 for each record asked "
        "for.",
    )


class ControlsSpec(SpecModel):
    """Further trainings beside the chosen data, to see what the last choosing step is worth.

    Choosing steps: judge (by its minScore), threshold, kCenter, diversity, rank, mining, sample.
    """

    random: bool = Field(
        False, description="Train an equal number of random records of what was there before the choice."
    )
    thresholds: Annotated[list[float], Field(max_length=8)] = Field(
        default_factory=list,
        description="Train what the step would keep at these thresholds (minScore, min, maxSimilarity or fraction).",
    )
