"""The short way from plain HTML to Markdown gives what the tree gives, and leaves the rest to it."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamero.data.html import _find_language, convert_by_tree, convert_html
from llamero.data.plainhtml import convert_plain_html

TEXT = st.sampled_from(
    ["word", " two words ", "a\nb", "x  \n  y", "\t", "`tick`", "``", "- dash", "1. one", "a &lt; b", "&amp;lt;", "&quot;q&quot;", "n&nbsp;b",
     "x <- 1", "*", "\n```\n", "5 < 6 > 4", "&hellip;", "&", "&#39;", "&#10;", "(", ")", "", "\n\n", "$a_1$", "|"]
)  # fmt: skip
ADDRESSES = st.sampled_from(["https://a.example/x", "u v", "a(b)", "", " ", "word", "data:x", "a&amp;b"])


def wrap(tags: list[str], inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(st.sampled_from(tags), inner).map(lambda t: f"<{t[0]}>{t[1]}</{t[0].split()[0]}>")


LINKS = st.tuples(ADDRESSES, TEXT).map(lambda t: f'<a href="{t[0]}" rel="nofollow">{t[1]}</a>')
IMAGES = st.tuples(ADDRESSES, TEXT).map(lambda t: f'<img src="{t[0]}" alt="{t[1]}">')
LEAVES = st.one_of(TEXT, LINKS, IMAGES, st.sampled_from(["<br>", "<br />", "<!-- c -->", "<u>u</u>"]))
INLINE = st.recursive(
    LEAVES,
    lambda inner: wrap(["code", "em", "i", "strong", "b", "s", "sup", "sub"], st.lists(inner, max_size=2).map("".join)),
    max_leaves=6,
)
RUNS = st.lists(INLINE, max_size=4).map("".join)
CODES = st.tuples(st.sampled_from(["<pre>", '<pre class="lang-py">', "<pre >"]), TEXT, TEXT).map(
    lambda t: f"{t[0]}<code>{t[1]}\n{t[2]}</code></pre>"
)
BLOCKS = st.recursive(
    st.one_of(
        RUNS, wrap(["p", "h2", "h6", 'p class="x"', "div"], RUNS), CODES, st.sampled_from(["<hr>", "<hr />", "\n\n"])
    ),
    lambda inner: st.one_of(
        wrap(["blockquote"], st.lists(inner, max_size=3).map("\n".join)),
        st.tuples(st.sampled_from(["ul", "ol"]), st.lists(inner, min_size=1, max_size=3)).map(
            lambda t: f"<{t[0]}>\n" + "".join(f"<li>{item}</li>\n" for item in t[1]) + f"</{t[0]}>"
        ),
    ),
    max_leaves=8,
)
PAGES = st.lists(BLOCKS, max_size=4).map("\n\n".join)


@settings(max_examples=1500, deadline=None)
@given(PAGES)
def test_what_goes_the_short_way_is_what_the_tree_gives(page: str) -> None:
    plain = convert_plain_html(page, _find_language)
    if plain is not None and ("<" in page or "&" in page):
        assert plain == convert_by_tree(page)


@pytest.mark.parametrize(
    "page",
    [
        "<p>a</p>\n\n<p>b <code>x &lt; y</code> <a href='u'>c</a></p>".replace("'", '"'),
        '<pre class="lang-py"><code>x = 1\n\ny</code></pre>\n\n<p>t</p>',
        "<ul>\n<li>a</li>\n<li><p>b</p>\n\n<p>c</p></li>\n</ul>",
        "<blockquote>\n  <p>q</p>\n  <ol><li>x</li></ol>\n</blockquote><h3>H</h3><hr>",
        '<p><a href="https://a.example/(x)">a</a> 10<sup>6</sup> <strong><em>b</em></strong><br>\nc</p>',
    ],
)
def test_posts_as_most_are_go_the_short_way(page: str) -> None:
    plain = convert_plain_html(page, _find_language)
    assert plain is not None
    assert plain == convert_by_tree(page) == convert_html(page)


@pytest.mark.parametrize(
    "page",
    [
        "<p>a &hellip; b</p>",
        "<p>x <- 1</p>",
        "<p>a<p>b",
        "<table><tr><td>a</td></tr></table>",
        "<ul><li>a<ul><li>b</li></ul></li></ul>",
        "<p>a <pre><code>x</code></pre></p>",
        "<p>a\0b</p>",
        '\n```\n<a href="https://a.example/x"> two words </a>',
        "<p>a \n<code>``</code> b</p>",
        "<p>a\1b</p>",
        '<p onclick="x">a</p>',
        "<blockquote><blockquote><p>a</p></blockquote></blockquote>",
        "<!-- language: lang-r --><pre><code>x</code></pre>",
    ],
)
def test_what_is_not_plain_is_left_to_the_tree(page: str) -> None:
    assert convert_plain_html(page, _find_language) is None
    assert convert_html(page) == convert_by_tree(page)


def test_the_posts_of_a_real_dump_come_out_the_same_and_most_go_the_short_way(real_data: Path) -> None:
    rows = ElementTree.parse(real_data / "se_ai_Posts.xml").getroot()
    bodies = [body for row in rows if (body := row.get("Body"))]
    plain = [convert_plain_html(body, _find_language) for body in bodies]
    assert [p for p in plain if p is not None] == [
        convert_by_tree(b) for b, p in zip(bodies, plain, strict=True) if p is not None
    ]
    assert sum(p is not None for p in plain) > 0.9 * len(bodies)
