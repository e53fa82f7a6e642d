"""The content step: each rule on both sides of its threshold, what is exempt, and options that can't be served."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from services.data.steps.text_records import apply_step, find_rule, make_record

from llamero.data.errors import DataError
from llamero.data.steps.boilerplate import find_boilerplate_fraction, is_boilerplate
from llamero.data.steps.prose import WORD
from llamero.data.steps.readability import (
    count_sentences,
    count_syllables,
    find_misspelled,
    find_mtld,
    find_reading_ease,
)
from llamero.data.steps.record import Drop


def test_nothing_is_judged_unless_it_is_set():
    records = [make_record(answer="damn damn\nShare\nHome | About | Contact\n" + "xqzt " * 60)]
    assert apply_step("content", records) == records


# -- words and patterns -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "is_dropped"),
    [
        ("What the DARN thing", True),
        ("darned", False),
        ("un-darn", True),
        ("a very  bad\nidea indeed", True),
        ("a very badly idea", False),
        ("written in C++, I think", True),
        ("written in C", False),
    ],
)
def test_listed_words_and_phrases_count_whole_and_in_any_case(text, is_dropped):
    options = {"words": ["darn", "bad idea", "c++"]}
    assert (find_rule("content", make_record(answer=text), **options) == "maxMatches") == is_dropped
    assert (find_rule("content", make_record(prompt=text), **options) == "maxMatches") == is_dropped
    assert (find_rule("content", make_record(input=text), **options) == "maxMatches") == is_dropped


def test_as_many_matches_as_are_allowed_stay_and_one_more_drops():
    options = {"words": ["darn"], "patterns": [r"\bd[au]rn\b"], "maxMatches": 4}
    assert find_rule("content", make_record(answer="darn darn"), **options) is None
    (drop,) = apply_step("content", [make_record(answer="darn darn durn")], **options)
    assert drop == Drop("maxMatches", "The record holds “darn” and 4 more; 4 matches are allowed.", 5, 4)


def test_a_word_file_is_added_to_the_list(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\ufeff# mild ones\nheck\n\n  dang it \n#shoot\n", encoding="utf-8")
    options = {"words": ["darn"], "wordsUri": "s3://lists/words.txt", "files": {"s3://lists/words.txt": path}}
    for text, is_dropped in (
        ("Heck.", True),
        ("dang\tit", True),
        ("darn", True),
        ("shoot", False),
        ("mild ones", False),
    ):
        assert (find_rule("content", make_record(answer=text), **options) == "maxMatches") == is_dropped


def test_a_word_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes(b"heck\n\xff\xfe")
    with pytest.raises(DataError, match=r"`words.txt` is not UTF-8 \(byte 5\): save it as UTF-8"):
        apply_step("content", [], wordsUri="words.txt", files={"words.txt": path})


def test_patterns_see_each_text_and_take_linear_time():
    assert find_rule("content", make_record(answer="As an AI, I can't"), patterns=["(?i)as an ai"]) == "maxMatches"
    assert find_rule("content", make_record(answer="As a person"), patterns=["(?i)as an ai"]) is None
    assert find_rule("content", make_record(answer="a" * 50_000 + "b"), patterns=["(a*)*c"]) is None


@pytest.mark.parametrize("pattern", ["(a", "(?=a)", r"(a)\1", "[z-a]"])
def test_a_pattern_that_is_none_is_named(pattern):
    with pytest.raises(DataError) as error:
        apply_step("content", [], patterns=["fine", pattern])
    assert f"`{pattern}`" in str(error.value)
    assert "RE2" in str(error.value)


# -- boilerplate ------------------------------------------------------------------------------------------------------------------

FRAME = [
    "Accept all cookies",
    "We use cookies to improve your experience.",
    "Skip to main content",
    "Home | About us | Contact",
    "Home › Blog › A post",
    "© 2021 Some Company. All rights reserved.",
    "Share on Facebook",
    "SHARE THIS ARTICLE",
    "Subscribe to our newsletter",
    "Read more »",
    "Advertisement",
    "Sign in",
    "Privacy Policy",
    "You may also like",
    "3.4k shares",
    "- Log in",
    "Loading...",
    "Please enable JavaScript to view this page.",
    "5 min read",
]
PROSE = [
    "We share what we have.",
    "The home of the brave.",
    "1/2",
    "a | b | c",
    "| Task | Start | End |",
    "Cookies are baked at 180 °C.",
    "Search the list for the greatest number.",
    "Sign in the contract what was agreed.",
    "Read more books this year than last year, she said.",
    "Report: sales rose by 5%.",
    "x > 3 > 2",
    "",
]


@pytest.mark.parametrize("line", FRAME)
def test_lines_of_a_page_s_frame_are_known(line):
    assert is_boilerplate(line)


@pytest.mark.parametrize("line", PROSE)
def test_lines_of_a_text_are_not_taken_for_them(line):
    assert not is_boilerplate(line)


def test_the_share_of_boilerplate_lines_may_reach_its_bound_and_not_pass_it():
    text = "\n\n".join(["Some prose here.", "More prose.", "Share", "Log in"])
    assert find_boilerplate_fraction(text) == 0.5
    for field in ("prompt", "answer", "input"):
        assert find_rule("content", make_record(**{field: text}), maxBoilerplateFraction=0.5) is None
        assert (
            find_rule("content", make_record(**{field: text}), maxBoilerplateFraction=0.49) == "maxBoilerplateFraction"
        )


def test_short_fields_and_code_are_not_searched_for_boilerplate():
    two, three = make_record(answer="Share\nLog in"), make_record(answer="Share\nLog in\nHome")
    assert find_rule("content", two, maxBoilerplateFraction=0) is None
    assert find_rule("content", three, maxBoilerplateFraction=0) == "maxBoilerplateFraction"
    assert find_rule("content", two, maxBoilerplateFraction=0, minLines=2) == "maxBoilerplateFraction"
    assert find_rule("content", make_record(answer="```\nShare\nLog in\nHome\n```"), maxBoilerplateFraction=0) is None


# -- richness, readability, spelling -------------------------------------------------------------------------------------------


def test_mtld_by_hand():
    # a b a: types/tokens fall to 2/3 at the third word; so three words a factor, forwards and backwards.
    assert find_mtld(list("abaaba")) == pytest.approx(3)
    # All different: never a factor.
    assert find_mtld([str(i) for i in range(60)]) == 1000
    # The ratio ends at 4/5, both ways: the way from 1 to 0.72 is part of a factor.
    assert find_mtld(list("abcdb")) == pytest.approx(5 / ((1 - 4 / 5) / (1 - 0.72)))
    assert find_mtld([]) == 0


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=200))
def test_mtld_is_the_same_both_ways_round_and_grows_when_words_differ(words):
    assert find_mtld(words) == pytest.approx(find_mtld(words[::-1]))
    assert find_mtld(words) <= find_mtld([f"{w}{i}" for i, w in enumerate(words)])


def test_poor_answers_are_dropped_below_the_threshold_and_kept_at_it():
    answer = "the cat and the dog saw the bird and the fish near the tree " * 5
    richness = round(find_mtld([w.lower() for w in WORD.findall(answer)]), 4)
    assert 5 < richness < 40
    assert find_rule("content", make_record(answer=answer), minLexicalRichness=richness) is None
    assert find_rule("content", make_record(answer=answer), minLexicalRichness=richness + 0.001) == "minLexicalRichness"


@pytest.mark.parametrize(
    ("word", "count"),
    [
        ("the", 1),
        ("make", 1),
        ("makes", 1),
        ("table", 2),
        ("asked", 1),
        ("wanted", 2),
        ("boxes", 2),
        ("reading", 2),
        ("syllable", 3),
        ("free", 1),
        ("banana", 3),
        ("university", 5),
        ("a", 1),
        ("rhythm", 1),
        ("people", 2),
        ("whole", 1),
        ("dog's", 1),
    ],
)
def test_syllables_of_english_words(word, count):
    assert count_syllables(word) == count


def test_sentences_end_with_their_signs_with_paragraphs_and_with_items_of_lists():
    assert count_sentences("One. Two! Three? Four") == 4
    assert count_sentences("Dr. Smith came, e.g. at 3.5 km/h.") == 1
    assert count_sentences("These:\n- one\n- two\n\nDone") == 4


def test_reading_ease_by_hand():
    words = ["the", "cat", "sat", "on", "the", "mat"]
    assert find_reading_ease("The cat sat on the mat.", words) == pytest.approx(206.835 - 1.015 * 6 - 84.6)
    assert find_reading_ease("x", ["xananananananan"] * 300) == -200


def test_hard_answers_are_dropped_below_the_threshold_and_kept_at_it():
    answer = "Institutional responsibilities necessitate comprehensive documentation. " * 12
    ease = round(find_reading_ease(answer, [w.lower() for w in WORD.findall(answer)]), 4)
    assert ease < 0
    assert find_rule("content", make_record(answer=answer), minReadingEase=ease) is None
    assert find_rule("content", make_record(answer=answer), minReadingEase=ease + 0.001) == "minReadingEase"


GOOD = "this sentence holds ten words that everybody should know well"


def test_the_share_of_misspelled_words_may_reach_its_bound_and_not_pass_it():
    answer = f"{GOOD} " * 5 + "mispeled wrods wich noone knwos".replace("noone", "nobdy") + " and these are fine"
    record = make_record(answer=answer)
    assert find_misspelled(answer.split()) == ["mispeled", "wrods", "wich", "nobdy", "knwos"]
    share = round(5 / len(answer.split()), 4)
    assert find_rule("content", record, maxMisspelledFraction=share) is None
    assert find_rule("content", record, maxMisspelledFraction=share - 0.0001) == "maxMisspelledFraction"


def test_names_contractions_code_and_links_are_no_misspelled_words():
    words = (
        "Xqzt McXqzt xqzt_abc xQzt xqzt.py don't it's they'd the dogs' www.xqzt.org `xqzt` \n```\nxqzt = qwrt\n```\n$xqzt$ "
        "colour organised analyse centre travelling catalogue defence color email"
    )
    assert find_rule("content", make_record(answer=f"{GOOD} " * 6 + words), maxMisspelledFraction=0) is None


@pytest.mark.parametrize(
    "option", [{"minLexicalRichness": 1000}, {"minReadingEase": 121}, {"maxMisspelledFraction": 0}]
)
def test_answers_of_fewer_than_fifty_words_are_not_judged(option):
    words = ("xqzt and the institutional responsibilities " * 10).split()
    assert len(words) == 50
    assert find_rule("content", make_record(answer=" ".join(words)), **option) is not None
    assert find_rule("content", make_record(answer=" ".join(words[1:])), **option) is None
    assert find_rule("content", make_record(answer=" ".join(words[1:])), shortTextWords=49, **option) is not None
