"""The report's page in Debian's Chromium: nothing complains, the charts are seen, nothing spills over, in light, dark and on a phone."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llamero.evaluation.report import render_html
from llamero.spec.results import Answer, Report, Sample

pytestmark = pytest.mark.browser

BROWSER, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not (BROWSER.exists() and DRIVER.exists()):
        pytest.skip("Chromium is not here: scripts/setup.sh browser installs it")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


def show(browser: Any, page: str, folder: Path, width: int = 1200, scheme: str = "light") -> None:
    file = folder / "report.html"
    file.write_text(page, encoding="utf-8")
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(file.as_uri())


def complaints(browser: Any) -> list[dict[str, Any]]:
    return [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 700, 390])
def test_the_page_opens_without_complaint_and_shows_its_charts(
    browser: Any, make_report: Callable[..., Report], tmp_path: Path, width: int, scheme: str
) -> None:
    show(browser, render_html(make_report()), tmp_path, width, scheme)
    assert complaints(browser) == []
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('svg.chart')].map(s => s.getBoundingClientRect()).filter(b => b.width > 0)"
        ".map(b => [b.left, b.right, b.height])"
    )
    assert len(boxes) == 6, "one loss curve of three widths, two small curves and three histograms"
    assert all(left >= 0 and right <= width and height > 80 for left, right, height in boxes)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width, "no sideways scrolling"


CONTRAST = """
const luminance = c => { const [r, g, b] = c.map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4 });
  return .2126 * r + .7152 * g + .0722 * b };
const numbers = c => c.match(/[\\d.]+/g).map(Number);
const ground = e => { for (; e; e = e.parentElement) { const c = numbers(getComputedStyle(e).backgroundColor);
  if (c.length < 4 || c[3] > 0) return c.slice(0, 3) } return [255, 255, 255] };
const found = [];
document.querySelectorAll('details').forEach(d => d.open = true);
for (const e of document.querySelectorAll('main *:not(svg *)')) {
  if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
  const [a, b] = [luminance(numbers(getComputedStyle(e).color).slice(0, 3)), luminance(ground(e))].sort((x, y) => y - x);
  const ratio = (a + .05) / (b + .05);
  if (ratio < 4.5) found.push([e.className, e.textContent.trim().slice(0, 30), ratio.toFixed(2)]);
}
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_by_4_5_to_1(
    browser: Any, make_report: Callable[..., Report], tmp_path: Path, scheme: str
) -> None:
    show(browser, render_html(make_report()), tmp_path, scheme=scheme)
    assert browser.execute_script(CONTRAST) == []


def test_hostile_answers_run_nothing(
    browser: Any, make_report: Callable[..., Report], parts: dict[str, Callable[..., Any]], tmp_path: Path
) -> None:
    attack = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script><svg onload=alert(1)>\u202e\x00"
    answer = Answer(text=attack + "x" * 500, finished=True, tokens=9)
    sample = Sample(prompt_set=attack, prompt=attack, base=answer, tuned=answer, reference=attack)
    report = make_report(evaluation=parts["evaluation"](samples=[sample], notes=[attack]))
    show(browser, render_html(report), tmp_path, width=390)
    assert browser.title == "stats-tutor run 3: gate passed · llamero"
    assert complaints(browser) == []
    assert "<script>" in browser.find_element("css selector", ".answer .text").text
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
