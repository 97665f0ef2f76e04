"""Every lowering has a law."""

import pytest

from coreflow.runtime.lift.registry import load_lowerings, supported_ops

# Ops that the laws of whole programs contain.
IN_PROGRAMS = {
    "classify", "cond", "while_loop", "make_list", "list_gather", "list_length", "list_read", "list_scatter", "list_write",
    "read_state", "write_state", "coreml_update_state", "constexpr_cast", "quantize", "dequantize",
}  # fmt: skip


def test_every_lowering_has_a_law(request: pytest.FixtureRequest) -> None:
    folder = request.path.parent
    items = [item for item in request.session.items if item.path.parent == folder and isinstance(item, pytest.Function)]
    if {item.path.name for item in items} != {file.name for file in folder.glob("test_*.py")}:
        pytest.skip("needs the whole folder to be collected")
    cases = {item.callspec.params.get("op", item.callspec.params.get("case", "")) for item in items if hasattr(item, "callspec")}
    load_lowerings()
    assert set(supported_ops()) - IN_PROGRAMS - {str(case).partition(" ")[0] for case in cases} == set()
