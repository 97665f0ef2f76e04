"""The conditions that an output must meet. They return values and never raise; every one is written so that NaN fails."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coreflow.models.arrays import Array, Bools, Floats
from coreflow.models.spec import TensorSpec
from coreflow.validate.gates.embeddings import embedding_gates
from coreflow.validate.gates.metrics import as_float64, max_abs, non_finite, ratio, relative_rms, rms, snr_db, worst_slice
from coreflow.validate.gates.tolerance import DECISION_FACTOR, FP16_MAX, TRANSLATION, Tolerance, few_elements_factor
from coreflow.validate.report.model import Gate, Outcome, OutputReport, Rung, RungName

# Outputs whose rows are compared with one another, by their names.
_EMBEDDING = re.compile(r"embedding", re.IGNORECASE)
# An output that moves less than this share of its own size, over all its elements and samples, compares nothing.
_CONSTANT = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """One output over all samples; arrays are (samples, ...) and of one shape."""

    name: str
    spec: TensorSpec
    reference: Array
    simulated: Array
    actual: Array
    labels: tuple[str, ...]  # a sample each
    kept: Bools  # (samples,): False where a decision may fall either way, and did
    heuristic: bool = False  # ``simulated`` is ``reference`` plus an assumed error of one size: there was nothing to simulate
    # Of integers that are argmaxes, each element's: the two best scores' distance, and how far fp16 moves scores of its row.
    margins: Array | None = None
    margin_noise: Array | None = None


def judge_output(comparison: Comparison, tolerance: Tolerance, rungs: Mapping[RungName, float]) -> OutputReport:
    """Every gate on one output. ``rungs`` holds the RMS errors of the executions of the ladder."""
    if comparison.spec.dtype == "int32":
        return _judge_integers(comparison)
    exact, simulated, actual = as_float64(comparison.reference), as_float64(comparison.simulated), as_float64(comparison.actual)
    overflowed = _overflowed(exact, actual)
    fine = np.isfinite(actual) & np.isfinite(exact) | (np.isinf(actual) & (actual == exact)) | overflowed
    missing = int(np.count_nonzero(~fine))
    compares = np.isfinite(exact) & ~overflowed
    errors, noise = _difference(actual, exact, compares), _difference(simulated, exact, compares)
    noise = np.where(np.isnan(noise), np.inf, noise)  # a budget without limit, which the ceiling refuses
    kept = comparison.kept
    errors, noise, kept_exact, kept_actual = errors[kept], noise[kept], np.where(compares, exact, 0.0)[kept], actual[kept]
    reference_rms = rms(kept_exact)
    floor = tolerance.floor * tolerance.unit_roundoff * reference_rms
    raw_budget = rms(noise)
    budget = max(raw_budget, floor)
    factor = few_elements_factor(errors.size)
    rho_rms = ratio(rms(errors), budget)
    rho_max = ratio(max_abs(errors), max(max_abs(noise), tolerance.floor * tolerance.unit_roundoff * max_abs(kept_exact)))
    gates = [_finite_gate(missing, int(np.count_nonzero(overflowed)), non_finite(simulated[compares]))]
    reacting = _reacting_gate(kept_exact)
    if reacting is not None:
        gates.append(reacting)
    if kept.any():
        worst = worst_slice(errors, noise, floor)
        where = _where(worst.axis, worst.index, errors.ndim, [label for label, keep in zip(comparison.labels, kept, strict=True) if keep])
        limit = tolerance.rms_pass * factor
        gates.append(Gate(name="rho_rms", outcome=_within(rho_rms, limit, tolerance.rms_warn * factor), value=rho_rms, limit=limit))
        if not comparison.heuristic:  # an assumed error has a size, but neither a largest element nor a worst row
            gates += [
                Gate(
                    name="rho_max",
                    outcome=_within(rho_max, tolerance.max_ratio * factor),
                    value=rho_max,
                    limit=tolerance.max_ratio * factor,
                ),
                Gate(
                    name="rho_slice",
                    outcome=_within(worst.ratio, tolerance.slice_ratio * worst.factor),
                    value=worst.ratio,
                    limit=tolerance.slice_ratio * worst.factor,
                    text=where,
                ),
                _ceiling_gate(raw_budget, reference_rms, tolerance),
            ]
        gates.append(_contract_gate(rms(errors), raw_budget, reference_rms, tolerance))
        if _EMBEDDING.search(comparison.name) and not comparison.heuristic and np.isfinite(kept_actual).all():
            gates += embedding_gates(kept_exact, simulated[kept], kept_actual, tolerance.slice_ratio * factor)
        if "R2" in rungs:
            gates.append(_translation_gate(ratio(rungs["R2"], reference_rms), ratio(rungs.get("R1", 0.0), reference_rms)))
        rho_slice = worst.ratio
    else:
        rho_slice, where = math.nan, ""
    return OutputReport(
        name=comparison.name,
        shape=comparison.spec.shape,
        dtype=comparison.spec.dtype,
        elements=errors.size,
        reference_rms=reference_rms,
        relative_rms=relative_rms(errors, kept_exact),
        snr_db=snr_db(errors, kept_exact),
        budget=budget,
        rho_rms=rho_rms,
        rho_max=rho_max,
        rho_slice=rho_slice,
        worst_slice=where,
        max_abs=max_abs(errors),
        contract=tolerance.contract(reference_rms),
        mean_drift=float(np.mean(errors)) if errors.size else math.nan,
        std_drift=_std_drift(np.where(compares[kept], kept_actual, 0.0), kept_exact),
        non_finite=missing,
        overflowed=int(np.count_nonzero(overflowed)),
        flips=0,
        rungs={rung: Rung(relative_rms=ratio(error, reference_rms), rho=ratio(error, budget)) for rung, error in rungs.items()},
        gates=tuple(gates),
    )


def differing(comparison: Comparison, sample: int, budget: float, factor: float) -> int:
    """How many elements of a sample differ by more than ``factor`` budgets."""
    error = np.abs(as_float64(comparison.actual[sample]) - as_float64(comparison.reference[sample]))
    return int(np.count_nonzero(~(error <= factor * budget)))


def _judge_integers(comparison: Comparison) -> OutputReport:
    """Whole numbers must be equal."""
    exact, actual = comparison.reference[comparison.kept], comparison.actual[comparison.kept]
    errors = as_float64(actual) - as_float64(exact)
    flipped = errors != 0
    flips = int(np.count_nonzero(flipped))
    if comparison.margins is not None and comparison.margin_noise is not None:
        undecided = comparison.margins[comparison.kept] <= DECISION_FACTOR * comparison.margin_noise[comparison.kept]
        explained = int(np.count_nonzero(flipped & undecided))
        text = f"{flips} of {errors.size} differ, {explained} of them where the two best scores are within fp16 noise"
        wrong = flips - explained
    else:
        text, wrong = f"{flips} of {errors.size} differ", flips
    gates = [Gate(name="exact", outcome="pass" if wrong == 0 else "fail", value=wrong, limit=0, text=text)]
    reacting = _reacting_gate(as_float64(exact))
    if reacting is not None:
        gates.append(reacting)
    return OutputReport(
        name=comparison.name,
        shape=comparison.spec.shape,
        dtype=comparison.spec.dtype,
        elements=errors.size,
        reference_rms=rms(exact),
        relative_rms=relative_rms(errors, exact),
        snr_db=snr_db(errors, exact),
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


def _difference(values: Floats, exact: Floats, compares: Bools) -> Floats:
    """``values - exact``, 0 where the reference itself is not finite."""
    with np.errstate(invalid="ignore"):
        return np.where(compares, values - exact, 0.0)


def _std_drift(actual: Floats, exact: Floats) -> float:
    with np.errstate(invalid="ignore"):
        return float(np.std(actual) - np.std(exact)) if actual.size else math.nan


def _overflowed(exact: Floats, actual: Floats) -> Bools:
    """Where the package is infinite because fp16 does not hold the reference's value."""
    return np.isinf(actual) & np.isfinite(exact) & (np.abs(exact) > FP16_MAX) & (np.sign(actual) == np.sign(exact))


