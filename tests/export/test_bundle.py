"""A bundle is whole or it is not there, whatever happens while it is written."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from coreflow.export import Recipe, TensorSpec, build
from coreflow.export.bundle import BundleDone, StageDone, export_bundle
from coreflow.export.package.manifest import read_manifest
from coreflow.models.errors import BundleError, ConfigError, ExportError
from coreflow.runtime import load_model


def recipe(name: str = "head", seed: int = 0, module: nn.Module | None = None) -> Recipe:
    torch.manual_seed(seed)
    module = module or nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8))
    return Recipe(name=name, module=module, inputs={"x": TensorSpec((1, 16))}, outputs=("y",))


def export(out: Path, *recipes: Recipe, jobs: int = 1) -> tuple[list[StageDone], BundleDone]:
    events = list(export_bundle(recipes, out, jobs=jobs))
    assert isinstance(events[-1], BundleDone)
    return [event for event in events if isinstance(event, StageDone)], events[-1]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "toy"
    export(out, recipe("first", 0), recipe("second", 1), jobs=2)
    return out


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "toy"))


def test_values_of_inputs_are_in_the_manifest_and_in_the_package(tmp_path: Path) -> None:
    class Gated(nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return x * mask

    inputs = {"x": TensorSpec((1, 4)), "mask": TensorSpec((1, 4), values=(0, 1))}
    _, done = export(tmp_path / "toy", Recipe(name="gated", module=Gated(), inputs=inputs, outputs=("y",)), recipe())
    stages = read_manifest(done.path).stages
    gated, head = (load_model(done.path / stages[name].package, "lifted") for name in ("gated", "head"))
    assert stages["gated"].inputs == gated.inputs == inputs
    assert "coreflow.values" in gated.metadata["user"] and "coreflow.values" not in head.metadata["user"]


def test_a_built_package_computes_the_outputs_of_its_module(tmp_path: Path) -> None:
    made = recipe()
    package = build(made, tmp_path)
    assert package == tmp_path / "head.mlpackage"
    inputs = made.inputs_for(3)
    expected = made.module(torch.from_numpy(inputs["x"]).float()).detach().numpy()
    np.testing.assert_allclose(load_model(package, "lifted").predict(inputs)["y"], expected, atol=2e-3)


def test_building_again_replaces_the_package_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    build(recipe(seed=0), tmp_path)
    before = contents(tmp_path)
    build(recipe(seed=1), tmp_path)
    after = contents(tmp_path)
    assert before.keys() == after.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["head.mlpackage"]
    assert (
        before["head.mlpackage/Data/com.apple.CoreML/weights/weight.bin"]
        != after["head.mlpackage/Data/com.apple.CoreML/weights/weight.bin"]
    )


@pytest.mark.slow
def test_stages_converted_in_parallel_are_those_converted_alone(bundle: Path, tmp_path: Path) -> None:
    _, alone = export(tmp_path / "alone", recipe("first", 0), recipe("second", 1))
    together = read_manifest(bundle)
    assert list(together.stages) == ["first", "second"]
    for name, stage in alone.manifest.stages.items():
        assert together.stages[name].fingerprint == stage.fingerprint
        weights = "Data/com.apple.CoreML/weights/weight.bin"
        assert (bundle / together.stages[name].package / weights).read_bytes() == (alone.path / stage.package / weights).read_bytes()


def test_only_changed_stages_are_converted_again(bundle: Path) -> None:
    before = contents(bundle)
    stages, done = export(bundle, recipe("first", 0), recipe("second", 7))
    assert {stage.stage: stage.reused for stage in stages} == {"first": True, "second": False}
    kept = done.manifest.stages["first"].package
    assert {name: data for name, data in before.items() if name.startswith(kept)} == {
        name: data for name, data in contents(bundle).items() if name.startswith(kept)
    }
    assert {path.name for path in bundle.iterdir()} == {"README.md", "manifest.json", "packages"}
    read_manifest(bundle)


def test_the_path_of_a_package_is_its_name(bundle: Path) -> None:
    _, done = export(bundle, recipe("first", 0), recipe("third", 3))
    assert {name: stage.package for name, stage in done.manifest.stages.items()} == {
        "first": "packages/first.mlpackage",
        "third": "packages/third.mlpackage",
    }
    assert sorted(path.name for path in (bundle / "packages").iterdir()) == ["first.mlpackage", "third.mlpackage"]
    with pytest.raises(ConfigError, match="recipes Third and third differ in case alone"):
        export(bundle, recipe("third", 3), recipe("Third", 4))


def test_a_bundle_of_an_earlier_version_is_read_and_its_packages_are_kept(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    for name in ("first", "second"):
        (bundle / "packages" / f"00{name}").mkdir()
        (bundle / f"packages/{name}.mlpackage").rename(bundle / f"packages/00{name}/{name}.mlpackage")
    text = json.dumps(manifest).replace("packages/first", "packages/00first/first").replace("packages/second", "packages/00second/second")
    (bundle / "manifest.json").write_text(text)
    read_manifest(bundle)
    stages, done = export(bundle, recipe("first", 0), recipe("second", 7))
    assert {stage.stage: stage.reused for stage in stages} == {"first": True, "second": False}
    assert sorted(path.name for path in (bundle / "packages").iterdir()) == ["first.mlpackage", "second.mlpackage"]
    assert read_manifest(bundle) == done.manifest


def test_a_damaged_package_is_converted_again(bundle: Path) -> None:
    weights = next(bundle.glob("packages/first.mlpackage/Data/com.apple.CoreML/weights/weight.bin"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    stages, _ = export(bundle, recipe("first", 0), recipe("second", 1))
    assert {stage.stage: stage.reused for stage in stages} == {"first": False, "second": True}
    read_manifest(bundle)


class Unconvertible(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.i0(x)


def test_a_stage_that_does_not_convert_leaves_the_bundle_as_it_was(bundle: Path) -> None:
    before = contents(bundle)
    with pytest.raises(ExportError, match="second: the converter gave up"):
        export(bundle, recipe("first", 5), recipe("second", module=Unconvertible()))
    after = contents(bundle)
    assert {name: after.get(name) for name in before} == before
    read_manifest(bundle)


def test_a_bundle_made_by_a_newer_coreflow_is_not_overwritten(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    before = contents(bundle)
    with pytest.raises(BundleError, match="schema 99"):
        export(bundle, recipe("third"))
    assert contents(bundle) == before


def test_a_folder_of_other_things_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match="not a bundle's"):
        export(tmp_path, recipe())
    with pytest.raises(BundleError, match="is a file"):
        export(tmp_path / "thesis.tex", recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_stages_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two recipes are named head"):
        export(tmp_path / "toy", recipe(), replace(recipe(), target="iOS18"))
    with pytest.raises(ConfigError, match="no recipe"):
        export(tmp_path / "toy")


def test_one_export_at_a_time_writes_a_bundle(bundle: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (bundle / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BundleError, match="another export"):
            export(bundle, recipe("first", 9))
    export(bundle, recipe("first", 0))


@contextlib.contextmanager
def small_disk(folder: Path, size_kib: int) -> Iterator[Path]:
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_full_disk_is_one_clear_error_and_the_old_bundle_stays(tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 2000), nn.Linear(2000, 8))
    with small_disk(tmp_path / "disk", 200) as disk:
        export(disk / "toy", recipe("head"))
        before = contents(disk / "toy")
        with pytest.raises(ExportError, match="No space left on device"):
            export(disk / "toy", recipe("head", module=layers))
        assert contents(disk / "toy") == before
        read_manifest(disk / "toy")


def kill(folder: Path, *arguments: str) -> list[dict[str, object]]:
    program = Path(__file__).with_name("kill_exports.py")
    ran = subprocess.run([sys.executable, program, folder, *arguments], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("count", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_a_killed_export_leaves_a_whole_bundle(tmp_path: Path, count: int) -> None:
    rounds = kill(tmp_path / "toy", str(count), "0.8")
    assert len(rounds) == count + 1
    assert all(entry["whole"] for entry in rounds), rounds
    # Kills fell before and, at times, after the rename; a bundle is the old one or the new one.
    assert sum(bool(entry["killed"]) for entry in rounds) >= count // 3
    seeds = [entry["seed"] for entry in rounds]
    assert all(now in (before, number) for number, (before, now) in enumerate(itertools.pairwise(seeds), start=1))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_bundle_is_whole_before_every_rename_of_an_export(tmp_path: Path) -> None:
    *killed, last = kill(tmp_path / "toy", "renames")
    assert len(killed) >= 7 and not last["killed"]  # companions, four steps of the packages, the card
    assert all(entry["whole"] for entry in (*killed, last)), killed
    seeds = [entry["seed"] for entry in (*killed, last)]
    assert all(now in (before, number) for number, (before, now) in enumerate(itertools.pairwise(seeds), start=1))
    assert {path.name for path in (tmp_path / "toy").iterdir()} == {"README.md", "manifest.json", "packages", "companions"}
