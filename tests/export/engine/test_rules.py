"""Every rule of the engine finds its planted instance at the right op, on the right chips only, and not in the healthy twin."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coreflow.export.engine.chips import CHIPS, find_chip
from coreflow.export.engine.finding import Finding
from coreflow.export.engine.lint import lint_program
from coreflow.export.engine.rule import engine_rules
from coreflow.export.engine.targets import labels
from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.graph import Feature, Program
from coreflow.export.package.mlpackage import read_program
from coreflow.models.errors import ConfigError
from tests.export.engine.planted import PLANTED, ROW, Planted, as_type, half, saved

RULES = {rule.id: rule for rule in engine_rules()}
OF_EDITED_PROGRAMS = {"rank", "state-count", "state-width", "weight-size", "conv-form", "unshared-tables"}
OF_DATA = {"small-products"}  # tests/cli/test_lint_data.py
CASES = [pytest.param(rule, planted, id=f"{rule}-{place}") for rule, cases in PLANTED.items() for place, planted in enumerate(cases)]


def findings_of(rule: str, program: Program, *chips: str) -> list[Finding]:
    return lint_program(program, chips, [RULES[rule]])


@pytest.mark.parametrize(("rule", "planted"), CASES)
def test_a_rule_finds_its_planted_instance_and_not_the_healthy_twin(rule: str, planted: Planted, tmp_path: Path) -> None:
    program = saved(planted.inputs, planted.fault, tmp_path / "planted.mlpackage", planted.target)
    findings = findings_of(rule, program)
    assert {(finding.rule, finding.function, finding.op) for finding in findings} == {(rule, "main", planted.op)}
    assert sorted(chip for finding in findings for chip in finding.chips) == sorted(planted.chips)
    for chip in CHIPS:
        assert [finding.chips for finding in findings_of(rule, program, chip)] == ([(chip,)] if chip in planted.chips else [])
    for finding in findings:
        assert finding.known.text and finding.known.evidence.source and finding.known.evidence.label in labels()
    twin = saved(planted.twin_inputs or planted.inputs, planted.twin, tmp_path / "twin.mlpackage", planted.target)
    assert not findings_of(rule, twin)


def test_every_rule_says_how_it_is_known_and_what_to_do() -> None:
    assert len(RULES) == len(engine_rules())
    assert RULES.keys() == PLANTED.keys() | OF_EDITED_PROGRAMS | OF_DATA
    for rule in RULES.values():
        assert rule.title and rule.known.text and rule.known.evidence.source and rule.remedy
        assert rule.known.evidence.label in labels()
        assert set(rule.chips) <= set(CHIPS)


# --- what coremltools does not write, or not in a second: a healthy program with other values --------------------------------------


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Program:
    package = tmp_path_factory.mktemp("healthy") / "healthy.mlpackage"
    return saved(ROW, lambda mb, x: mb.layer_norm(x=mb.add(x=x, y=half(2, 64)), axes=[-1], name="here"), package)


def with_inputs(program: Program, *inputs: Feature) -> Program:
    return replace(program, interfaces={"main": replace(program.interfaces["main"], inputs=inputs)})


def with_states(program: Program, *states: Feature) -> Program:
    return replace(program, interfaces={"main": replace(program.interfaces["main"], states=states)})


def test_six_axes_are_an_error_on_every_chip(healthy: Program) -> None:
    (graph,) = healthy.functions.values()
    (output,) = graph.outputs
    six = replace(output, shape=(1, 1, 1, 1, 2, 64))
    (norm,) = (op for op in graph.ops if op.type == "layer_norm")
    ops = tuple(replace(op, outputs=(six,)) if op is norm else op for op in graph.ops)
    (finding,) = findings_of("rank", healthy.with_function(replace(graph, ops=ops, outputs=(six,))))
    assert (finding.op, finding.severity, finding.chips, finding.detail) == ("here", "error", CHIPS, "rank 6; at most 5")
    assert not findings_of("rank", healthy)


@pytest.mark.parametrize(("count", "severities"), [(0, []), (1, []), (2, ["note"]), (3, ["error"])], ids=["none", "one", "two", "three"])
def test_states_are_counted(healthy: Program, count: int, severities: list[str]) -> None:
    states = tuple(Feature(f"state_{place}", "state", "float16", (1, 64, 32)) for place in range(count))
    assert [finding.severity for finding in findings_of("state-count", with_states(healthy, *states))] == severities


def test_a_state_of_270_is_found_and_one_of_256_is_not(healthy: Program) -> None:
    def of(width: int) -> list[Finding]:
        return findings_of("state-width", with_states(healthy, Feature("cache", "state", "float16", (1, 1, width))))

    assert [finding.detail for finding in of(270)] == ["cache [1, 1, 270]"] and not of(256)


def test_open_shapes_are_a_warning_and_listed_ones_only_with_layer_norm(healthy: Program) -> None:
    (x,) = healthy.interfaces["main"].inputs
    open_rows = replace(x, ranges=((1, 8), (64, 64)))
    assert [finding.detail for finding in findings_of("open-shape", with_inputs(healthy, open_rows))] == ["input x [2, 64]: 1 to 8"]
    listed = with_inputs(healthy, replace(x, enumerated=((2, 64), (4, 64))))
    assert [finding.severity for finding in findings_of("open-shape", listed)] == ["warning"]
    (graph,) = listed.functions.values()
    without = listed.with_function(replace(graph, ops=tuple(op for op in graph.ops if op.type != "layer_norm")))
    assert [finding.severity for finding in findings_of("open-shape", without)] == ["note"]
    assert not findings_of("open-shape", healthy)


@pytest.mark.parametrize(("megabytes", "severities"), [(900, []), (1100, ["warning"]), (2100, ["error"])])
def test_weights_are_weighed(healthy: Program, megabytes: int, severities: list[str]) -> None:
    """By a constant that says so and takes no memory."""
    (graph,) = healthy.functions.values()
    shape = (megabytes, 500_000)
    (added,) = (value for op in graph.ops if op.type == "add" for value in op.argument("y"))
    large = replace(added, shape=shape, data=np.broadcast_to(np.float16(1), shape))
    program = healthy.with_function(graph.with_values({id(added): large}))
    assert [finding.severity for finding in findings_of("weight-size", program)] == severities


def test_fused_attention_is_an_error_where_it_is_long_or_for_ios_26(tmp_path: Path) -> None:
    def severities(program: Program) -> dict[str, str]:
        return {chip: finding.severity for finding in findings_of("fused-attention", program) for chip in finding.chips}

    (planted,) = PLANTED["fused-attention"]
    short = saved(planted.inputs, planted.fault, tmp_path / "short.mlpackage")
    assert set(severities(short).values()) == {"warning"}
    assert set(severities(replace(short, spec_version=10)).values()) == {"error"}
    long = saved({"query": (1, 1, 512, 64), "key": (1, 1, 512, 64)}, planted.fault, tmp_path / "long.mlpackage")
    assert {chip for chip, severity in severities(long).items() if severity == "error"} == {"M1", "M5"}


def test_a_weight_of_run_time_is_found_where_a_table_refuses_it(tmp_path: Path) -> None:
    inputs = {"x": (1, 8, 16, 16), "weight": (8, 8, 3, 3)}
    program = saved(inputs, lambda mb, x, weight: mb.conv(x=x, weight=weight, name="here"), tmp_path / "run-time.mlpackage")
    assert not findings_of("conv-form", program, "M4")
    assert [finding.op for finding in findings_of("conv-form", program, "M1/macOS14")] == ["here"]


@pytest.mark.parametrize(("scale", "is_shared"), [(1.0, True), (2.0, False)], ids=["one table", "two tables"])
def test_functions_that_share_places_of_a_palette_share_its_table(scale: float, is_shared: bool, tmp_path: Path) -> None:
    ct = quiet_coremltools()

    def part(name: str, factor: float) -> str:
        indices = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64) % 16
        table = (factor * half(1, 1, 16, 1)).astype(np.float16)
        saved(
            ROW,
            lambda mb, x: mb.linear(x=x, weight=mb.constexpr_lut_to_dense(indices=as_type(indices, "uint4"), lut=table, name="palette")),
            tmp_path / f"{name}.mlpackage",
        )
        return str(tmp_path / f"{name}.mlpackage")

    both = ct.utils.MultiFunctionDescriptor()
    both.add_function(part("first", 1.0), src_function_name="main", target_function_name="first")
    both.add_function(part("second", scale), src_function_name="main", target_function_name="second")
    both.default_function_name = "first"
    ct.utils.save_multifunction(both, str(tmp_path / "both.mlpackage"))
    findings = findings_of("unshared-tables", read_program(tmp_path / "both.mlpackage"))
    assert [(finding.function, finding.op_type) for finding in findings] == ([] if is_shared else [("second", "constexpr_lut_to_dense")])


def test_chips_go_by_name_and_a_foreign_one_is_named() -> None:
    families = {"m4": "M4", "M4Pro": "M4", "M1/macOS14": "M1", "H16G": "M4", "M2 Max": "M2", "H19": "H19"}
    assert {name: find_chip(name).family for name in families} == families
    for name in ("banana", "M7", "A17"):
        with pytest.raises(ConfigError, match=f"no chip '{name}'; M1, M2"):
            find_chip(name)
