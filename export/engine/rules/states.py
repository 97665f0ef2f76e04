"""States: how many, and how wide."""

from collections.abc import Iterator

from coreflow.export.engine.finding import Known
from coreflow.export.engine.rule import Context, EngineRule, Hit
from coreflow.export.engine.targets import Evidence

_GRANULE, _MOST = 32, 2


def _find_count(context: Context) -> Iterator[Hit]:
    count = len(context.interface.states)
    if count > 1:
        yield Hit(detail=f"{count} states", severity="error" if count > _MOST else "note")


def _find_width(context: Context) -> Iterator[Hit]:
    for state in context.interface.states:
        ragged = [extent for extent in state.shape[-2:] if extent > 1 and extent % _GRANULE]
        if ragged:
            yield Hit(detail=f"{state.name} {list(state.shape)}")


RULES = (
    EngineRule(
        id="state-count",
        title="one state is best; two work, and three or more fail when the program runs",
        severity="error",
        known=Known(
            "three failed with status 0x1d at the prediction, though the plan said 100 %; two worked, save for one model on macOS 26",
            Evidence("measured", "CoreML-LLM docs/MLSTATE_PATTERN.md and docs/LFM2_CONVERSION_FINDINGS.md"),
        ),
        remedy="stack the states into one, or pass them in and out",
        finds=_find_count,
    ),
    EngineRule(
        id="state-width",
        title="a state whose last two axes are no multiples of 32",
        severity="warning",
        known=Known(
            "a width of 270 failed, 256 worked; elsewhere padding did not cure error -14",
            Evidence("reported", "coremltools issue 2631; CoreML-LLM docs/EXPERIMENTS.md"),
        ),
        remedy="pad the state to a multiple of 32",
        finds=_find_width,
    ),
)
