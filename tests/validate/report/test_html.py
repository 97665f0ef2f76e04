"""The page as a file: whole, self-contained, escaped, and honest about what was not looked at. A browser reads it in test_browser.py."""

import itertools
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from coreflow.validate.report.html import svg
from coreflow.validate.report.html.markup import table, tag
from coreflow.validate.report.html.page import to_html
from coreflow.validate.report.html.program import bands
from coreflow.validate.report.model import Plots

VOID = {"meta", "link", "input", "br"}
PLOTS = ("Ladder", "Error over size", "Histogram of errors", "Argmax margin", "Error along the program", "Dynamic range", "Compute units")


class Tree(HTMLParser):
    """Elements with their attributes and texts; an element that is not closed in order is an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[tuple[str, ...], dict[str, str]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(((*self.open, name), {attribute: value or "" for attribute, value in attrs}))
        assert len(dict(attrs)) == len(attrs), f"{name} repeats an attribute"
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, text: str) -> None:
        self.texts.append((tuple(self.open), text))

    def of(self, name: str) -> Iterator[dict[str, str]]:
        return (attributes for path, attributes in self.elements if path[-1] == name)

    def text(self) -> str:
        return " ".join(text for path, text in self.texts if not {"style", "script"} & set(path))


def reports(make: SimpleNamespace) -> dict[str, Any]:
    return {
        "bare": make.stage(make.output()),
        "nothing": make.stage(verdict="incomplete"),
        "whole": make.whole(),
        "bundle": make.bundle(make.whole(), make.stage(make.output(), name="other"), make.stage(name="none", verdict="incomplete")),
        "empty bundle": make.bundle(cascade=None),
        "hostile": make.hostile(),
    }


@pytest.mark.parametrize("name", ["bare", "nothing", "whole", "bundle", "empty bundle", "hostile"])
def test_a_page_is_well_formed_and_needs_nothing_from_elsewhere(make: SimpleNamespace, name: str) -> None:
    page = to_html(reports(make)[name])
    tree = Tree(page)
    assert {attributes.get("href", "#")[0] for attributes in tree.of("a")} <= {"#"}
    assert [attributes["href"] for attributes in tree.of("link")] == ["data:,"]
    assert not any(attributes.get("src") for _, attributes in tree.elements)
    assert "url(" not in page and "@import" not in page and "://" not in page
    ids = [attributes["id"] for _, attributes in tree.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for attributes in tree.of("a")} <= set(ids), "every link has its place"
    assert any(attributes.get("name") == "viewport" for attributes in tree.of("meta"))
    assert "default-src 'none'" in next(element["content"] for element in tree.of("meta") if element.get("http-equiv"))


def test_the_whole_report_has_every_plot_with_a_table_behind_it(make: SimpleNamespace) -> None:
    tree = Tree(to_html(make.whole()))
    pictures = [path for path, attributes in tree.elements if path[-1] == "svg" and attributes.get("class") == "plot"]
    titles = [text for path, text in tree.texts if path[-2:] == ("figure", "h4")]
    assert set(titles) == set(PLOTS)
    assert len(pictures) == 2 * 4 + 3, "four of either output, three of the program"
    for _, attributes in filter(lambda element: element[0][-1] == "svg" and element[1].get("class") == "plot", tree.elements):
        assert attributes["role"] == "img" and attributes["aria-label"]
    behind = [path for path, _ in tree.elements if path[-1] == "table" and "figure" in path]
    assert all("details" in path[path.index("figure") :] for path in behind) and len(behind) >= len(pictures)


def test_every_table_has_a_caption_headings_and_a_box_that_the_keyboard_reaches(make: SimpleNamespace) -> None:
    tree = Tree(to_html(reports(make)["bundle"]))
    tables = [path for path, _ in tree.elements if path[-1] == "table"]
    captions = [path for path, _ in tree.elements if path[-2:] == ("table", "caption")]
    assert len(tables) == len(captions) > 10
    assert all(attributes.get("scope") in ("col", "row") for attributes in tree.of("th"))
    boxes = [attributes for attributes in tree.of("div") if attributes.get("class") == "box"]
    assert len(boxes) == len(tables) and all(element["tabindex"] == "0" and element["aria-label"] for element in boxes)
    levels = [int(path[-1][1]) for path, _ in tree.elements if re.fullmatch("h[1-6]", path[-1])]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), "no level of headings is skipped"


def test_parts_that_were_not_checked_are_named_and_no_empty_picture_is_drawn(make: SimpleNamespace) -> None:
    tree = Tree(to_html(make.stage(make.output(rungs={}))))
    assert not [path for path, attributes in tree.elements if attributes.get("class") == "plot"]
    text = tree.text()
    for said in ("Ladder: not looked at", "Error over size: not looked at", "Histogram: not looked at", "Argmax margin: not looked at",
                 "Error along the program: not looked at", "Dynamic range: not looked at", "Compute units: not looked at",
                 "Ops: not looked at", "Constants: not looked at", "Worst elements: not looked at"):  # fmt: skip
        assert said in text
    assert (
        "nothing to draw, since every error" in Tree(to_html(make.stage(make.output(plots=Plots(reference=(1.0,), error=(0.0,)))))).text()
    )
    only = make.whole(compute_unit_rho={"cpu_only": {"surface": 1.0}})
    assert "Compute units: only cpu_only was run, so there is nothing to compare." in Tree(to_html(only)).text()
    assert "Cascade: not looked at." in Tree(to_html(make.bundle(cascade=None))).text()


def test_hostile_names_are_text(make: SimpleNamespace) -> None:
    page = to_html(make.bundle(make.hostile(), name=make.HOSTILE, warnings=(make.HOSTILE,), problems=(make.HOSTILE,)))
    tree = Tree(page)
    assert page.count("<script>") == 1, "ours"
    assert not {"\x1b", "\x00", "\u202e", "\ud800"} & set(page)
    page.encode("utf-8")
    assert tree.text().count("<script>alert(1)</script>\"'&|`[bold]") > 30
    assert {name for _, attributes in tree.elements for name in attributes} <= {
        "lang", "charset", "http-equiv", "content", "name", "rel", "href", "class", "id", "open", "tabindex", "role", "aria-label", "scope",
        "viewbox", "x", "y", "x1", "x2", "y1", "y2", "d", "width", "height", "text-anchor", "aria-hidden", "type", "data-table",
        "autocomplete", "aria-live", "hidden",
    }  # fmt: skip


def test_a_string_is_escaped_and_only_tags_are_markup() -> None:
    assert tag("p", "<b>", tag("i", "x & y"), None, class_='"') == '<p class="&quot;">&lt;b&gt;<i>x &amp; y</i></p>'
    assert tag("input", hidden=True, disabled=False, name=None, max=3) == '<input hidden max="3">'
    assert table("c", ("a", "b"), [("<", "1")]).count("&lt;") == 1


def test_the_op_table_holds_every_op_with_its_source_and_marks_the_bad_one(make: SimpleNamespace) -> None:
    tree = Tree(to_html(make.whole()))
    rows = [text for path, text in tree.texts if path[-4:] == ("table", "tbody", "tr", "th") and "figure" not in path]
    assert [f"op_{number}" in " ".join(rows) for number in range(60)] == [True] * 60
    text = tree.text()
    assert "layers.3, net.py:30" in text and "1.00 of 0.50 ✗" in text and "above 10.4" in text
    search = next(attributes for path, attributes in tree.elements if attributes.get("class") == "search")
    assert "hidden" in search, "without a script there is nothing to search with"


def test_modules_are_bands_without_gaps(make: SimpleNamespace) -> None:
    actual = bands(make.ops())
    assert [band.module for band in actual] == [f"layers.{number}" for number in range(6)]
    assert actual[0].first == 0 and actual[-1].last == 59
    assert all(after.first == before.last + 1 for before, after in itertools.pairwise(actual))
    assert bands(()) == ()


@pytest.mark.parametrize("log", [False, True])
def test_a_scale_places_values_and_keeps_everything_inside(log: bool) -> None:
    scale = svg.Scale(low=1e-4 if log else 0.0, high=1e4 if log else 10.0, start=300.0, end=20.0, log=log)
    middle = 1.0 if log else 5.0
    assert scale.at(middle) == pytest.approx(160.0)
    assert scale.at(float("nan")) == scale.at(float("inf")) == scale.at(1e9) == 20.0
    assert scale.at(0.0) == scale.at(-1.0) == 300.0
    assert all(scale.low <= value <= scale.high for value, _ in scale.ticks) and 3 <= len(scale.ticks) <= 8


@pytest.mark.parametrize(
    ("values", "bounds"),
    [
        ((), (0.1, 10)),
        ((0.0, float("nan"), float("inf")), (0.1, 10)),
        ((1.0,), (1, 10)),
        ((2e-7, 3e-2), (1e-7, 0.1)),
        ((5e-324,), (1e-300, 1e-299)),
    ],
    ids=["none", "none that count", "one", "two", "subnormal"],
)
def test_bounds_are_powers_of_ten_around_the_drawable_values(values: tuple[float, ...], bounds: tuple[float, float]) -> None:
    assert svg.log_bounds(values) == pytest.approx(bounds)


def test_a_histogram_reaches_as_high_as_its_counts() -> None:
    on = svg.panel((1e-3, 1.0), (0.5, 100.0), height=300, log_x=True)
    drawn = svg.steps(on, (1e-3, 1e-2, 1e-1, 1.0), (0, 10, 100), "actual")
    heights = [float(pair.split()[1]) for pair in re.search(r'd="M([^"]+)"', drawn)[1].split("L")]  # type: ignore[index]
    assert heights[1] == on.y.start and heights[3] == pytest.approx(on.y.at(10), abs=0.1) and min(heights) == on.y.end


def test_style_and_script_are_packaged() -> None:
    import tomllib

    root = Path(__file__).parents[3]
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["coreflow.validate.report.html"]
    actual = {path.name for path in (root / "validate/report/html").iterdir() if path.suffix not in (".py", "") and path.is_file()}
    assert set(listed) == actual
