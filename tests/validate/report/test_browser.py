"""The page in a real browser: nothing is fetched, nothing complains, it fits a phone, and its search works."""

import base64
import json
import os
import select
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from coreflow.validate.report.files import write

fcntl = pytest.importorskip("fcntl", reason="the browser is spoken to over POSIX pipes")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
MAC = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
PATIENCE_S = 60
PHONE, DESK = (390, 844), (1280, 900)


class Browser:
    """A headless Chromium, spoken to in its DevTools protocol over two pipes: JSON messages that end with a zero byte."""

    def __init__(self, binary: str, profile: Path) -> None:
        pipes = [os.pipe(), os.pipe()]
        self._out, self._in = pipes[0][1], pipes[1][0]
        # The protocol wants descriptors 3 and 4: first moved out of their way, then put there.
        its_ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (pipes[0][0], pipes[1][1])]
        options = ("--headless=new", "--disable-gpu", "--no-first-run", "--disable-extensions", "--disable-background-networking",
                   "--disable-component-update", "--remote-debugging-pipe", "--no-sandbox", f"--user-data-dir={profile}")  # fmt: skip
        # (Without its sandbox, which neither root nor many containers can have: it opens pages that these tests wrote.)
        actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, end, number) for end, number in zip(its_ends, (3, 4), strict=True)]
        self._process = os.posix_spawn(binary, [binary, *options, "about:blank"], os.environ, file_actions=actions)
        for end in (*its_ends, pipes[0][0], pipes[1][1]):
            os.close(end)
        self._read, self._number, self._session, self.events = b"", 0, None, list[dict[str, Any]]()
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **arguments: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": arguments, **({"sessionId": self._session} if self._session else {})}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            assert select.select([self._in], [], [], PATIENCE_S)[0], "the browser is silent"
            more = os.read(self._in, 1 << 16)
            assert more, "the browser has ended"
            self._read += more
        first, _, self._read = self._read.partition(b"\0")
        return dict(json.loads(first))

    def open(self, path: Path, size: tuple[int, int], *, dark: bool = False, scripts: bool = True) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=size == PHONE)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def ask(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def of(self, *methods: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event.get("method") in methods]

    def close(self) -> None:
        self._session = None
        self.call("Browser.close")
        os.waitpid(self._process, 0)
        os.close(self._out)
        os.close(self._in)


def find_browser() -> str | None:
    actual = next((path for name in NAMES if (path := shutil.which(name))), None)
    return actual or (str(MAC) if MAC.exists() else None)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    binary = find_browser()
    if binary is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    opened = Browser(binary, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(params=["whole", "bundle", "bare", "hostile", "real"])
def page(request: pytest.FixtureRequest, make: SimpleNamespace, tmp_path: Path) -> Path:
    report = {
        "whole": make.whole,
        "bundle": lambda: make.bundle(make.whole(), make.stage(make.output(), name="a_stage_with_" + "a_long_name_" * 8)),
        "bare": lambda: make.stage(make.output(rungs={})),
        "hostile": make.hostile,
        "real": lambda: request.getfixturevalue("real"),
    }[request.param]()
    write(tmp_path / "report.html", report)
    return tmp_path / "report.html"


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_nothing_is_fetched_nothing_complains_and_nothing_overflows(browser: Browser, page: Path, size: tuple[int, int]) -> None:
    browser.open(page, size)
    assert browser.ask("document.querySelectorAll('details').forEach(each => each.open = true)") is None
    width = browser.ask("document.documentElement.scrollWidth")
    assert width <= size[0], "the page itself never scrolls sideways, with everything unfolded"
    overflowing = browser.ask(
        "[...document.querySelectorAll('main *')].filter(each => !each.closest('.box, pre')"
        f" && each.getBoundingClientRect().right > {size[0]}).map(each => each.outerHTML.slice(0, 80))"
    )
    assert overflowing == []
    assert [event["request"]["url"] for event in browser.of("Network.requestWillBeSent")] == [page.as_uri()]
    assert browser.of("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled") == []
    assert browser.ask("getComputedStyle(document.body).fontSize") == "16px"
    assert browser.ask("document.querySelectorAll('script').length") == 1


def test_every_picture_has_its_table_and_is_drawn(browser: Browser, make: SimpleNamespace, tmp_path: Path) -> None:
    write(tmp_path / "report.html", make.whole())
    browser.open(tmp_path / "report.html", PHONE)
    browser.ask("document.querySelectorAll('details.output').forEach(each => each.open = true)")
    actual = browser.ask(
        "[...document.querySelectorAll('svg.plot')].map(each => [each.getAttribute('aria-label'), each.getBoundingClientRect().width,"
        " each.getBoundingClientRect().height, each.closest('figure').querySelectorAll('details table tbody tr').length])"
    )
    assert len(actual) == 11
    for label, width, height, rows in actual:
        assert label and rows > 0, label
        assert 250 < width <= 390 and 100 < height < 500, label
    # The smallest letters of a picture, as they are on a phone.
    size = browser.ask("parseFloat(getComputedStyle(document.querySelector('svg.plot text')).fontSize)")
    scale = browser.ask("(each => each.getBoundingClientRect().width / each.viewBox.baseVal.width)(document.querySelector('svg.plot'))")
    assert size * scale > 9


def test_marks_stay_inside_their_picture(browser: Browser, make: SimpleNamespace, tmp_path: Path) -> None:
    write(tmp_path / "report.html", make.whole())
    browser.open(tmp_path / "report.html", DESK)
    outside = browser.ask(
        "[...document.querySelectorAll('details.output')].forEach(each => each.open = true),"
        "[...document.querySelectorAll('svg.plot')].flatMap(plot => [...plot.children].filter(each => {"
        " const box = each.getBBox(), view = plot.viewBox.baseVal;"
        " return box.x < -1 || box.y < -1 || box.x + box.width > view.width + 1 || box.y + box.height > view.height + 1; })"
        ".map(each => plot.getAttribute('aria-label') + ': ' + each.outerHTML.slice(0, 60)))"
    )
    assert outside == []


def test_the_search_narrows_the_table_to_rows_with_every_word(browser: Browser, make: SimpleNamespace, tmp_path: Path) -> None:
    write(tmp_path / "report.html", make.whole())
    browser.open(tmp_path / "report.html", PHONE)
    visible = "[...document.querySelectorAll('.ops tbody tr')].filter(each => each.checkVisibility()).length"
    assert browser.ask(visible) == 60

    def search(words: str) -> tuple[int, str]:
        browser.ask(
            f"(field => {{ field.value = {json.dumps(words)}; field.dispatchEvent(new Event('input')); }})"
            "(document.querySelector('.search input'))"
        )
        return browser.ask(visible), browser.ask("document.querySelector('.search output').textContent")

    assert search("SOFTMAX") == (20, "20 of 60 ops")
    assert search("softmax layers.3") == (3, "3 of 60 ops")
    assert search("no such op") == (0, "0 of 60 ops")
    assert search(" ") == (60, "60 of 60 ops")


def test_without_scripts_everything_is_there_but_the_search_field(browser: Browser, make: SimpleNamespace, tmp_path: Path) -> None:
    write(tmp_path / "report.html", make.whole())
    browser.open(tmp_path / "report.html", DESK, scripts=False)
    root = browser.call("DOM.getDocument")["root"]["nodeId"]

    def count(selector: str) -> int:
        return len(browser.call("DOM.querySelectorAll", nodeId=root, selector=selector)["nodeIds"])

    assert count(".ops tbody tr") == 60 and count("svg.plot") == 11
    assert count(".search[hidden]") == 1 and count("tr[hidden]") == 0


def test_dark_and_light_follow_the_reader_and_can_be_read(browser: Browser, make: SimpleNamespace, tmp_path: Path) -> None:
    write(tmp_path / "report.html", make.whole())
    luminance = (
        "(() => { const of = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(each => each / 255)"
        ".map(each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };"
        " const ground = of(getComputedStyle(document.body).backgroundColor);"
        " const ratios = ['body', '.muted', '.fail', '.pass', 'figcaption', 'a', '.incomplete', '.warn', 'thead th']"
        ".filter(each => document.querySelector(each)).map(each => of(getComputedStyle(document.querySelector(each)).color))"
        ".map(ink => (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05));"
        " return [ground, Math.min(...ratios)]; })()"
    )
    grounds = []
    for dark in (False, True):
        browser.open(tmp_path / "report.html", DESK, dark=dark)
        ground, contrast = browser.ask(luminance)
        grounds.append(ground)
        assert contrast >= 4.5, "WCAG 2 AA for text"
        assert browser.screenshot().startswith(b"\x89PNG")
    assert grounds[0] > 0.9 and grounds[1] < 0.05


def test_a_hostile_report_runs_nothing(browser: Browser, make: SimpleNamespace, tmp_path: Path) -> None:
    write(tmp_path / "report.html", make.hostile())
    browser.open(tmp_path / "report.html", DESK)
    assert browser.of("Page.javascriptDialogOpening") == []
    assert browser.ask("document.querySelectorAll('i, b, img, iframe, script').length") == 1, "our own script"
    assert "<script>alert(1)</script>" in browser.ask("document.querySelector('h1').textContent")