def _finite_gate(missing: int, overflowed: int, simulated: int) -> Gate:
    if missing:
        also = f"; torch's own fp16 gives {simulated}: the module overflows in fp16" if simulated else ""
        text = f"{missing} values are NaN or infinite where the reference is not{also}"
        return Gate(name="finite", outcome="fail", value=missing, limit=0, text=text)
    if overflowed:
        text = f"{overflowed} values are beyond {FP16_MAX:.0f}, which fp16 does not hold"
        return Gate(name="finite", outcome="fp16-unsafe", value=overflowed, limit=0, text=text)
    return Gate(name="finite", outcome="pass", value=0, limit=0)


def _reacting_gate(exact: Floats) -> Gate | None:
    """Refuses a reference that is one number throughout, or the same for every sample."""
    size = max_abs(exact) if exact.size else 0.0
    spread = float(np.std(exact)) if exact.size else 0.0
    if not spread > _CONSTANT * size:
        text = "the reference gives one value everywhere: nothing was compared"
        return Gate(name="reacts", outcome="incomplete", value=1, limit=0, text=text)
    if len(exact) > 1 and not max_abs(exact - exact[:1]) > _CONSTANT * size:
        text = "the reference gives the same for all inputs: nothing was compared"
        return Gate(name="reacts", outcome="incomplete", value=1, limit=0, text=text)
    return None


