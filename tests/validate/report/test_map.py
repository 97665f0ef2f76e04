"""The map of a program: whole without a script, safe with any name, usable at 3 000 ops and on a phone in a real browser."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreflow.validate.report.html.map import MapOp, MapRegion, ProgramMap, map_page
from tests.validate.report.test_browser import DESK, PHONE, Browser, find_browser

HOSTILE = "</script><img src=x onerror=alert(1)>&\"'\u202e"


def chain(count: int, cpu_from: int, *, findings: bool = True, reads: Any = None) -> ProgramMap:
    ops = tuple(
        MapOp(
            name=f"op_{place}",
            type="matmul" if place % 3 else "add",
            device="cpu" if place >= cpu_from else "engine",
            shape="1 x 64 float16",
            reads=(reads or (lambda place: (place - 1,) if place else ()))(place),
            cost="0.02 ms, 1 %",
            findings=(("warning", "a mask is -inf"),) if findings and place % 500 == 7 else (),
        )
        for place in range(count)
    )
    regions = (MapRegion(device="engine", first=0, last=cpu_from - 1), MapRegion(device="cpu", first=cpu_from, last=count - 1))
    return ProgramMap(label="encoder", lead="predicted, not measured", ops=ops, regions=regions, notes=("70 of 101 ops are proved",))


def test_devices_stand_in_words_and_every_op_is_there() -> None:
    page = map_page("Map", [chain(30, 20)], ["K: somebody"])
    assert page.count("<li ") == 30 and "Neural Engine: 20 ops" in page and "CPU: 10 ops" in page
    assert page.count('class="device">CPU<') == 10 and page.count('class="device">Neural Engine<') == 20
    assert "warning: a mask is -inf" in page and "K: somebody" in page and "70 of 101 ops are proved" in page


def test_links_lead_to_ops_of_the_page() -> None:
    def residual(place: int) -> tuple[int, ...]:
        return tuple(sorted({place - 1, place - 4} & set(range(place))))

    page = map_page("Map", [chain(40, 25, reads=residual), chain(12, 6)], [])
    anchors = set(re.findall(r' id="([^"]+)"', page))
    targets = re.findall(r'href="#([^"]+)"', page)
    assert len(targets) > 30 and set(targets) <= anchors
    assert len(anchors) == len(re.findall(r' id="', page)), "no anchor twice"


@given(
    st.lists(st.lists(st.integers(0, 60), max_size=4), min_size=1, max_size=60),
)
def test_a_line_stands_for_every_read_within_a_region(wishes: list[list[int]]) -> None:
    reads = [tuple(sorted({wish for wish in wished if wish < place})) for place, wished in enumerate(wishes)]
    ops = tuple(MapOp(name=str(place), type="add", device="cpu", reads=read) for place, read in enumerate(reads))
    entry = ProgramMap(label="x", lead="", ops=ops, regions=(MapRegion(device="cpu", first=0, last=len(ops) - 1),))
    page = map_page("Map", [entry], [])
    assert page.count("<path ") == sum(map(len, reads)) and page.count("<circle ") == len(ops)


def test_the_next_op_has_a_straight_line_and_others_a_lane() -> None:
    page = map_page("Map", [chain(5, 4, findings=False, reads=lambda place: {1: (0,), 3: (2, 0)}.get(place, ()))], [])
    lines = re.findall(r'<path d="([^"]+)"', page)
    assert [("Q" in line) for line in lines] == [False, True, False]


def test_no_name_becomes_markup() -> None:
    op = MapOp(name=HOSTILE, type=HOSTILE, device="cpu", reason=HOSTILE, findings=(("error", HOSTILE),))
    entry = ProgramMap(label=HOSTILE, lead=HOSTILE, ops=(op,), regions=(MapRegion(device="cpu", first=0, last=0, text=HOSTILE),))
    page = map_page(HOSTILE, [entry], [HOSTILE])
    assert page.count("<script>") == 1 and "<img" not in page and "\u202e" not in page
    assert "default-src 'none'" in page.replace("&#x27;", "'") and "http" not in re.sub(r"http-equiv", "", page)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    binary = find_browser()
    if binary is None:
        pytest.skip("no browser is installed")
    opened = Browser(binary, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def test_three_thousand_ops_are_usable_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "map.html").write_text(map_page("Map", [chain(3000, 2500)], []), encoding="utf-8")
    browser.open(tmp_path / "map.html", DESK)
    assert [request["request"]["url"].split(":")[0] for request in browser.of("Network.requestWillBeSent")] in (["file"], ["file", "data"])
    assert not browser.of("Log.entryAdded", "Runtime.exceptionThrown")
    shown = """(text) => { const field = document.querySelector("input[data-map]"); field.value = text;
        field.dispatchEvent(new Event("input")); return [...document.querySelectorAll("li")].filter((row) => row.offsetParent).length; }"""
    assert browser.ask(f"({shown})('')") == 3000
    assert browser.ask(f"({shown})('mask')") == 6
    assert browser.ask(f"({shown})('cpu matmul')") == sum(place % 3 != 0 for place in range(2500, 3000))
    assert browser.ask("document.querySelector('output').textContent").endswith("of 3000 ops")


def test_a_line_ends_at_the_row_of_its_op(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "map.html").write_text(map_page("Map", [chain(60, 40)], []), encoding="utf-8")
    browser.open(tmp_path / "map.html", DESK)
    centres = (
        """(selector) => [...document.querySelectorAll(selector)].map((e) => e.getBoundingClientRect()).map((r) => r.y + r.height / 2)"""
    )
    rows, dots = (browser.ask(f"({centres})('{selector}')") for selector in (".graph li", ".graph circle"))
    assert len(rows) == len(dots) == 60 and max(abs(row - dot) for row, dot in zip(rows, dots, strict=True)) < 3


def test_it_fits_a_phone_and_is_whole_without_its_script(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "map.html").write_text(map_page("Map", [chain(200, 100)], []), encoding="utf-8")
    for dark in (False, True):
        browser.open(tmp_path / "map.html", PHONE, dark=dark)
        assert browser.ask("document.documentElement.scrollWidth <= window.innerWidth")
    browser.open(tmp_path / "map.html", PHONE, scripts=False)
    assert browser.ask("document.querySelectorAll('li').length") == 200 and browser.ask("document.querySelector('.search').hidden")
