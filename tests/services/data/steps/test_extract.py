"""Main content of whole pages: by CSS, by XPath, by density; what frames a page goes, what is no page stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from services.data.steps.text_records import apply_step, find_rule, make_record

from llamero.data.errors import DataError
from llamero.data.steps.extract import extract_content, is_page
from llamero.data.steps.record import Drop, Record
from llamero.spec.steps import ExtractStep

CONTENT = """<h1>How to boil an egg</h1>
<p>Put the egg into <b>boiling</b> water &amp; wait for seven minutes, no more and no less.</p>
<pre><code class="language-python">if x &lt; 3:
    boil()</code></pre>
<ul><li>One egg</li><li>Salt</li></ul>
<my-tip @click="open()">Cool it down with cold water, which makes it easy to peel.</my-tip>"""
MARKDOWN = """# How to boil an egg

Put the egg into **boiling** water & wait for seven minutes, no more and no less.

```python
if x < 3:
    boil()
```

- One egg
- Salt

Cool it down with cold water, which makes it easy to peel."""


def make_page(content: str = CONTENT, before: str = "", after: str = "") -> str:
    return f"<!DOCTYPE html>\n<html><head><title>T</title><style>p{{}}</style></head><body class='has-sidebar'>{before}{content}{after}</body></html>"


FRAMES = [
    "<nav><a href='/'>Home</a> <a href='/b'>Blog</a></nav>",
    "<header><h1>The Site</h1><p>Its slogan</p></header>",
    "<footer>© 2020 All rights reserved</footer>",
    "<aside>Other things</aside>",
    "<form action='/s'><label>Search</label><input name='q'><button>Go</button></form>",
    "<div id='cookie-banner'>We use cookies. <span>Accept</span></div>",
    "<div class='ad ad--top'>Buy this</div>",
    "<div class='social share'>Share it</div>",
    '<section class="newsletter"><p>Subscribe to us</p></section>',
    "<div role='navigation'>Menu</div>",
    "<div hidden>Secret</div>",
    "<script>var x = 'text';</script><noscript>Enable it</noscript><iframe src='x'>frame</iframe>",
    "<ul><li><a href='/1'>Related one</a></li><li><a href='/2'>Related two</a></li></ul>",
]


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize(
    "holder", ["{}", "<main>{}</main>", "<div><div class='content'>{}</div></div>", "<article>{}</article>"]
)
def test_what_frames_a_page_goes_and_its_content_stays(frame, holder):
    content = holder.format(CONTENT)
    assert extract_content(make_page(content, before=frame), ExtractStep()) == MARKDOWN
    assert extract_content(make_page(content, after=frame), ExtractStep()) == MARKDOWN


def test_a_frame_s_name_on_what_holds_the_content_does_not_remove_it():
    assert extract_content(make_page(f"<div class='sidebar'>{CONTENT}</div>"), ExtractStep()) == MARKDOWN
    assert (
        extract_content(make_page(f"<div class='no-sidebar menu'><main>{CONTENT}</main></div>"), ExtractStep())
        == MARKDOWN
    )


def test_the_header_of_an_article_keeps_its_title():
    page = make_page(
        "<article><header><h1>Title</h1></header><p>Words of it.</p></article>", before="<header>Site</header>"
    )
    assert extract_content(page, ExtractStep()) == "# Title\n\nWords of it."


def test_the_densest_element_is_found_among_others():
    others = "".join(f"<div class='box'><a href='/{i}'>A link to number {i}</a> and text</div>" for i in range(5))
    page = make_page(f"<div id='a'>{others}</div><div id='b'><div><p>{'Many words stand here. ' * 30}</p></div></div>")
    assert extract_content(page, ExtractStep()) == ("Many words stand here. " * 30).strip()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"css": "ul"}, "- One egg\n- Salt"),
        ({"css": "h1, p b"}, "# How to boil an egg\n\nboiling"),
        ({"css": "div.content"}, MARKDOWN),
        ({"css": "div.content, ul"}, MARKDOWN),
        ({"xpath": "//ul"}, "- One egg\n- Salt"),
        ({"xpath": "//h1/text()"}, "How to boil an egg"),
        ({"xpath": "string(//li[2])"}, "Salt"),
        ({"xpath": "//div[@class='content']/*[self::h1 or self::ul]"}, "# How to boil an egg\n\n- One egg\n- Salt"),
        ({"css": "div.content", "drop": ["pre", "ul, my-tip", "p"]}, "# How to boil an egg"),
        ({"drop": ["div.content > *:not(h1)"]}, "# How to boil an egg"),
        ({"css": "em"}, ""),
        ({"xpath": "//em"}, ""),
    ],
)
def test_a_selector_or_an_expression_names_the_content(options, text):
    page = make_page(f"<div class='content'>{CONTENT}</div>", before=FRAMES[0], after=FRAMES[2])
    assert extract_content(page, ExtractStep.model_validate(options)) == text


def test_forms_and_navigation_go_from_what_is_selected_too():
    page = make_page(f"<div class='content'>{FRAMES[4]}<p>Text</p>{FRAMES[0]}</div>")
    assert extract_content(page, ExtractStep(css="div.content")) == "Text"
    assert extract_content(page, ExtractStep(xpath="//div")) == "Text"


@pytest.mark.parametrize(
    "text",
    [
        "Plain text.",
        "<p>A fragment</p>",
        "x < y > z",
        "The tag <html> begins a page.",
        "```html\n<!DOCTYPE html><html></html>\n```",
        "<!doctype of mine>",
        "<htmlx>",
        "<header>x</header>",
        "",
    ],
)
def test_a_text_that_is_no_page_is_left_alone(text):
    assert not is_page(text)
    record = make_record(text or "x", text)
    assert apply_step("extract", [record])[0] is record


@pytest.mark.parametrize(
    "start",
    [
        "<!DOCTYPE html>",
        "<html lang='en'>",
        "\n <HTML>",
        "<?xml version='1.0'?>\n<!DOCTYPE html>",
        "<!-- saved -->\n<html>",
        "<body>",
        "<head><title>x</title></head>",
    ],
)
def test_a_page_is_known_by_its_beginning(start):
    assert is_page(f"{start}<p>Text</p>")


def test_pages_in_any_field_become_their_content():
    record = make_record(make_page("<p>Asked</p>"), "Plain <b>text</b>.", input=make_page("<p>Given</p>"))
    (result,) = apply_step("extract", [record])
    assert isinstance(result, Record)
    assert ([m.content for m in result.messages], result.input) == (["Asked", "Plain <b>text</b>."], "Given")


def test_a_page_with_as_many_characters_as_are_wanted_stays_and_one_with_fewer_goes():
    record = make_record(answer=make_page("<p>Four</p>"))
    assert find_rule("extract", record, minCharacters=4) is None
    (drop,) = apply_step("extract", [record], minCharacters=5)
    assert drop == Drop(
        "minCharacters", "Of the page's main content there are 4 characters, where at least 5 are wanted.", 4, 5
    )
    (drop,) = apply_step("extract", [record], css="em")
    assert isinstance(drop, Drop) and "`em` finds 0 characters" in drop.detail


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"css": "div[["}, "selector `div[[` is no CSS"),
        ({"drop": ["p", ">>"]}, "selector `>>` is no CSS"),
        ({"xpath": "//div["}, "expression `//div[` is no XPath"),
        ({"xpath": "//x:div"}, "expression `//x:div` is no XPath"),
        ({"css": "p", "xpath": "//p"}, "both css and xpath"),
    ],
)
def test_options_that_can_t_be_served_are_refused(options, sentence):
    with pytest.raises(DataError) as error:
        apply_step("extract", [], **options)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    "body",
    [
        "<div class='nav x'>" * 5_000 + "text",
        "<div><a>x</a>" * 2_000,
        "<div class='nav x'>" * 480 + "<b class='ad'>x</b>" * 3_000,
        "<" * 100_000,
        "",
        "<table><tr><td>" * 3_000 + "x",
        "\x00<p>a</p>",
    ],
)
def test_no_page_is_too_deep_or_takes_long(body):
    import time

    start = time.process_time()
    for options in (ExtractStep(), ExtractStep(xpath="//p"), ExtractStep(css="div")):
        assert isinstance(extract_content(f"<html><body>{body}", options), str)
    assert time.process_time() - start < 3


@given(st.text(max_size=200))
def test_no_text_makes_it_raise(text):
    for options in (ExtractStep(), ExtractStep(xpath="//*"), ExtractStep(css="p")):
        assert isinstance(extract_content(f"<html>{text}", options), str)


def test_a_page_nested_beyond_all_measure_becomes_its_text():
    assert extract_content("<html><body>" + "<div>" * 480 + "<p>deep</p>", ExtractStep()) == "deep"
    assert extract_content("<html><body>" + "<div>" * 600 + "<p>deep</p><p>er</p>", ExtractStep(css="em")) == "deep er"
