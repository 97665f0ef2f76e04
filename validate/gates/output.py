"""One output at the gates: its errors, every condition on them, and the report of both."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from coreflow.models.arrays import Floats
from coreflow.validate.gates.comparison import Comparison, Errors, measure
from coreflow.validate.gates.conditions import (
    ceiling_gate,
    contract_gate,
    finite_gate,
    program_gate,
    reacting_gate,
    reference_gate,
    translation_gate,
    within,
)
from coreflow.validate.gates.embeddings import embedding_gates
from coreflow.validate.gates.metrics import WorstSlice, as_float64, max_abs, ratio, relative_rms, rms, snr_db, worst_slice
from coreflow.validate.gates.tolerance import DECISION_FACTOR, Tolerance, few_elements_factor
from coreflow.validate.report.model import Gate, OutputReport, Rung, RungName

# Outputs whose rows are compared with one another, by their names.
_EMBEDDING = re.compile(r"embedding", re.IGNORECASE)


def judge_output(comparison: Comparison, tolerance: Tolerance, rungs: Mapping[RungName, float]) -> OutputReport:
    """The report on one output, with every gate. ``rungs`` holds the RMS errors of the executions of the ladder."""
    if comparison.spec.dtype == "int32":
        return _judge_integers(comparison)
    errors = measure(comparison, tolerance)
    gates = [finite_gate(errors)]
    if (unusable := reference_gate(comparison)) is not None:
        gates.append(unusable)
    if (reacting := reacting_gate(errors.reference)) is not None:
        gates.append(reacting)
    rho_slice, where = math.nan, ""
    if comparison.kept.any():
        worst = worst_slice(errors.error, errors.noise, errors.floor, errors.shares)
        rho_slice, where = worst.ratio, _where(worst, errors.error.ndim, comparison.kept_labels)
        gates += _error_gates(comparison, errors, tolerance, worst, where)
        if "R2" in rungs:
            fp32_error, noise, budget = (ratio(size, errors.reference_rms) for size in (rungs["R2"], rungs.get("R1", 0.0), errors.budget))
            gates.append(translation_gate(fp32_error, noise, min(budget, tolerance.ceiling)))
        if "R2s" in rungs:
            gates.append(program_gate(*(ratio(rungs.get(rung, 0.0), errors.reference_rms) for rung in ("R2s", "R1", "R2"))))
    return OutputReport(
        name=comparison.name,
        shape=comparison.spec.shape,
        dtype=comparison.spec.dtype,
        elements=int(comparison.counted.sum()),
        reference_rms=errors.reference_rms,
        relative_rms=relative_rms(errors.error, errors.reference),
        snr_db=snr_db(errors.error, errors.reference),
        budget=errors.budget,
        rho_rms=errors.rho_rms,
        rho_max=errors.rho_max,
        rho_slice=rho_slice,
        worst_slice=where,
        max_abs=max_abs(errors.error),
        contract=tolerance.contract * errors.reference_rms,
        mean_drift=_mean(errors.error),
        std_drift=_std_drift(np.where(errors.comparable, errors.actual, 0.0), errors.reference),
        non_finite=errors.missing,
        overflowed=errors.overflowed,
        flips=0,
        rungs={
            rung: Rung(relative_rms=ratio(error, errors.reference_rms), rho=ratio(error, errors.budget)) for rung, error in rungs.items()
        },
        gates=tuple(gates),
    )


def _error_gates(comparison: Comparison, errors: Errors, tolerance: Tolerance, worst: WorstSlice, where: str) -> list[Gate]:
    """The gates on the size of errors; ``where`` is the place of the ``worst`` slice in words."""
    factor = few_elements_factor(errors.freedom)
    limit = tolerance.rms_pass * factor
    gates = [
        _ratio_gate("rho_rms", errors.rho_rms, limit, warn=tolerance.rms_warn * factor),
        _ratio_gate("rho_max", errors.rho_max, tolerance.max_ratio * factor),
        _ratio_gate("rho_slice", worst.ratio, tolerance.slice_ratio * worst.factor, text=where),
        ceiling_gate(errors, tolerance),
        contract_gate(errors, tolerance, limit),
    ]
    if _EMBEDDING.search(comparison.name) and np.isfinite(errors.actual).all():
        gates += embedding_gates(errors.reference, errors.simulated, errors.actual, tolerance.slice_ratio * factor)
    return gates


def _ratio_gate(name: str, value: float, limit: float, *, warn: float | None = None, text: str = "") -> Gate:
    return Gate(name=name, outcome=within(value, limit, warn), value=value, limit=limit, text=text)


def _judge_integers(comparison: Comparison) -> OutputReport:
    """The report on an output of whole numbers, which must be equal."""
    kept = comparison.kept
    reference, actual = comparison.reference[kept], comparison.actual[kept]
    errors = as_float64(actual) - as_float64(reference)
    flipped = (errors != 0) & comparison.counted
    flips = int(np.count_nonzero(flipped))
    if comparison.margins is not None and comparison.margin_noise is not None:
        undecided = comparison.margins[kept] <= DECISION_FACTOR * comparison.margin_noise[kept]
        explained = int(np.count_nonzero(flipped & undecided))
        text = f"{flips} of {errors.size} differ, {explained} of them where the two best scores are within fp16 noise"
        unexplained = flips - explained
    else:
        text, unexplained = f"{flips} of {errors.size} differ", flips
    gates = [Gate(name="exact", outcome="pass" if unexplained == 0 else "fail", value=unexplained, limit=0, text=text)]
    if (reacting := reacting_gate(as_float64(reference))) is not None:
        gates.append(reacting)
    return OutputReport(
        name=comparison.name,
        shape=comparison.spec.shape,
        dtype=comparison.spec.dtype,
        elements=errors.size,
        reference_rms=rms(reference),
        relative_rms=relative_rms(errors, reference),
        snr_db=snr_db(errors, reference),
        budget=0.0,
        rho_rms=ratio(rms(errors), 0.0),
        rho_max=ratio(max_abs(errors), 0.0),
        rho_slice=0.0,
        worst_slice="",
        max_abs=max_abs(errors),
        contract=0.0,
        mean_drift=float(np.mean(errors)) if errors.size else math.nan,
        std_drift=0.0,
        non_finite=0,
        overflowed=0,
        flips=flips,
        rungs={},
        gates=tuple(gates),
    )


def _mean(errors: Floats) -> float:
    """NaN where there are none, and of infinite ones of both signs."""
    with np.errstate(invalid="ignore"):
        return float(np.mean(errors)) if errors.size else math.nan


def _std_drift(actual: Floats, reference: Floats) -> float:
    with np.errstate(invalid="ignore"):
        return float(np.std(actual) - np.std(reference)) if actual.size else math.nan


def _where(worst: WorstSlice, rank: int, labels: Sequence[str]) -> str:
    """``sample 3`` or ``[:, 17]`` in the tensor's own axes."""
    if worst.axis == 0:
        return labels[worst.index]
    return f"[{', '.join(str(worst.index) if place == worst.axis else ':' for place in range(1, rank))}]"
