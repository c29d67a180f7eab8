"""The page in a browser: Chromium, driven by Playwright. Skipped where either is missing (`pip install playwright`, and a
Chromium of the system's, or `playwright install chromium`)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import secateurs as sc
from secateurs.artifact import save_timings
from secateurs.report.page import Run, write
from tests.report.conftest import METHODS, X, network, pruned
from tests.studies.comparing import made_up

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")

PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    system = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    with playwright.sync_playwright() as driver:
        try:
            found = driver.chromium.launch(executable_path=system, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"needs Chromium: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a file; fails in the end if there was an error in the console, a dialog, or a request for anything else."""
    wrong: list[str] = []
    contexts = []

    def go(path: Path, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: None if request.url == path.as_uri() else wrong.append(request.url))
        page.goto(path.as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def files(
    folders: dict[str, Path], results: dict[str, sc.Result], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A page of each method, and one of all."""
    at = tmp_path_factory.mktemp("pages")
    folder = shutil.copytree(folders["l1"], at / "l1")
    bench = sc.bench(network().eval(), results["l1"].model.eval(), X, seconds=0.01)
    save_timings(folder, bench.record())
    runs = {name: Run.read(folder if name == "l1" else folders[name]) for name in METHODS}
    made = {name: write([run], at / f"{name}.html") for name, run in runs.items()}
    everything = write(list(runs.values()), at / "all.html")
    return {**made, "all": everything, "comparison": made_up().report(at / "comparison.html")}


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["all", "comparison"])
def test_every_page_fits(
    viewport: Any, scheme: str, name: str, files: dict[str, Path], opened: Callable[..., Any]
) -> None:
    page = opened(files[name], viewport=viewport, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (shade == "rgb(255, 255, 255)") == (scheme == "light")


def test_the_theme_is_changed_by_the_button(files: dict[str, Path], opened: Callable[..., Any]) -> None:
    page = opened(files["l1"], color_scheme="light")
    shade = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(shade)
    assert page.locator("#theme").inner_text() == "Dark"
    page.click("#theme")
    assert page.evaluate(shade) != before
    assert page.locator("#theme").inner_text() == "Light"
    page.click("#theme")
    assert page.evaluate(shade) == before


def test_the_slider_goes_through_the_moves(
    files: dict[str, Path], results: dict[str, sc.Result], opened: Callable[..., Any]
) -> None:
    history = results["aofp"].history
    search = next(h for h in history if h.get("event") == "search")
    moves = [h for h in history if h.get("event") in ("move", "forced", "end")]
    page = opened(files["aofp"])
    figure, slider = page.locator("figure.moves"), page.locator("figure.moves input")
    assert slider.get_attribute("max") == str(len(moves))

    def widths() -> list[int]:
        return [int(text) for text in figure.locator(".now").all_inner_texts()]

    assert widths() == moves[-1]["widths"]
    end = float(figure.locator(".cursor").get_attribute("x1"))
    slider.fill("0")
    assert widths() == search["sizes"]
    assert "the original" in figure.locator("output").inner_text()
    assert float(figure.locator(".cursor").get_attribute("x1")) < end
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert widths() == moves[0]["widths"]
    assert f"step {moves[0]['step']}" in figure.locator("output").inner_text()


def test_the_slider_goes_through_the_gates(
    files: dict[str, Path], results: dict[str, sc.Result], opened: Callable[..., Any]
) -> None:
    lines = [h for h in results["npn"].history if h.get("event") == "open"]
    page = opened(files["npn"])
    page.locator("figure.gates input").fill("0")
    heights = page.evaluate("[...document.querySelectorAll('.histogram i')].map((one) => parseFloat(one.style.height))")
    first = lines[0]["histogram"]
    most = max(n for line in lines for n in line["histogram"])
    assert heights == pytest.approx([100 * n / most for n in first], abs=0.01)
    assert page.locator("figure.gates output").inner_text() == f"step {lines[0]['step']}"


def test_the_table_is_sorted_by_its_headings(
    files: dict[str, Path], results: dict[str, sc.Result], opened: Callable[..., Any]
) -> None:
    page = opened(files["all"])

    def column(number: int) -> list[str]:
        return page.locator(f".sortable tbody tr td:nth-child({number})").all_inner_texts()

    heads = [head.strip() for head in page.locator(".sortable thead th").all_inner_texts()]
    page.click(".sortable thead th:nth-child(1) button")
    assert column(1) == sorted(column(1))
    at = heads.index("Top-1 cut") + 1
    page.click(f".sortable thead th:nth-child({at}) button")
    ascending = [float(text) for text in column(at)]
    assert ascending == sorted(result.cut.top1 for result in results.values())
    assert page.locator(".sortable thead th[aria-sort]").get_attribute("aria-sort") == "ascending"
    page.click(f".sortable thead th:nth-child({at}) button")
    assert [float(text) for text in column(at)] == ascending[::-1]
    at = heads.index("speed-up") + 1
    for _ in range(2):  # what was not measured is last, whatever the direction
        page.click(f".sortable thead th:nth-child({at}) button")
        assert column(at)[1:] == ["-"] * (len(METHODS) - 1)


def test_a_link_opens_its_run_and_print_opens_all(files: dict[str, Path], opened: Callable[..., Any]) -> None:
    page = opened(files["all"])
    opens = "[...document.querySelectorAll('details.run')].map((one) => one.open)"
    assert page.evaluate(opens) == [False] * len(METHODS)
    page.click(".sortable a[href='#run-2']")
    page.wait_for_function("document.getElementById('run-2').open")
    assert page.evaluate(opens).count(True) == 1
    page.pdf()  # prints
    assert all(page.evaluate(opens))


def test_the_command_is_copied(opened: Callable[..., Any], folders: dict[str, Path], tmp_path: Path) -> None:
    run = Run.read(folders["l1"])
    run.command = "secateurs prune 'a <b>' \\\n    --macs 0.5"
    page = opened(write([run], tmp_path / "page.html"), permissions=["clipboard-read", "clipboard-write"])
    page.click(".copy")
    page.wait_for_function("document.querySelector('.copy').textContent !== 'Copy'")
    with suppress(playwright.Error):  # where the browser has a clipboard
        assert page.evaluate("navigator.clipboard.readText()") == run.command


def test_without_scripts_the_page_is_whole(files: dict[str, Path], opened: Callable[..., Any]) -> None:
    page = opened(files["aofp"], java_script_enabled=False)
    assert not page.locator(".slider, #theme, .copy").filter(visible=True).count()
    assert page.locator(".moves .now").all_inner_texts()


@pytest.mark.parametrize("hostile", ["</script><script>hit=1</script>", "'\"><img src=x onerror=hit=1>"])
def test_nothing_of_an_artifact_runs(hostile: str, opened: Callable[..., Any], tmp_path: Path) -> None:
    result = pruned("aofp", network(hostile))
    run = Run.of(hostile, result.plan, result.card())
    run.command = hostile
    page = opened(write([run], tmp_path / "page.html"))
    assert hostile in page.locator(".moves .name").all_inner_texts()
    assert page.evaluate("typeof hit") == "undefined"
    page.locator("figure.moves input").fill("0")
    page.locator("figure.moves input").fill("1")
    assert page.evaluate("typeof hit") == "undefined"


def test_the_policy_stops_what_was_not_escaped(browser: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    path = write([Run.read(folders["l1"])], tmp_path / "page.html")
    path.write_text(path.read_text().replace("<main>", "<main><script>hit=1</script><img src=x onerror='hit=1'>"))
    context = browser.new_context()
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.evaluate("typeof hit") == "undefined"
    context.close()