def _translation_gate(wide_error: float, noise: float) -> Gate:
    """A fresh conversion at FLOAT32 in float64 arithmetic: nothing rounds, so what differs was translated wrongly.

    Constants that the converter folds are folded in fp32: the limit is 1e-6, or what fp32 itself loses if that is more.
    """
    limit = max(TRANSLATION, noise)
    text = "" if wide_error <= limit else f"converted at FLOAT32 and computed in float64 it is off by {wide_error:.2g} of the output"
    return Gate(name="translation", outcome=_within(wide_error, limit), value=wide_error, limit=limit, text=text)


def _ceiling_gate(budget: float, reference_rms: float, tolerance: Tolerance) -> Gate:
    share = ratio(budget, reference_rms)
    outcome: Outcome = "pass" if share <= tolerance.ceiling else "fp16-unsafe"
    text = "" if outcome == "pass" else f"torch's own fp16 is off by {share:.1%}: this module loses too much in fp16, whoever executes it"
    return Gate(name="ceiling", outcome=outcome, value=share, limit=tolerance.ceiling, text=text)


def _contract_gate(error_rms: float, budget: float, reference_rms: float, tolerance: Tolerance) -> Gate:
    limit = tolerance.contract(reference_rms)
    if not error_rms <= limit and budget > limit:
        text = f"an RMS error of {error_rms:.2g} breaks the contract of {limit:.2g}, and torch's own fp16 breaks it too"
        return Gate(name="contract", outcome="fp16-unsafe", value=error_rms, limit=limit, text=text)
    return Gate(name="contract", outcome=_within(error_rms, limit), value=error_rms, limit=limit)


def _within(value: float, limit: float, warn: float | None = None) -> Outcome:
    if value <= limit:
        return "pass"
    return "warn" if warn is not None and value <= warn else "fail"


def _where(axis: int, index: int, rank: int, labels: Sequence[str]) -> str:
    """``sample 3`` or ``[:, 17]`` in the tensor's own axes."""
    if axis == 0:
        return labels[index]
    return f"[{', '.join(str(index) if place == axis else ':' for place in range(1, rank))}]"
