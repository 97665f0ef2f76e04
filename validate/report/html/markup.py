"""Elements of HTML and SVG in which every text is escaped, because only ``tag`` and ``trusted`` make ``Html``."""

from collections.abc import Iterable, Sequence
from html import escape

from coreflow.validate.report.wording import printable


class Html(str):
    """Text that is markup already.

    >>> tag("p", "1 < 2, ", tag("b", "always"))
    '<p>1 &lt; 2, <b>always</b></p>'
    """

    __slots__ = ()


Child = str | Html | None | Iterable["Child"]
_VOID = frozenset(("meta", "link", "input", "br", "hr"))


def tag(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Html:
    """``<name attributes>children</name>``. A plain string is text; None and False leave an attribute out.

    ``class_`` and ``for_`` become ``class`` and ``for``; other underscores become hyphens.
    """
    pairs = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None and value is not False)
    if name in _VOID:
        return Html(f"<{name}{pairs}>")
    return Html(f"<{name}{pairs}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Html:
    """Children beside each other."""
    return Html("".join(_child(child) for child in children))


def trusted(text: str) -> Html:
    """Markup of our own, as the style sheet; never a text that came from a report."""
    return Html(text)


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[Child]], *, texts: Sequence[str] = (), id: str | None = None
) -> Html:
    """A table in a box of its own that scrolls. The first cell of a row is its heading; columns in ``texts`` are set to the left."""
    left = [place == 0 or column in texts for place, column in enumerate(columns)]

    def cell(place: int, child: Child) -> Html:
        kind = None if left[place] else "n"
        return tag("th", child, scope="row") if place == 0 else tag("td", child, class_=kind)

    head = tag("tr", [tag("th", column, scope="col", class_=None if left[place] else "n") for place, column in enumerate(columns)])
    body = [tag("tr", [cell(place, child) for place, child in enumerate(row)]) for row in rows]
    written = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", body), id=id)
    return tag("div", written, class_="box", tabindex=0, role="region", aria_label=caption)


def details(summary: Child, *children: Child, open: bool = False) -> Html:
    """Children that unfold when the summary is clicked."""
    return tag("details", tag("summary", summary), *children, open=open)


def _attribute(key: str, value: str | float | bool) -> str:
    name = key.removesuffix("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(printable(value))}"'


def _child(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, str):
        return escape(printable(child))
    return join(child)
