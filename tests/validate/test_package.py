"""One package against its reference: what the report says, which cause a fault has, and what must not be mistaken for a fault."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export.bundle import build
from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Array
from coreflow.models.errors import BundleError, ConfigError, InputError
from coreflow.models.spec import TensorSpec
from coreflow.validate.gates.tolerance import LIFTED
from coreflow.validate.package import validate
from coreflow.validate.report.model import exit_code_of

if TYPE_CHECKING:
    from tests.validate.conftest import Converted


def test_the_report_describes_the_comparison(converted: "Converted") -> None:
    given = {"x": np.random.default_rng(9).standard_normal((1, 16, 64)).astype(np.float32)}
    kept = given["x"].copy()
    report = validate(converted.package, converted.recipe(), [given])
    assert (report.backend, report.numerics, report.precision) == ("lifted", "fp16", "fp16")
    assert report.samples.seeds == tuple(range(8)) and report.samples.given == 1 and report.samples.total == 9
    assert report.outputs["y"].elements == 9 * 16 * 64
    assert len(report.digest) == 64 and report.weights_digest
    release = torch.__version__.partition("+")[0]  # what a build adds (+cpu, +cu130) stands in the metadata of some wheels only
    assert report.versions["torch"].partition("+")[0] == release
    np.testing.assert_array_equal(given["x"], kept)


def test_a_plain_module_and_inputs_are_enough(converted: "Converted") -> None:
    random = np.random.default_rng(0)
    inputs = [{"x": random.standard_normal((1, 16, 64)).astype(np.float16)} for _ in range(3)]
    report = validate(converted.package, converted.network, inputs)
    assert report.verdict == "pass" and (report.samples.drawn, report.samples.given) == (0, 3)
    drawn = validate(converted.package, converted.network)
    assert drawn.verdict == "pass" and drawn.samples.drawn == 8


def convert(module: nn.Module, tmp_path: Path, *outputs: str, **inputs: TensorSpec) -> tuple[Path, Recipe]:
    recipe = Recipe(name="module", module=module.eval(), inputs=inputs, outputs=outputs)
    return build(recipe, tmp_path), recipe


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(x)


def test_other_names_orders_and_shapes_are_structure(tmp_path: Path) -> None:
    module = Pair()
    package, recipe = convert(module, tmp_path, "a", "b", x=TensorSpec((2, 8)))
    assert validate(package, recipe).verdict == "pass"
    for wrong in (
        Recipe(name="module", module=module, inputs=recipe.inputs, outputs=("b", "a")),
        Recipe(name="module", module=module, inputs={"z": TensorSpec((2, 8))}, outputs=("a", "b")),
        Recipe(name="module", module=module, inputs={"x": TensorSpec((1, 8))}, outputs=("a", "b")),
    ):
        report = validate(package, wrong)
        assert (report.verdict, report.cause, report.exit_code) == ("fail", "structure", 3), report.text
    for other in (module.a, nn.Linear(8, 3)):
        report = validate(package, other)
        assert (report.verdict, report.cause, report.exit_code) == ("fail", "structure", 3)
        assert "outputs" in report.text


class Aging(nn.Module):
    def forward(self, x: Tensor, age: Tensor) -> Tensor:
        return torch.tanh(x) * (1 + 0.1 * age)


@pytest.mark.slow
def test_a_number_that_all_elements_have_in_them_is_no_fault(tmp_path: Path) -> None:
    """The program holds 0.1 as fp16 does; rounded behind it or before it, 0.7 is another number, and no mean over elements helps."""
    sides = {"x": TensorSpec((1, 64, 64)), "age": TensorSpec((1, 1, 1))}
    package, recipe = convert(Aging(), tmp_path, "y", **sides)
    report = validate(package, recipe, draw=lambda seed: {"x": recipe.inputs_for(seed)["x"], "age": np.full((1, 1, 1), 7, np.float16)})
    assert report.verdict == "pass" and report.outputs["y"].rho_rms == pytest.approx(1, abs=0.02), report.text


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0 + 2


class Deaf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0 + torch.arange(8.0)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("module", [Constant(), Deaf()], ids=["constant", "deaf to its inputs"])
def test_a_reference_that_compares_nothing_is_incomplete(module: nn.Module, tmp_path: Path) -> None:
    report = validate(*convert(module, tmp_path, "y", x=TensorSpec((2, 8))))
    assert (report.verdict, report.cause, report.exit_code) == ("incomplete", None, 5)
    assert "nothing was compared" in report.text


class Rare(nn.Module):
    """A second output that moves only where a number is large, as in one seed of twenty."""

    def forward(self, x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(x), x * (gate > 0.5).to(x.dtype)


def test_more_seeds_are_drawn_for_an_output_that_never_reacted(tmp_path: Path) -> None:
    """In the first eight seeds the reference gives zeros: nothing was compared, and the verdict was incomplete."""
    package, recipe = convert(Rare(), tmp_path, "y", "z", x=TensorSpec((2, 8)), gate=TensorSpec((1, 1)))

    def draw(seed: int) -> dict[str, Array]:
        return {"x": recipe.inputs_for(seed)["x"], "gate": np.full((1, 1), seed == 11, np.float16)}

    report = validate(package, recipe, draw=draw)
    assert report.samples.seeds == tuple(range(16)) and report.verdict == "pass", report.text


class Overflowing(nn.Module):
    """Within range at both ends, beyond it between them."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 300) * (x * 300) / 9000


