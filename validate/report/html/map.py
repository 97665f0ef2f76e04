"""The map of a saved program: every op in order, regions by device in colour and in words, what reads what, costs, errors and findings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from coreflow.validate.report.html.document import document
from coreflow.validate.report.html.markup import Html, join, tag

_ROW = 30  # pixels; the lines of the graph are drawn beside rows of this height
_LANE, _LANES = 9, 6  # pixels of a lane, and how many lie side by side
_DEVICES = {"engine": "Neural Engine", "cpu": "CPU"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MapOp:
    """One op as the map shows it; an empty text is left out.

    >>> MapOp(name="linear_0", type="linear", shape="1 x 64", device="engine", reads=(0,), cost="0.02 ms, 4 %")
    """

    name: str
    type: str
    device: str  # engine or cpu
    shape: str = ""
    reads: tuple[int, ...] = ()  # places of the ops whose results it reads
    cost: str = ""
    margin: str = ""
    reason: str = ""  # why the engine does not take it
    proof: str = ""  # what is proved of its values
    error: str = ""
    findings: tuple[tuple[str, str], ...] = ()  # severity and text


@dataclass(frozen=True, slots=True, kw_only=True)
class MapRegion:
    """A run of ops on one device; ``first`` and ``last`` are places.

    >>> MapRegion(device="engine", first=0, last=140, text="97 % of the cost")
    """

    device: str
    first: int
    last: int
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramMap:
    """One function of a package on a map.

    >>> page(["encoder.mlpackage"], [ProgramMap(label="encoder", lead="9 ops", ops=ops, regions=regions)])
    """

    label: str
    lead: str
    ops: tuple[MapOp, ...]
    regions: tuple[MapRegion, ...]
    notes: tuple[str, ...] = ()


def map_page(title: str, maps: Sequence[ProgramMap], sources: Sequence[str]) -> str:
    """The whole page: it fetches nothing, and is complete without its script."""
    sections = [program_map(entry, number) for number, entry in enumerate(maps)]
    footer = tag("footer", [tag("p", line) for line in sources])
    return document(title, tag("h1", title), sections, footer, styles=("page.css", "map.css"), script="map.js")


def program_map(entry: ProgramMap, number: int = 0) -> Html:
    """The section of one function; ``number`` tells its anchors from those of others on the page."""
    return tag(
        "section",
        tag("h2", entry.label),
        tag("p", entry.lead, class_="lead"),
        [tag("p", note) for note in entry.notes],
        _strip(entry, number),
        tag(
            "p",
            tag(
                "label", "Show ops with ", tag("input", type="search", data_map=f"m{number}", placeholder="cpu, matmul, error, a name ...")
            ),
            " ",
            tag("output"),
            class_="search",
            hidden=True,
        ),
        tag("div", [_region(entry, region, number) for region in entry.regions], id=f"m{number}", class_="map"),
        class_="program",
    )


def _strip(entry: ProgramMap, number: int) -> Html:
    """All regions side by side, as wide as they have ops."""
    cells = [
        tag(
            "a",
            _DEVICES.get(region.device, region.device),
            " ",
            f"{region.last - region.first + 1}",
            href=f"#m{number}r{region.first}",
            class_=f"cell {region.device}",
            title=f"{_DEVICES.get(region.device, region.device)}, {region.last - region.first + 1} ops",
        )
        for region in entry.regions
    ]
    return tag("nav", cells, class_="strip", aria_label=f"regions of {entry.label}")


def _region(entry: ProgramMap, region: MapRegion, number: int) -> Html:
    ops = entry.ops[region.first : region.last + 1]
    findings = sum(len(op.findings) for op in ops)
    title = f"{_DEVICES.get(region.device, region.device)}: {len(ops)} op{'s' if len(ops) > 1 else ''}"
    told = [text for text in (region.text, f"{findings} finding{'s' if findings > 1 else ''}" if findings else "") if text]
    rows = [_op(op, region.first + place, number) for place, op in enumerate(ops)]
    body = tag("div", _lines(ops, region.first), tag("ol", rows, start=region.first + 1), class_="graph")
    summary = tag("summary", tag("strong", title), f" {', '.join(told)}" if told else "")
    return tag("details", summary, tag("div", body, class_="box", tabindex=0, role="region", aria_label=title),
               id=f"m{number}r{region.first}", class_=f"region {region.device}", open=True)  # fmt: skip


def _op(op: MapOp, place: int, number: int) -> Html:
    device = _DEVICES.get(op.device, op.device)
    reads = [tag("a", str(read + 1), href=f"#m{number}o{read}") for read in op.reads if read != place - 1]
    marks = [tag("span", f"{severity}: {text}", class_=f"finding {severity}") for severity, text in op.findings]
    texts = [
        tag("span", text, class_=kind)
        for text, kind in (
            (op.shape, "shape"), (device, "device"), (op.cost, "cost"), (op.margin, "margin"), (op.error, "error-text"),
            (op.proof, "proof"), (op.reason, "reason"),
        )
        if text
    ]  # fmt: skip
    source = tag("span", "reads ", _between(reads), class_="reads") if reads else None
    return tag("li", tag("code", op.type), tag("b", op.name), texts, source, marks, id=f"m{number}o{place}")


def _between(links: Sequence[Html]) -> Html:
    return join(part for place, link in enumerate(links) for part in ((", ", link) if place else (link,)))


def _lines(ops: Sequence[MapOp], first: int) -> Html:
    """Lines from each op to those that read it, within the region: straight to the next row, in a lane of their own beside others."""
    paths = list(_paths(ops, first))
    width, height = _LANE * (_LANES + 1), _ROW * len(ops)
    return tag("svg", paths, class_="lines", width=width, height=height, viewBox=f"0 0 {width} {height}", aria_hidden="true")


def _paths(ops: Sequence[MapOp], first: int) -> Iterator[Html]:
    busy = [-1] * _LANES  # by lane: the row up to which it is taken
    edge = _LANE * (_LANES + 1)
    for place, op in enumerate(ops):
        for read in sorted({read - first for read in op.reads if read >= first}):
            start, end = (row * _ROW + _ROW // 2 for row in (read, place))
            if read == place - 1:
                yield tag("path", d=f"M{edge - 4} {start}V{end}")
                continue
            lane = next((lane for lane in range(_LANES) if busy[lane] <= read), _LANES - 1)
            busy[lane] = max(busy[lane], place)
            x = edge - _LANE * (lane + 1) - 4
            yield tag("path", d=f"M{edge - 4} {start}Q{x} {start} {x} {start + _ROW // 2}V{end - _ROW // 2}Q{x} {end} {edge - 4} {end}")
        yield tag("circle", cx=edge - 4, cy=place * _ROW + _ROW // 2, r=3)
