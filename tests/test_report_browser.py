"""The page in headless Chromium: it draws, asks for nothing, fits a phone, knows dark, and runs
no markup that comes from a file.

SPARSEWRIGHT_SCREENSHOTS names a folder to keep full-page screenshots in.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from report_runs import edit, make_run

from sparsewright.report import write_report

pytestmark = pytest.mark.browser

SIZES = {"phone": {"width": 390, "height": 844}, "desktop": {"width": 1280, "height": 900}}
HOSTILE = "<script>window.injected=1</script><img src=x onerror='window.injected=1'>"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no `chromium` on PATH (Debian: apt-get install chromium)")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        make_run(folder / "dense", sparsity=None),
        make_run(folder / "set-90"),
        make_run(folder / "hostile", sparsity=0.8, seed=1, storage="packed"),
    ]
    edit(runs[-1] / "config.json", name=HOSTILE)
    return write_report(runs, folder / "report.html")


@pytest.fixture
def visit(browser, page_file):
    """visit(size, scheme) -> the open page, with the requests and console lines it made."""
    contexts = []

    def visit(size: str = "desktop", scheme: str = "light"):
        context = browser.new_context(
            viewport=SIZES[size], color_scheme=scheme, reduced_motion="reduce"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)  # a busy machine is not a failure
        page.asked, page.said = [], []
        page.on("console", lambda m: page.said.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda e: page.said.append(f"uncaught: {e}"))

        def only_the_page(route):
            page.asked.append(route.request.url)
            own = route.request.url == page_file.as_uri()
            route.continue_() if own else route.abort()

        page.route("**/*", only_the_page)
        page.goto(page_file.as_uri())
        wait_until(
            page,
            "[...document.querySelectorAll('[data-figure]')]"
            ".every(one => one.querySelector('.main-svg'))",
        )
        keep = os.environ.get("SPARSEWRIGHT_SCREENSHOTS")
        if keep:
            page.screenshot(path=Path(keep) / f"report-{size}-{scheme}.png", full_page=True)
        return page

    yield visit
    for context in contexts:
        context.close()


def wait_until(page, condition: str, tries: int = 200) -> None:
    """Poll from here: playwright's own wait evaluates text, which the page's policy forbids."""
    for _ in range(tries):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never came true: {condition}; console: {page.said}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_page_draws_whole_asks_for_nothing_and_fits(visit, page_file, size, scheme):
    page = visit(size, scheme)
    assert page.asked == [page_file.as_uri()]
    assert page.said == []
    boxes = page.eval_on_selector_all(
        "[data-figure]",
        """all => all.map((one) => {
          const box = one.querySelector(".main-svg").getBoundingClientRect();
          return [box.width, box.height, one.querySelectorAll(".trace, .hm image").length];
        })""",
    )
    # 2 curves, layers, 3 masks, 2 heat maps, 3 runs x 2 of costs, 1 by time, 3 x 2 batches, disk
    assert len(boxes) >= 20
    assert all(width > 200 and height > 100 and marks > 0 for width, height, marks in boxes), boxes
    wanted = page.evaluate(
        "JSON.parse(document.getElementById('figures').textContent)"
        ".map(figure => figure.layout.xaxis.title.text)"
    )
    drawn = page.eval_on_selector_all(
        "[data-figure]", "all => all.map(one => one.querySelector('.xtitle').textContent)"
    )
    assert drawn == wanted
    assert len(set(wanted)) >= 5
    assert page.evaluate("window.injected") is None
    assert page.get_by_text(HOSTILE).count() > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    outside = page.eval_on_selector_all(
        "main > *, section > *, figure",
        "all => all.filter(one => one.getBoundingClientRect().right > innerWidth).length",
    )
    assert outside == 0
    assert page.locator("h1").count() == 1
    headings = page.locator("h2").all_inner_texts()
    assert [h.split()[0] for h in headings] == [
        "What",
        "Accuracy",
        "Layer",
        "How",
        "What",
        "Speed",
        "Bytes",
        "How",
    ]


def test_dark_and_light_differ_and_charts_follow_a_change(visit):
    page = visit("phone", "light")
    ground = "getComputedStyle(document.body).backgroundColor"
    first_line = "document.querySelector('.chart .js-line').style.stroke"
    light = page.evaluate(ground), page.evaluate(first_line)
    page.emulate_media(color_scheme="dark")
    wait_until(page, f"{first_line} !== {light[1]!r}")
    assert page.evaluate(ground) != light[0]