def test_an_overflow_inside_is_not_finite_and_says_that_torch_overflows_too(tmp_path: Path) -> None:
    report = validate(*convert(Overflowing(), tmp_path, "y", x=TensorSpec((4, 64))))
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "non-finite", 3)
    assert "the module overflows in fp16" in report.text


class Cancelling(nn.Module):
    """Loses its value in fp16, whoever executes it."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 0.01 + 1000) - 1000


def test_a_module_that_fp16_cannot_hold_is_unsafe(tmp_path: Path) -> None:
    report = validate(*convert(Cancelling(), tmp_path, "y", x=TensorSpec((4, 64))))
    assert (report.verdict, report.cause, report.exit_code) == ("fp16-unsafe", None, 6)
    assert {gate.name for gate in report.outputs["y"].failed_gates} == {"ceiling", "contract"}


def test_an_output_of_integers_is_compared_exactly(tmp_path: Path) -> None:
    class Argmax(nn.Module):
        def __init__(self, sign: int) -> None:
            super().__init__()
            self.sign = sign

        def forward(self, x: Tensor) -> Tensor:
            return (self.sign * x).argmax(-1).to(torch.int32)

    package, recipe = convert(Argmax(1), tmp_path, "best", x=TensorSpec((4, 64)))
    assert validate(package, recipe).verdict == "pass"
    report = validate(package, Argmax(-1))
    assert report.verdict == "fail" and report.outputs["best"].flips > 20


class Threshold(nn.Module):
    """One more where a mixture of the inputs is a half or above: a decision that fp16 noise may turn."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.mix = nn.Linear(64, 64)
        self.gain = gain
        with torch.no_grad():
            self.mix.weight.copy_(torch.from_numpy(MIXTURE))
            self.mix.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(x)
        return (mixed >= 0.5).to(mixed.dtype) * self.gain + mixed

    def decision_margins(self, x: Tensor) -> Tensor:
        return (self.mix(x) - 0.5).abs().unsqueeze(1)


class Undivided(Threshold):
    """It tells one margin of all its decisions."""

    def decision_margins(self, x: Tensor) -> Tensor:
        return super().decision_margins(x).amin(-1)


MIXTURE = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))[0]


def draw_near(seeds: set[int]) -> Callable[[int], dict[str, Array]]:
    """Mixtures away from the border; in ``seeds`` many lie within fp16 noise of it."""

    def draw(seed: int) -> dict[str, Array]:
        random = np.random.default_rng(seed)
        mixed = np.where(random.random(64) < 0.5, random.uniform(-1, 0.4, 64), random.uniform(0.6, 1, 64))
        if seed in seeds:
            mixed[:32] = 0.5
        return {"x": (mixed @ MIXTURE)[None].astype(np.float16)}

    return draw


