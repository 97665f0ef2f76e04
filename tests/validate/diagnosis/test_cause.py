"""The cause that a failing rung stands for."""

import pytest

from coreflow.validate.diagnosis.cause import cause_of
from coreflow.validate.report.model import Cause, RungName

CASES: dict[str, tuple[set[str], RungName, bool, Cause]] = {
    "a value that is not finite, of the fresh conversion too": ({"finite", "translation", "program"}, "R3", True, "non-finite"),
    "a value that is not finite, of fp16 alone": ({"finite", "rho_rms"}, "R4", False, "non-finite"),
    "a value that is not finite, of another program": ({"finite", "program"}, "R3", True, "translation"),
    "a conversion at FLOAT32 that is off": ({"translation", "rho_rms"}, "R5", False, "translation"),
    "float64 arithmetic, the program as converted": ({"rho_rms"}, "R3", False, "weights"),
    "float64 arithmetic, another program": ({"rho_rms"}, "R3", True, "translation"),
    "fp16 arithmetic": ({"rho_max"}, "R4", False, "fp16"),
    "a device": ({"contract"}, "R5", False, "device"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_cause_is_that_of_the_lowest_failing_rung(case: str) -> None:
    failed_gates, rung, wrong_program, cause = CASES[case]
    assert cause_of(failed_gates, rung, wrong_program=wrong_program) == cause
