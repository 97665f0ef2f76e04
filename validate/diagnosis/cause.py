"""The cause of a failure: the lowest rung that fails by itself."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from coreflow.validate.diagnosis.constants import find_fp16_constants, has_only_weights_of
from coreflow.validate.gates.comparison import Comparison
from coreflow.validate.gates.output import judge_output
from coreflow.validate.gates.tolerance import FP32, LIFTED
from coreflow.validate.ladder.observation import Observation
from coreflow.validate.ladder.opening import OpenPackage
from coreflow.validate.report.model import Cause, OutputReport, RungName

_LOWER_RUNGS: tuple[RungName, ...] = ("R3", "R4")
_SPEAKING_GATES = ("finite", "translation", "program")  # their failure is a cause by itself, and no rung has to be looked at


def find_cause(
    comparisons: Sequence[Comparison],
    outputs: Mapping[str, OutputReport],
    opened: OpenPackage,
    observations: Sequence[Observation],
    *,
    same_ops: bool | None,
    module: nn.Module | None = None,
    has_altered_weights: bool = False,
) -> Cause:
    """The lowest rung that fails by itself.

    R3 fails for wrong weights and for a wrong program: the latter has other ops than a fresh conversion of the reference (``same_ops``
    False), or, where there is no such conversion (None), all its weights are those of ``module`` and fp16 holds its constants.
    """
    failed_gates = {gate.name for output in outputs.values() for gate in output.gates if gate.outcome == "fail"}
    if not failed_gates.isdisjoint(_SPEAKING_GATES):
        return cause_of(failed_gates, opened.last, has_altered_weights=has_altered_weights)
    failing = [comparison for comparison in comparisons if outputs[comparison.name].outcome == "fail"]
    rungs = (rung for rung in _LOWER_RUNGS if _fails_by_itself(rung, failing, opened, observations))
    rung = next(rungs, opened.last)
    wrong_program = rung == "R3" and (not same_ops if same_ops is not None else _has_right_weights(opened, module))
    return cause_of(failed_gates, rung, wrong_program=wrong_program)


def cause_of(failed_gates: Collection[str], rung: RungName, *, wrong_program: bool = False, has_altered_weights: bool = False) -> Cause:
    """The cause that failed gates, the lowest failing ``rung`` and, on R3, a wrong program stand for.

    >>> cause_of({"rho_rms"}, "R3")
    'weights'
    """
    if "program" in failed_gates and "translation" not in failed_gates:  # a fresh conversion is right, and finite
        return "weights" if has_altered_weights else "translation"
    if "finite" in failed_gates:
        return "non-finite"
    if "translation" in failed_gates:
        return "translation"
    if rung == "R3":
        return "translation" if wrong_program else "weights"
    return "fp16" if rung == "R4" else "device"


def _has_right_weights(opened: OpenPackage, module: nn.Module | None) -> bool:
    """Whether all weights are those of ``module``, and fp16 holds all constants."""
    graph = opened.graph
    return module is not None and has_only_weights_of(graph, module) and not find_fp16_constants(graph)


def _fails_by_itself(rung: RungName, failing: Sequence[Comparison], opened: OpenPackage, observations: Sequence[Observation]) -> bool:
    """Whether a rung below the last fails at one of the outputs that the last one fails at."""
    if rung == opened.last or rung not in opened.rungs:
        return False
    tolerance = opened.tolerance if opened.last == "R4" else FP32 if opened.precision == "fp32" else LIFTED
    on_rung = (
        replace(comparison, actual=np.stack([observation.rungs[rung][comparison.name] for observation in observations]))
        for comparison in failing
    )
    return any(judge_output(comparison, tolerance, {}).outcome == "fail" for comparison in on_rung)