@pytest.fixture(scope="module")
def threshold(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    return convert(Threshold(), tmp_path_factory.mktemp("threshold"), "y", x=TensorSpec((1, 64)))


def test_elements_whose_decisions_turn_are_counted_and_left_out(threshold: tuple[Path, Recipe]) -> None:
    report = validate(*threshold, draw=draw_near({1, 5}))
    assert report.verdict == "pass", report.text
    assert [sample.label for sample in report.samples.ambiguous] == ["seed 1", "seed 5"]
    assert all(sample.nearness < 1 and not sample.left_out and sample.differing > 0 for sample in report.samples.ambiguous)
    left_out = sum(sample.elements_left_out for sample in report.samples.ambiguous)
    assert 0 < left_out <= 2 * 32 and report.outputs["y"].elements == 8 * 64 - left_out


def test_the_same_flips_fail_where_no_margin_explains_them(threshold: tuple[Path, Recipe]) -> None:
    class Silent(Threshold):
        decision_margins = None  # type: ignore[assignment]

    report = validate(threshold[0], Silent(), draw=draw_near({1, 5}))
    assert report.verdict in ("fail", "fp16-unsafe")


def test_samples_are_left_out_whole_where_no_decision_is_an_elements_own(threshold: tuple[Path, Recipe]) -> None:
    report = validate(threshold[0], Undivided(), draw=draw_near({1, 5}))
    assert report.verdict == "pass", report.text
    assert [(sample.label, sample.left_out, sample.elements_left_out) for sample in report.samples.ambiguous] == [
        ("seed 1", True, 0),
        ("seed 5", True, 0),
    ]
    assert report.outputs["y"].elements == 6 * 64


def test_an_element_in_every_sample_leaves_enough_to_judge_by(threshold: tuple[Path, Recipe]) -> None:
    """All samples were left out before, and the verdict was open."""
    report = validate(*threshold, draw=draw_near(set(range(64))))
    assert report.verdict == "pass" and report.samples.seeds == tuple(range(8)), report.text
    assert len(report.samples.ambiguous) == 8 and report.samples.left_out == 0


def test_more_seeds_are_drawn_until_enough_are_clear(threshold: tuple[Path, Recipe]) -> None:
    report = validate(threshold[0], Undivided(), draw=draw_near({0, 1, 2, 8, 9}))
    assert report.verdict == "pass" and report.samples.seeds == tuple(range(8))
    drawn = validate(threshold[0], Undivided(), draw=draw_near(set(range(6)) | {9}))
    assert len(drawn.samples.seeds) == 16 and drawn.samples.left_out == 7
    assert drawn.verdict == "pass" and drawn.outputs["y"].elements == 9 * 64


def test_the_verdict_is_open_when_every_decision_is_on_the_border(threshold: tuple[Path, Recipe]) -> None:
    report = validate(threshold[0], Undivided(), draw=draw_near(set(range(64))))
    assert (report.verdict, report.exit_code, len(report.samples.seeds)) == ("incomplete", 5, 64)
    assert "64 of 64 samples a decision within fp16 noise" in report.text


@pytest.mark.slow
def test_ambiguity_hides_no_fault(threshold: tuple[Path, Recipe]) -> None:
    """The package's sum is off by a little everywhere: the clear samples show it."""
    package, _ = threshold
    wrong = Threshold()
    with torch.no_grad():
        wrong.mix.bias.add_(0.004)
    for near in (set(), {1, 5}, {0, 1, 2, 3, 4, 5}):
        report = validate(package, wrong, draw=draw_near(near))
        assert (report.verdict, report.cause) == ("fail", "weights"), near


def test_a_decision_far_from_its_border_must_not_fall_otherwise(threshold: tuple[Path, Recipe]) -> None:
    report = validate(threshold[0], Threshold(gain=0.9), draw=draw_near({1}))
    assert (report.verdict, report.cause) == ("fail", "translation")


@pytest.mark.parametrize(
    ("verdict", "cause", "code"),
    [
        ("pass", None, 0), ("warn", None, 0), ("fail", "weights", 1), ("fail", "fp16", 1), ("fail", "device", 1), ("fail", "structure", 3),
        ("fail", "non-finite", 3), ("fail", "translation", 4), ("incomplete", None, 5), ("fp16-unsafe", None, 6),
    ],
)  # fmt: skip
def test_exit_codes(verdict: str, cause: str | None, code: int) -> None:
    assert exit_code_of(verdict, cause) == code  # type: ignore[arg-type]


def test_strict_makes_a_warning_a_failure() -> None:
    assert exit_code_of("warn", None, strict=True) == 1 and exit_code_of("pass", None, strict=True) == 0


def test_a_program_that_is_right_only_in_fp64_has_fp16_as_its_cause(converted: "Converted") -> None:
    """With limits between the error of the weights alone and that of all of fp16, only the arithmetic is left to blame."""
    between = replace(LIFTED, rms_pass=0.8, rms_warn=0.8)
    strict = validate(converted.package, converted.recipe(), tolerance=between)
    assert (strict.verdict, strict.cause) == ("fail", "fp16")
    assert "in wide arithmetic the program is right" in strict.text


def test_fp32_packages_are_compared_within_fp32_budgets(tmp_path: Path) -> None:
    module = Pair()
    recipe = Recipe(name="pair", module=module, inputs={"x": TensorSpec((2, 8), "float32")}, outputs=("a", "b"), precision="fp32")
    package = build(recipe, tmp_path)
    report = validate(package, recipe)
    assert (report.verdict, report.precision) == ("pass", "fp32"), report.text
    with torch.no_grad():
        module.a.weight[0, 0] += 2e-4
    assert validate(package, recipe).verdict == "fail"


def test_usage_errors_are_raised(converted: "Converted", tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such package"):
        validate(tmp_path / "none.mlpackage", converted.network)
    with pytest.raises(InputError, match="missing 'x'"):
        validate(converted.package, converted.network, [{"y": np.zeros(3)}])
    with pytest.raises(ConfigError, match="does not run"):
        validate(converted.package, nn.Linear(3, 3))
