"""A report as one HTML page: no network, no fonts or scripts from elsewhere, every picture drawn as SVG with its table behind it."""

from collections.abc import Iterator, Sequence

from coreflow.validate.report.columns import CHAIN, ELEMENTS, OUTPUTS
from coreflow.validate.report.html.document import document
from coreflow.validate.report.html.markup import Html, details, join, table, tag
from coreflow.validate.report.html.plots import output_plots
from coreflow.validate.report.html.program import op_table, program_plots
from coreflow.validate.report.html.tables import column_table, outcome_badge
from coreflow.validate.report.model import AmbiguousSample, BundleReport, ChainReport, Outcome, OutputReport, Report, Samples
from coreflow.validate.report.wording import (
    NOT_LOOKED_AT,
    ambiguity,
    coverage,
    excess,
    execution,
    gate_number,
    jump,
    nan_as_infinite,
    number,
    parts_of,
    precise_number,
    replay_command,
    shape_text,
    source_line,
    versions_text,
    why_no_culprit,
)

_NAME, *_FIGURES, _VERDICT = OUTPUTS
_OUTPUTS = (_NAME, _VERDICT, *_FIGURES)  # the page scrolls sideways, and the verdict is to be seen first


def to_html(report: Report | BundleReport) -> str:
    """The whole page."""
    title = f"{report.verdict.upper()}: {report.name}"
    body = _bundle(report) if isinstance(report, BundleReport) else _package(report)
    return document(title, body, styles=("page.css",), script="page.js")


def _package(report: Report) -> Iterator[Html | None]:
    yield tag("h1", f"Validation of {report.name}")
    yield _lead(report.verdict, report.cause, report.text)
    yield from _stage(report, "p")
    yield tag("footer", f"{coverage([report], None)}. Judged in {report.seconds:.1f} s.")


def _bundle(report: BundleReport) -> Iterator[Html | None]:
    stages = list(parts_of(report))
    yield tag("h1", f"Validation of bundle {report.name}")
    yield _lead(report.verdict, report.cause, report.text)
    yield _facts(
        (("bundle", report.bundle), ("kind", report.kind), ("exported", report.created), ("versions", versions_text(report.versions)))
    )
    yield _list("Warnings", report.warnings)
    yield _list("Not judged", report.problems)
    rows = [
        (
            tag("a", stage.name, href=f"#s{place}"),
            outcome_badge(stage.verdict),
            stage.cause or "",
            number(max(nan_as_infinite(output.rho_rms) for output in stage.outputs.values())) if stage.outputs else NOT_LOOKED_AT,
            f"{sum(output.elements for output in stage.outputs.values()):,}",
            tag("span", stage.text, class_="wrap"),
        )
        for place, stage in enumerate(stages)
    ]
    yield table(
        "Stages",
        ("stage", "verdict", "cause", "largest rho_rms", "elements", "what was found"),
        rows,
        texts=("verdict", "cause", "what was found"),
    )
    yield tag("h2", "Cascade", id="cascade")
    if report.cascade is None:
        yield tag("p", f"Cascade: {NOT_LOOKED_AT}.", class_="absent")
    else:
        yield from _chain(report.cascade)
    for place, stage in enumerate(stages):
        yield tag("h2", f"Stage {stage.name}", id=f"s{place}")
        yield _lead(stage.verdict, stage.cause, stage.text)
        yield from _stage(stage, f"s{place}")
    yield tag("footer", f"{coverage(stages, report.cascade)}. Judged in {report.seconds:.1f} s.")


def _stage(report: Report, key: str) -> Iterator[Html | None]:
    """Everything about one package; ``key`` makes its ids unique in the page."""
    yield _facts(
        (
            ("package", report.package),
            ("sha256", report.digest),
            ("weights", report.weights_digest or "none"),
            ("execution", f"{execution(report)}, precision {report.precision}"),
            ("reference", report.reference),
            ("budget", report.budget),
            ("versions", versions_text(report.versions)),
        )
    )
    yield _list("Not judged", report.problems)
    yield _list("Notes", report.notes)
    yield from _explanation(report)
    yield from _outputs(report.by_headroom, key)
    yield from (tag("p", text) for text in ambiguity(report.samples))
    yield _ambiguous(report.samples)
    yield tag("h3", "The program")
    yield _constants(report)
    yield program_plots(report)
    yield op_table(report, f"{key}-ops")


def _explanation(report: Report) -> Iterator[Html | None]:
    """Culprits and how to see the failure again; nothing for a package that passes without any."""
    if report.verdict == "pass" and not report.culprits:
        return
    yield tag("h3", "What explains it")
    if report.culprits:
        items = [
            tag(
                "li",
                tag("strong", f"{culprit.kind}: "),
                tag("code", culprit.name),
                f" ({culprit.type}){excess(culprit)}",
                tag("br"),
                tag("span", source_line(culprit.origin), class_="muted"),
                tag("br"),
                culprit.text,
            )
            for culprit in report.culprits
        ]
        yield tag("ol", *items, class_="culprits")
    else:
        yield tag("p", f"No culprit is named; {why_no_culprit(report)}.", class_="absent")
    if command := replay_command(report):
        yield tag("p", "The worst sample alone runs again with")
        yield tag("pre", tag("code", command), tabindex=0)


