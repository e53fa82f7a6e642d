"""Languages: texts on both sides of each threshold, what is not looked at, mixed records; and the model's own answers."""

import json

import numpy as np
import pytest
from services.data.steps.text_records import apply_step, find_rule, make_record, make_talk

from llamero.data.errors import DataError
from llamero.data.steps.language import load_model
from llamero.data.steps.record import Drop

ENGLISH = "The quick brown fox jumps over the lazy dog while everybody is looking at it."
FRENCH = "Le renard brun saute par-dessus le chien paresseux pendant que tout le monde le regarde."
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund, während alle ihm dabei zusehen."
CHINESE = "我们昨天下午一起去公园散步，看到了很多美丽的花。"
CODE = "```python\nfür_alle = [größe for größe in übersicht if größe > länge]\nrückgabe(für_alle)\n```"


@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "en"), (FRENCH, "fr"), (GERMAN, "de"), (CHINESE, "zh")])
def test_only_listed_languages_stay(text, language):
    record = make_record("?", text)
    assert find_rule("language", record, keep=[language]) is None
    assert find_rule("language", record, keep=["en", "ru"]) == (None if language == "en" else "keep")


def test_the_drop_tells_language_and_probability():
    (drop,) = apply_step("language", [make_record("?", FRENCH)])
    assert isinstance(drop, Drop)
    assert drop.detail.startswith("The answer is in the language `fr`")
    assert drop.value is not None and drop.value >= drop.threshold == 0.65


def test_texts_of_fewer_words_are_not_judged():
    words = ["le", "renard", "brun", "saute", "sur", "le", "chien", "paresseux"]
    assert len(words) == 8
    assert find_rule("language", make_record("?", " ".join(words))) == "keep"
    assert find_rule("language", make_record("?", " ".join(words[:7]))) is None


def test_a_short_prompt_and_a_short_answer_are_judged_as_one():
    record = make_record("Comment allez-vous aujourd'hui", "Je vais très bien, merci beaucoup")
    assert find_rule("language", record) == "keep"
    assert find_rule("language", record, minWords=12) is None


def test_the_probability_must_reach_the_threshold_on_either_side():
    model = load_model()
    mixed = f"{ENGLISH} {FRENCH}"
    rates = dict(zip(model.labels, model.rate([mixed])[0].tolist(), strict=True))
    best = max(rates, key=rates.get)
    other = "en" if best == "fr" else "fr"
    bound = round(rates[best], 4)
    record = make_record("?", mixed)
    assert find_rule("language", record, keep=[other], minConfidence=bound) == "keep"
    assert find_rule("language", record, keep=[other], minConfidence=bound + 0.0001) is None
    options = {"keep": [best], "sureWords": 8}
    assert find_rule("language", record, minConfidence=bound, **options) is None
    assert find_rule("language", record, minConfidence=bound + 0.0001, **options) == "minConfidence"
    assert find_rule("language", record, minConfidence=bound + 0.0001, keep=[best], sureWords=80) is None


def test_listed_languages_are_sure_together():
    model = load_model()
    text = "Jeg har ikke set den film, men jeg vil gerne se den i aften sammen med dig."
    rates = dict(zip(model.labels, model.rate([text])[0].tolist(), strict=True))
    assert rates["da"] < 0.95
    options = {"minConfidence": 0.95, "sureWords": 8}
    assert find_rule("language", make_record("?", text), keep=["da"], **options) == "minConfidence"
    assert find_rule("language", make_record("?", text), keep=["da", "no"], **options) is None


@pytest.mark.parametrize(
    "hidden",
    [
        CODE,
        "`für_alle = größe über länge und rückgabe`",
        "$$\\text{für alle Größen über der Länge gilt die Rückgabe}$$",
        "[](https://beispiel.de/der-schnelle-braune-fuchs-springt-ueber-den-faulen-hund)",
        "für_alle = größe(über, länge);\nwenn (größe > länge) { rückgabe(größe); }",
    ],
)
def test_code_maths_and_links_are_not_judged(hidden):
    assert find_rule("language", make_record(ENGLISH, f"{ENGLISH}\n\n{hidden}\n\n{ENGLISH}")) is None
    assert find_rule("language", make_record(ENGLISH, hidden)) is None


def test_numbers_and_signs_are_in_no_language():
    assert find_rule("language", make_record("?", "1 2 3 4 5 6 7 8 9 10 11 12")) is None
    assert find_rule("language", make_record("?", "x y z x y z x y z x y z " * 8)) is None


def test_a_record_of_two_languages_is_dropped_unless_mixed_ones_are_kept():
    translation = make_record(f"Translate into French what stands here: {ENGLISH}", FRENCH)
    assert find_rule("language", translation) == "keep"
    assert find_rule("language", translation, mixed="keep") is None
    assert find_rule("language", translation, keep=["en", "fr"]) is None
    assert find_rule("language", make_record(GERMAN, FRENCH), mixed="keep") == "keep"


def test_all_turns_of_a_side_are_judged_together():
    assert (
        find_rule("language", make_talk("Oui, pourquoi pas ?", ENGLISH, "Et le chien, que fait-il ?", ENGLISH))
        == "keep"
    )


def test_a_language_that_the_model_does_not_know_is_refused():
    with pytest.raises(DataError, match="can't tell `xx`; it knows af, am"):
        apply_step("language", [], keep=["en", "xx"])


TEXTS = [
    ENGLISH,
    FRENCH,
    GERMAN,
    CHINESE,
    "",
    "x",
    "SHOUTED IN CAPITALS",
    "u\u0308ber",
    "日本語のテキストです",
    "12 + 30",
    "é" * 3000,
]


def test_the_batched_walk_gives_the_package_s_own_probabilities():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    own = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    model = load_model()
    rates = model.rate(TEXTS)
    for text, row in zip(TEXTS, rates, strict=True):
        rated = {label: float(rate) for label, rate in zip(model.labels, row, strict=True)}
        for label, expected in own.rank(text)[:5]:
            index = model.labels.index(label)
            assert float(row[index]) == pytest.approx(expected, abs=1e-4), (text, label, rated[label])


def test_what_a_text_gets_does_not_depend_on_its_batch():
    model = load_model()
    together = model.rate([*TEXTS, ENGLISH * 20] * 3)
    for place, text in enumerate(TEXTS):
        assert np.array_equal(model.rate([text])[0], together[place])


def test_of_alpaca_few_records_are_in_another_language(real_data):
    rows = json.loads((real_data / "alpaca_data.json").read_text())[:6000]
    records = [make_record(r["instruction"], r["output"], input=r["input"]) for r in rows]
    dropped = [r for r in apply_step("language", records) if isinstance(r, Drop)]
    assert 0 < len(dropped) < 0.005 * len(records)
