"""The page in Debian's Chromium: before a real engine, and before a stand-in that writes Markdown and mischief."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

pytestmark = pytest.mark.browser


def wait_for(check: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"never true: {check}")


class Page:
    """What a person does on the page."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get(url)
        wait_for(lambda: len(Select(self.by_id("model-first")).options) > 1)

    def by_id(self, name: str) -> Any:
        return self.driver.find_element(By.ID, name)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)  # type: ignore[no-any-return]

    def send(self, text: str) -> None:
        self.by_id("prompt").send_keys(text + Keys.ENTER)

    def wait_answers(self, count: int) -> list[Any]:
        wait_for(lambda: len(self.all(".answer")) == count and not self.all(".answer.running"))
        return self.all(".answer")

    def problems(self) -> list[Any]:
        return [entry for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def test_a_visitor_chats_switches_model_and_compares(browser: Any, real_chat: Any) -> None:
    page = Page(browser, real_chat.url)
    assert Select(page.by_id("model-first")).first_selected_option.text == "tutor", "an adapter comes first"
    assert page.by_id("welcome-model").text == "A tutor"
    page.send("Hello")
    (first,) = page.wait_answers(1)
    assert first.find_element(By.CLASS_NAME, "name").text == "tutor"
    assert len(first.find_element(By.CLASS_NAME, "text").text) > 0
    assert "token" in first.find_element(By.CLASS_NAME, "note").text
    Select(page.by_id("model-first")).select_by_visible_text("base")
    page.send("Hello again")
    second = page.wait_answers(2)[1]
    assert second.find_element(By.CLASS_NAME, "name").text == "base"
    page.by_id("new-chat").click()
    assert page.all(".answer") == [] and page.by_id("welcome").is_displayed()
    page.by_id("compare").click()
    Select(page.by_id("model-first")).select_by_visible_text("helper")
    Select(page.by_id("model-second")).select_by_visible_text("base")
    page.send("Side by side")
    pair = page.wait_answers(2)
    assert [a.find_element(By.CLASS_NAME, "name").text for a in pair] == ["helper", "base"]
    assert pair[0].rect["x"] < pair[1].rect["x"] and pair[0].rect["y"] == pair[1].rect["y"]
    assert pair[0].text != pair[1].text
    assert page.problems() == []


def test_an_answer_streams_and_stop_stops_it(browser: Any, stand_in: Any, chat_before: Any) -> None:
    page = Page(browser, chat_before.url)
    stand_in.say(*[f"word{n} " for n in range(200)])
    stand_in.pause = 0.05
    page.send("Count")
    text = lambda: (page.all(".answer .text") or [page.by_id("log")])[0].text  # noqa: E731
    wait_for(lambda: "word3" in text())
    assert page.all(".answer.running") and not page.by_id("send").is_displayed()
    early = text()
    wait_for(lambda: len(text()) > len(early))
    page.by_id("stop").click()
    (answer,) = page.wait_answers(1)
    assert "word199" not in answer.text and "stopped" in answer.text
    wait_for(lambda: stand_in.running == 0, seconds=2)
    assert page.by_id("send").is_displayed()
    stand_in.say("Fine.")
    stand_in.pause = 0
    page.send("Go on")
    page.wait_answers(2)
    seen = stand_in.bodies[-1]["messages"]
    assert [m["role"] for m in seen] == ["user", "assistant", "user"]
    assert seen[1]["content"].startswith("word0") and seen[2]["content"] == "Go on"
    assert page.problems() == []


MARKDOWN = """Some **bold** and `inline <b>` text.

```python
if a < b:
    print("x & y")
```

| a | b |
|---|--:|
| 1 | 2 |

[good](https://example.org/a?b=1)
"""

MISCHIEF = """<script>window.hurt = 1</script><img src=x onerror="window.hurt = 2"><svg onload="window.hurt = 3"></svg>

<iframe src="javascript:parent.hurt = 4"></iframe><style>body { display: none }</style>

[click](javascript:window.hurt=5) [data](data:text/html,<script>window.hurt=6</script>) <javascript:window.hurt=6>

![pixel](http://127.0.0.1:9/pixel.png) and inline <a href="x" onclick="window.hurt = 7">go</a>

<form action="/x"><button>b</button></form>

<div style="position:fixed;inset:0;background:red">cover</div>

[quote](https://example.org/"onmouseover="window.hurt=8 "title" onclick=window.hurt=8)

```<img src=x onerror=window.hurt=9>
</code></pre><script>window.hurt = 10</script>
```
"""


def test_markdown_is_drawn_and_code_can_be_copied(browser: Any, stand_in: Any, chat_before: Any) -> None:
    page = Page(browser, chat_before.url)
    stand_in.say(*[MARKDOWN[i : i + 5] for i in range(0, len(MARKDOWN), 5)])
    page.send("Write")
    page.wait_answers(1)
    assert [e.text for e in page.all(".text strong")] == ["bold"]
    assert page.all(".text p code")[0].text == "inline <b>"
    assert page.all(".code code")[0].get_attribute("textContent") == 'if a < b:\n    print("x & y")'
    assert page.all(".code figcaption span")[0].text == "python"
    assert [e.text for e in page.all(".text td")] == ["1", "2"]
    link = page.all(".text a")[0]
    assert link.get_attribute("href") == "https://example.org/a?b=1"
    assert "noopener" in link.get_attribute("rel") and link.get_attribute("target") == "_blank"
    browser.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    page.all(".copy")[0].click()
    wait_for(lambda: page.all(".copy")[0].text == "Copied")
    copied = browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert copied == 'if a < b:\n    print("x & y")'
    assert page.problems() == []


def test_mischief_in_an_answer_or_a_prompt_does_nothing(browser: Any, stand_in: Any, chat_before: Any) -> None:
    page = Page(browser, chat_before.url)
    stand_in.say(*[MISCHIEF[i : i + 9] for i in range(0, len(MISCHIEF), 9)])
    page.send("<img src=x onerror='window.hurt=10'>")
    (answer,) = page.wait_answers(1)
    time.sleep(0.5)
    assert browser.execute_script("return window.hurt") is None
    bad = "script, img, svg, iframe, style, form, input, [onclick], [onerror], [style]"
    assert page.all(", ".join(f".answer {part}" for part in bad.split(", "))) == []
    hrefs = [a.get_attribute("href") for a in page.all(".text a")]
    assert not any(h and h.startswith(("javascript:", "data:")) for h in hrefs)
    assert "image: pixel" in answer.text
    assert page.by_id("prompt").is_displayed()
    assert page.problems() == [], "nothing was even tried: the policy had nothing to block"


def test_errors_are_shown_with_a_way_on(browser: Any, stand_in: Any, chat_before: Any) -> None:
    page = Page(browser, chat_before.url)
    stand_in.status, stand_in.script = 429, [b'{"error":"Model is overloaded","error_type":"overloaded"}']
    page.send("Hi")
    (answer,) = page.wait_answers(1)
    assert answer.find_element(By.CLASS_NAME, "error").text == "Model is overloaded"
    stand_in.say("Now it works.")
    answer.find_element(By.CLASS_NAME, "again").click()
    wait_for(lambda: "Now it works." in page.all(".answer")[0].text)
    assert page.all(".error") == []
    stand_in.say("Half an ")
    stand_in.script, stand_in.cut = stand_in.script[:1], True
    page.send("More")
    answer = page.wait_answers(2)[1]
    assert "Half an" in answer.text and "broke off" in answer.text
    chat_before.process.terminate()
    chat_before.process.wait(5)
    page.send("Anyone?")
    answer = page.wait_answers(3)[2]
    assert "can't be reached" in answer.text


def test_the_keyboard_is_enough_and_every_control_has_a_name(browser: Any, stand_in: Any, chat_before: Any) -> None:
    page = Page(browser, chat_before.url)
    assert browser.switch_to.active_element.get_attribute("id") == "prompt"
    page.by_id("prompt").send_keys("one", Keys.SHIFT, Keys.ENTER, Keys.NULL, "two")
    assert page.by_id("prompt").get_attribute("value") == "one\ntwo"
    assert page.all(".answer") == []
    stand_in.say("ok")
    page.by_id("prompt").send_keys(Keys.ENTER)
    page.wait_answers(1)
    assert stand_in.bodies[-1]["messages"][-1]["content"] == "one\ntwo"
    unnamed = browser.execute_script(
        "return [...document.querySelectorAll('button, select, textarea, a')].filter((e) => !("
        "e.getAttribute('aria-label') || e.textContent.trim() || e.title || (e.labels && e.labels.length))).length"
    )
    assert unnamed == 0
    assert page.by_id("log").get_attribute("aria-live") == "polite"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits_its_window_in_light_and_dark(
    browser: Any, stand_in: Any, chat_before: Any, width: int, scheme: str
) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    page = Page(browser, chat_before.url)
    page.by_id("compare").click()
    stand_in.say(MARKDOWN + "```\n" + "long line " * 60 + "\n```")
    page.send("Wide " + "w" * 300)
    page.wait_answers(2)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    for control in ("prompt", "send", "compare", "new-chat", "model-first", "model-second"):
        box = page.by_id(control).rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= width, control
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    channels = [int(part) for part in ground[4:-1].split(",")]
    assert (sum(channels) > 600) == (scheme == "light")
