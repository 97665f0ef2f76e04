"""Ranges of latency and energy against published calls: those that set no figure of ours fall inside."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coreflow.export.engine.latency import Chip, Work, all_chips, chip_named, estimate, latency_of, rate_labels, rate_sources
from coreflow.export.engine.placement import place
from coreflow.export.engine.targets import find_targets
from coreflow.models.errors import ConfigError
from tests.export.engine.test_placement import Chain

CALLS = json.loads((Path(__file__).parent / "latencies.json").read_text())["calls"]
# Those from which a figure of the table was made.
NOT_HELD_OUT = ([1024, 1024, 1024], [256, 1024])


def product(rows: int, inner: int, columns: int) -> Work:
    return Work(
        quantity="matmul",
        flops=2.0 * rows * inner * columns,
        weight_bytes=2.0 * inner * columns,
        moved_bytes=2.0 * rows * (inner + columns),
    )


def convolution(channels: int, extent: int, kernel: int = 3, stride: int = 1) -> Work:
    result = extent // stride
    return Work(
        quantity="conv",
        flops=2.0 * (channels * kernel * result) ** 2,
        weight_bytes=2.0 * (channels * kernel) ** 2,
        moved_bytes=2.0 * channels * (extent**2 + result**2),
    )


def work(call: dict[str, Any]) -> Work:
    if call["kind"] == "matmul":
        return product(*call["shape"])
    if call["kind"] == "conv":
        return convolution(*call["shape"])
    return Work(quantity=call["kind"], moved_bytes=4.0 * math.prod(call["shape"]))


def test_the_calls_of_an_m5_pro_fall_inside_their_ranges() -> None:
    chip = chip_named("M5Pro")
    ranges = [(call, latency_of([work(call)], 1, chip)) for call in CALLS]
    assert len(ranges) == 50
    outside = [call for call, latency in ranges if not latency.low_ms <= call["ms"] <= latency.high_ms]
    assert not outside
    held_out = [latency for call, latency in ranges if call["shape"] not in NOT_HELD_OUT]
    assert len(held_out) > 40
    assert sorted(latency.high_ms / latency.low_ms for latency in held_out)[len(held_out) // 2] < 3, "a range that says something"


@pytest.mark.parametrize(
    ("chip", "works", "ms"),
    [
        ("M1", [product(128, 1024, 1024)], 0.405),
        ("M5Pro", [product(128, 1024, 1024)], 0.086),
        ("M1Max", [product(256, 4096, 4096)], 2.394),
        ("M5Pro", [product(256, 4096, 4096)], 1.293),
        ("M1Max", [convolution(256, 32)] * 16, 1.918),
    ],
)
def test_other_published_calls_fall_inside_their_ranges(chip: str, works: list[Work], ms: float) -> None:
    """ANEForge bench/results, as ane-hardware.md 6.2 gives them."""
    latency = latency_of(works, 1, chip_named(chip))
    assert latency.low_ms <= ms <= latency.high_ms


def vision_transformer(tokens: int = 197, width: int = 768, layers: int = 12) -> list[Work]:
    layer = [product(tokens, width, 3 * width), product(tokens, width, width), product(tokens, width, 4 * width)]
    layer += [product(tokens, 4 * width, width), Work(quantity="matmul", flops=4.0 * tokens**2 * width, moved_bytes=8.0 * tokens * width)]
    return layers * layer


def residual_network() -> list[Work]:
    """The 3 x 3 convolutions of ResNet-18, its stem and its head left out."""
    return [work for channels, extent in ((64, 56), (128, 28), (256, 14), (512, 7)) for work in [convolution(channels, extent)] * 4]


@pytest.mark.parametrize(("works", "millijoule"), [(residual_network(), 2.6), (vision_transformer(), 67.9)], ids=["ResNet-18", "ViT-B/16"])
def test_published_energies_fall_inside_their_ranges(works: list[Work], millijoule: float) -> None:
    """Both on an M2, ane-guide chapter 10."""
    latency = latency_of(works, 1, chip_named("M2Pro"))
    assert latency.low_mj <= millijoule <= latency.high_mj


WORK = st.builds(
    Work,
    quantity=st.sampled_from(["matmul", "conv", "elementwise", "norm"]),
    flops=st.floats(0, 1e12),
    weight_bytes=st.floats(0, 1e9),
    moved_bytes=st.floats(0, 1e9),
)


@given(st.lists(WORK, min_size=1, max_size=6), WORK, st.sampled_from(sorted(all_chips())), st.integers(1, 3))
def test_more_work_takes_no_less_and_the_parts_make_up_the_slow_end(works: list[Work], more: Work, key: str, segments: int) -> None:
    chip = all_chips()[key]
    less, latency = latency_of(works, segments, chip), latency_of([*works, more], segments, chip)
    assert 0 < less.low_ms <= latency.low_ms <= latency.high_ms * (1 + 1e-12)
    assert less.high_ms <= latency.high_ms * (1 + 1e-12) and latency.low_mj <= latency.high_mj
    assert latency.high_ms == pytest.approx(math.fsum(part.high_ms for part in latency.parts))


@pytest.mark.parametrize("chip", all_chips().values(), ids=lambda chip: chip.key)
def test_every_figure_has_a_label_and_a_source(chip: Chip) -> None:
    for figures in chip.figures.values():
        assert figures
        assert all(figure.label in rate_labels() and figure.source in rate_sources() and figure.value > 0 for figure in figures)
    assert find_targets(chip.target)


def test_a_program_on_the_engine_is_counted_by_its_ops() -> None:
    target = find_targets("M4/macOS27")[0]
    latency = estimate(place(Chain((1, 256, 32, 32)).conv(256, 32, 3).conv(256, 32, 3).graph(), target), chip_named("M5Pro"))
    reference = latency_of([convolution(256, 32)] * 2, 1, chip_named("M5Pro"))
    assert (latency.engine_ops, latency.cpu_ops, latency.segments) == (2, 0, 1)
    assert (latency.low_ms, latency.high_ms) == pytest.approx((reference.low_ms, reference.high_ms))


def test_what_stays_on_the_cpu_is_counted_and_not_timed() -> None:
    target = find_targets("M4/macOS27")[0]
    latency = estimate(place(Chain((1, 4, 4, 4)).add("relu", (1, 4, 4, 4)).graph(), target), chip_named("M4"))
    assert (latency.engine_ops, latency.cpu_ops, latency.segments, latency.parts, latency.high_ms) == (0, 1, 0, (), 0.0)


@pytest.mark.parametrize("name", ["m5 pro", "M5Pro", "M5 Max", "m5max"])
def test_a_chip_has_the_names_that_people_write(name: str) -> None:
    assert chip_named(name).key == "M5Pro"


def test_an_unknown_chip_is_named_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match="no figures of a chip 'banana'; there are those of M1Max, M1, M2Pro"):
        chip_named("banana")
