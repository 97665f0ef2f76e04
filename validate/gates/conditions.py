"""Conditions on an output, one per gate. They return values and never raise; every one is written so that NaN fails."""

import math

import numpy as np

from coreflow.models import fp16
from coreflow.models.arrays import Floats
from coreflow.validate.gates.comparison import Comparison, Errors
from coreflow.validate.gates.metrics import as_float64, max_abs, ratio, rms
from coreflow.validate.gates.tolerance import CONVERTERS_SHARE, TRANSLATION, Tolerance
from coreflow.validate.report.model import Gate, Outcome

# An output that moves less than this share of its own size, over all its elements and samples, compares nothing.
_CONSTANT = 1e-6


def finite_gate(errors: Errors) -> Gate:
    """Every value is finite where the reference is, but for what fp16 does not hold."""
    if errors.missing:
        also = f"; torch's own fp16 gives {errors.simulated_missing}: the module overflows in fp16" if errors.simulated_missing else ""
        wrong = (
            "finite where the reference is infinite" if np.isfinite(errors.actual).all() else "NaN or infinite where the reference is not"
        )
        text = f"{errors.missing} values are {wrong}{also}"
        return Gate(name="finite", outcome="fail", value=errors.missing, limit=0, text=text)
    if errors.overflowed:
        text = f"{errors.overflowed} values are beyond {fp16.MAX:.0f}, which fp16 does not hold"
        return Gate(name="finite", outcome="fp16-unsafe", value=errors.overflowed, limit=0, text=text)
    return Gate(name="finite", outcome="pass", value=0, limit=0)


def reference_gate(comparison: Comparison) -> Gate | None:
    """Refuses a reference that is NaN somewhere, or finite nowhere in some sample; None for all others."""
    rows = as_float64(comparison.reference).reshape(len(comparison.reference), -1)
    missing = np.isnan(rows)
    silent = missing.any(1) | ~np.isfinite(rows).any(1)
    if not silent.any():
        return None
    first, labels = int(np.argmax(silent)), comparison.labels
    nature = f"NaN in {int(missing[first].sum())} of {rows.shape[1]} values" if missing[first].any() else "infinite throughout"
    text = f"the reference itself is {nature} of {labels[first]}"
    if silent.sum() > 1:
        text += f", and not finite in {int(silent.sum()) - 1} more of {len(rows)} samples"
    return Gate(name="reference", outcome="incomplete", value=int(silent.sum()), limit=0, text=f"{text}: nothing can be compared there")


def reacting_gate(reference: Floats) -> Gate | None:
    """Refuses a reference that is one number throughout, or the same for every sample; None for all others."""
    size = max_abs(reference) if reference.size else 0.0
    spread = float(np.std(reference)) if reference.size else 0.0
    if not spread > _CONSTANT * size:
        text = "the reference gives one value everywhere: nothing was compared"
        return Gate(name="reacts", outcome="incomplete", value=1, limit=0, text=text)
    if len(reference) > 1 and not max_abs(reference - reference[:1]) > _CONSTANT * size:
        text = "the reference gives the same for all inputs: nothing was compared"
        return Gate(name="reacts", outcome="incomplete", value=1, limit=0, text=text)
    return None


def translation_gate(fp32_error: float, noise: float, budget: float) -> Gate:
    """A fresh conversion at FLOAT32 in float64 arithmetic: nothing rounds, so what differs the converter translates wrongly.

    Constants that the converter folds are folded in fp32: the limit is 1e-6, or what fp32 itself loses if that is more. Beyond it, an
    error that is small beside the ``budget`` is a warning: every conversion of this module has it. (All are shares of the output.)
    """
    limit = max(TRANSLATION, noise)
    outcome = within(fp32_error, limit, max(limit, CONVERTERS_SHARE * budget))
    text = "" if outcome == "pass" else f"converted at FLOAT32 and computed in float64 it is off by {fp32_error:.2g} of the output"
    if outcome == "warn":
        text = f"{text}: the converter's, and less than a tenth of what fp16 may cost"
    return Gate(name="translation", outcome=outcome, value=fp32_error, limit=limit, text=text)


def program_gate(error: float, noise: float, fp32_error: float) -> Gate:
    """The saved program in float64 with the reference's own weights: nothing is rounded, so what differs it computes otherwise.

    ``fp32_error`` is what a fresh conversion is off by: what both share is the converter's, which the gate of that one judges.
    """
    limit = max(TRANSLATION, noise, 2 * fp32_error)
    text = (
        ""
        if error <= limit
        else f"with weights that nothing rounded, computed in float64, the saved program is off by {error:.2g} of the output"
    )
    return Gate(name="program", outcome=within(error, limit), value=error, limit=limit, text=text)


def ceiling_gate(errors: Errors, tolerance: Tolerance) -> Gate:
    """The budget itself is small enough: the module keeps its meaning in fp16, on any backend."""
    share = ratio(errors.noise_rms, errors.reference_rms)
    outcome: Outcome = "pass" if share <= tolerance.ceiling else "fp16-unsafe"
    text = f"fp16 itself is off by {share:.1%}: this module loses too much in fp16, whoever executes it"
    if errors.simulated_missing:
        text = f"fp16 itself overflows: {errors.simulated_missing} of its values are infinite or NaN where the reference is not"
    return Gate(name="ceiling", outcome=outcome, value=share, limit=tolerance.ceiling, text="" if outcome == "pass" else text)


def contract_gate(errors: Errors, tolerance: Tolerance, rho_limit: float) -> Gate:
    """The error is within the contract. Where torch's own fp16 breaks it too, or makes errors as large, the package is not to blame.

    ``rho_limit`` is the limit of ``rho_rms``; without one the caller judges by the contract alone.
    """
    error_rms, limit = rms(errors.error), tolerance.contract * errors.reference_rms
    if error_rms > limit and (errors.noise_rms > limit or (math.isfinite(rho_limit) and errors.rho_rms <= rho_limit)):
        shares = [f"{100 * share:.3g} %" for share in (ratio(error_rms, errors.reference_rms), tolerance.contract)]
        text = f"an error of {shares[0]} breaks the contract of {shares[1]}, and fp16 itself makes errors of that size too"
        return Gate(name="contract", outcome="fp16-unsafe", value=error_rms, limit=limit, text=text)
    return Gate(name="contract", outcome=within(error_rms, limit), value=error_rms, limit=limit)


def within(value: float, limit: float, warn: float | None = None) -> Outcome:
    """Pass up to ``limit``, a warning up to ``warn``, and a failure beyond and for NaN."""
    if value <= limit:
        return "pass"
    return "warn" if warn is not None and value <= warn else "fail"