def _outputs(outputs: Sequence[OutputReport], key: str) -> Iterator[Html | None]:
    """The table of all, the tightest first, then a part per output, open where it does not pass."""
    yield tag("h3", "Outputs")
    if not outputs:
        yield tag("p", "No output was compared.", class_="absent")
        return
    ids = {output.name: f"{key}-{place}" for place, output in enumerate(outputs)}
    links = {"output": lambda output: tag("a", output.name, href=f"#{ids[output.name]}")}
    yield column_table("Outputs, the tightest first", _OUTPUTS, outputs, cells=links)
    yield from (_output(output, ids[output.name]) for output in outputs)


def _output(output: OutputReport, key: str) -> Html:
    gates = [
        (
            gate.name,
            outcome_badge(gate.outcome),
            gate_number(gate.value),
            gate_number(gate.limit),
            tag("span", gate.text, class_="wrap") if gate.text else "",
        )
        for gate in output.gates
    ]
    return tag(
        "details",
        tag("summary", tag("h3", output.name), " ", outcome_badge(output.outcome), f" {shape_text(output.shape)}, {output.dtype}"),
        tag("p", "Largest jump of the ladder: ", tag("strong", jump(output)), "."),
        table(
            f"Gates of {output.name}; a value up to its limit passes",
            ("gate", "outcome", "value", "limit", "found"),
            gates,
            texts=("outcome", "found"),
        ),
        _facts(
            (
                ("elements", f"{output.elements:,}"),
                ("largest error", number(output.max_abs)),
                ("mean drift", number(output.mean_drift)),
                ("std drift", number(output.std_drift)),
            )
        ),
        _elements(output),
        output_plots(output),
        id=key,
        class_="output",
        open=output.outcome != "pass",
    )


def _elements(output: OutputReport) -> Html:
    if not output.worst_elements:
        return tag("p", f"Worst elements: {NOT_LOOKED_AT}.", class_="absent")
    return column_table(f"Worst elements of {output.name}", ELEMENTS, output.worst_elements)


def _chain(chain: ChainReport) -> Iterator[Html | None]:
    yield tag("p", "The stages wired together, from text and embeddings to logits, each on what the package before it gave.")
    yield _lead(chain.verdict, chain.cause, chain.text)
    yield _list("Not judged", chain.problems)
    yield column_table("rho_rms of each stage alone, and of everything up to and with it", CHAIN, chain.rows)
    tokens = chain.tokens
    yield tag("p", f"Tokens of {tokens.sentences} golden sentences: {tokens.equal} of {tokens.tokens} equal ({tokens.share:.1%}).")
    yield _list("Tokens that differ, unexplained", tokens.unexplained)
    yield _list("Tokens that differ where the reference is undecided", tokens.explained)
    yield from _outputs(tuple(chain.outputs.values()), "c")
    yield from (tag("p", text) for text in ambiguity(chain.samples))
    yield _ambiguous(chain.samples)


def _ambiguous(samples: Samples) -> Html | None:
    if not samples.ambiguous:
        return None
    rows = [(sample.label, number(sample.nearness), str(sample.differing), _in_the_ratios(sample)) for sample in samples.ambiguous]
    columns = ("sample", "distance from a border", "differing elements", "in the ratios")
    return details("Ambiguous samples", table("Ambiguous samples; a distance of 1 is clear", columns, rows, texts=("in the ratios",)))


def _in_the_ratios(sample: AmbiguousSample) -> str:
    if sample.left_out:
        return "no"
    return f"all but {sample.elements_left_out} elements" if sample.elements_left_out else "yes"


def _constants(report: Report) -> Html:
    if not report.constants:
        reason = "none that fp16 does not hold" if report.ops else NOT_LOOKED_AT
        return tag("p", f"Constants: {reason}.", class_="absent")
    rows = [
        (constant.name, constant.op, constant.problem, precise_number(constant.value), f"{constant.elements:,}")
        for constant in report.constants
    ]
    columns = ("constant", "read by", "problem", "worst value", "elements")
    return table("Constants that fp16 does not hold", columns, rows, texts=("read by", "problem"))


def _lead(verdict: Outcome, cause: str | None, text: str) -> Html:
    reason = f" ({cause}) " if cause is not None else " "
    return tag("p", outcome_badge(verdict), tag("span", tag("strong", reason), text), class_=f"lead {verdict}")


def _facts(facts: Sequence[tuple[str, str]]) -> Html:
    return tag("dl", [(tag("dt", name), tag("dd", value)) for name, value in facts])


def _list(title: str, lines: Sequence[str]) -> Html | None:
    return join((tag("h3", title), tag("ul", [tag("li", line) for line in lines]))) if lines else None
