"""A manifest says what a bundle holds, and nothing else is believed."""

import json
from pathlib import Path
from typing import Any

import pytest

from coreflow.export.package.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    StageEntry,
    list_files,
    manifest_from_json,
    read_manifest,
    write_manifest,
)
from coreflow.models.errors import BundleError
from coreflow.models.spec import TensorSpec


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    package = tmp_path / "packages/00ff/head.mlpackage"
    package.mkdir(parents=True)
    (package / "weight.bin").write_bytes(bytes(range(200)))
    (package / "Manifest.json").write_text("{}")
    stage = StageEntry(
        package="packages/00ff/head.mlpackage",
        fingerprint="00ff",
        inputs={"x": TensorSpec((1, 4), bounds=(0, 1))},
        outputs={"y": TensorSpec((1, 2), "int32")},
        recipe={"target": "iOS17"},
    )
    manifest = Manifest(
        name="toy",
        kind="recipes",
        created="2026-01-01T00:00:00+00:00",
        versions={"coreflow": "0"},
        stages={"head": stage},
        files=list_files(tmp_path, [stage.package]),
    )
    write_manifest(tmp_path, manifest)
    return tmp_path


def plain(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / MANIFEST).read_text())


def test_a_written_manifest_is_read_back(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest_from_json(manifest.to_json()) == manifest
    assert set(manifest.files) == {"packages/00ff/head.mlpackage/weight.bin", "packages/00ff/head.mlpackage/Manifest.json"}


@pytest.mark.parametrize("position", [0, 100, 199])
def test_one_flipped_bit_is_refused_by_the_name_of_the_file(bundle: Path, position: int) -> None:
    weights = bundle / "packages/00ff/head.mlpackage/weight.bin"
    data = bytearray(weights.read_bytes())
    data[position] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match=r"weight\.bin was changed") as refusal:
        read_manifest(bundle)
    assert [(bundle / problem.path, problem.kind) for problem in refusal.value.problems] == [(weights, "digest")]
    read_manifest(bundle, verify=False)


def test_missing_and_shortened_files_are_all_named(bundle: Path) -> None:
    (bundle / "packages/00ff/head.mlpackage/Manifest.json").unlink()
    (bundle / "packages/00ff/head.mlpackage/weight.bin").write_bytes(b"short")
    with pytest.raises(BundleError, match=r"Manifest\.json is missing; .*weight\.bin has 5 bytes, not 200") as refusal:
        read_manifest(bundle)
    assert refusal.value.path == bundle
    assert [(Path(problem.path).name, problem.kind) for problem in refusal.value.problems] == [
        ("Manifest.json", "missing"),
        ("weight.bin", "size"),
    ]


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "packages/../../outside", "C:\\windows", "a\\..\\b", ""])
@pytest.mark.parametrize("place", ["package", "file", "companions"])
def test_a_path_may_not_leave_the_bundle(bundle: Path, path: str, place: str) -> None:
    changed = plain(bundle)
    if place == "package":
        changed["stages"]["head"]["package"] = path
    elif place == "file":
        changed["files"][path] = {"sha256": "0", "size_bytes": 0}
    else:
        changed["companions"] = path
    (bundle / MANIFEST).write_text(json.dumps(changed))
    with pytest.raises(BundleError, match="leads out of the bundle"):
        read_manifest(bundle)


def test_a_link_may_not_leave_the_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    weights = bundle / "packages/00ff/head.mlpackage/weight.bin"
    outside = tmp_path_factory.mktemp("outside") / "weight.bin"
    outside.write_bytes(weights.read_bytes())
    weights.unlink()
    weights.symlink_to(outside)
    with pytest.raises(BundleError, match="leads out of the bundle") as refusal:
        read_manifest(bundle)
    assert [problem.kind for problem in refusal.value.problems] == ["outside"]


def test_a_newer_schema_asks_for_a_newer_coreflow(bundle: Path) -> None:
    (bundle / MANIFEST).write_text(json.dumps({**plain(bundle), "schema": 99, "surprise": True}))
    with pytest.raises(BundleError, match="schema 99, and this coreflow reads up to 2; install a newer coreflow"):
        read_manifest(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}', '{"schema": "1"}', "[" * 100_000, "\x00"], ids=range(8))
def test_anything_else_is_not_a_manifest(bundle: Path, text: str) -> None:
    (bundle / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match="manifest"):
        read_manifest(bundle)


@pytest.mark.parametrize("key", ["name", "stages", "files", "kind", "companions", "settings"])
def test_a_missing_key_is_named(bundle: Path, key: str) -> None:
    changed = plain(bundle)
    del changed[key]
    (bundle / MANIFEST).write_text(json.dumps(changed))
    with pytest.raises(BundleError, match=f"KeyError '{key}'"):
        read_manifest(bundle)


def test_a_folder_without_a_manifest_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        read_manifest(tmp_path)
    with pytest.raises(BundleError, match="is not a bundle"):
        read_manifest(tmp_path / "nowhere")


def test_a_stage_without_recorded_files_is_refused(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    write_manifest(
        bundle,
        Manifest(**{**{name: getattr(manifest, name) for name in manifest.__slots__}, "files": {"x": FileEntry(sha256="0", size_bytes=0)}}),
    )
    with pytest.raises(BundleError, match=r"head\.mlpackage has no recorded file") as refusal:
        read_manifest(bundle)
    assert {problem.kind for problem in refusal.value.problems} == {"missing", "unlisted"}
