"""Whatever bytes a package holds, loading it ends in a program or in a coreflow error, and takes little memory.

Two kinds of damage: bytes of a file overwritten, cut, moved or doubled; and fields of the model message set to what they should not be,
which gets past the protobuf parser. What can be read is also made ready to run, which evaluates its compressed constants.
"""

import shutil
import tracemalloc
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreflow.export.package.coremltools_quiet import model_proto
from coreflow.export.package.mlpackage import read_program
from coreflow.models.errors import CoreflowError
from coreflow.runtime.backend import LoadOptions
from coreflow.runtime.lifted import LiftedModel

SPEC, WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"
MEMORY = 32 << 20  # bytes for one load; the packages have a few thousand
EXTREMES = (0, 1, -1, 7, 2**15, 2**31 - 1, -(2**31), 2**40, 10**15, 2**63 - 1)

Way = tuple[tuple[str, Any], ...]  # field names with an index, a map's key, or None


class Package:
    """A package in a folder, its files as they were, and the way to every field of its message."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = {name: (path / name).read_bytes() for name in (SPEC, WEIGHTS) if (path / name).exists()}
        self.message = model_proto().Model.FromString(self.files[SPEC])
        self.fields = list(fields(self.message))
        self.texts = sorted({value for _, value in self.fields if isinstance(value, str)})


def fields(message: Any, way: Way = ()) -> Iterator[tuple[Way, Any]]:
    """Every scalar field that is set, with the way to it."""
    for field, value in message.ListFields():
        entry = field.message_type is not None and field.message_type.GetOptions().map_entry
        if entry:
            parts: Iterable[tuple[Any, Any]] = sorted(value.items())
        else:
            parts = enumerate(value) if hasattr(value, "extend") else [(None, value)]
        for key, part in parts:
            here = (*way, (field.name, key))
            if hasattr(part, "ListFields"):
                yield from fields(part, here)
            else:
                yield here, part


def put(message: Any, way: Way, value: Any) -> None:
    """Sets one field; a value that its type cannot hold leaves it as it is."""
    for name, key in way[:-1]:
        message = getattr(message, name) if key is None else getattr(message, name)[key]
    name, key = way[-1]
    try:
        if key is None:
            setattr(message, name, value)
        else:
            getattr(message, name)[key] = value
    except (ValueError, TypeError):
        return


@pytest.fixture(scope="module")
def packages(small_packages: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, ...]:
    """Copies to damage."""
    folder = tmp_path_factory.mktemp("damaged")
    return tuple(Package(Path(shutil.copytree(path, folder / path.name))) for path in small_packages.values())


def damaged_bytes(content: bytes, draw: Random) -> bytes:
    broken = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        start, other, length = draw.randrange(len(broken) + 1), draw.randrange(len(broken) + 1), draw.randint(1, 256)
        kind = draw.choice(("overwrite", "overwrite", "overwrite", "cut", "move", "double"))
        if kind == "overwrite":
            broken[start : start + 1] = bytes((length - 1,))
        elif kind == "cut":
            del broken[start:]
        elif kind == "move":
            broken[start : start + length] = broken[other : other + length]
        else:
            broken[other:other] = broken[start : start + length]
    return bytes(broken)


def damaged_fields(package: Package, draw: Random) -> bytes:
    message = type(package.message)()
    message.CopyFrom(package.message)
    for _ in range(draw.randint(1, 3)):
        way, old = draw.choice(package.fields)
        if isinstance(old, str):
            put(message, way, draw.choice(package.texts))
        elif isinstance(old, bytes):
            put(message, way, old[: draw.randrange(len(old) + 1)])
        else:
            put(message, way, draw.choice(EXTREMES))
    return bytes(message.SerializeToString())


def check(packages: tuple[Package, ...], draw: Random) -> None:
    """The law: a model or a coreflow error, whatever was damaged."""
    package = draw.choice(packages)
    broken = dict(package.files)
    if draw.random() < 0.5:
        broken[SPEC] = damaged_fields(package, draw)
    else:
        name = draw.choice(sorted(broken))
        broken[name] = damaged_bytes(broken[name], draw)
    for name, content in broken.items():
        (package.path / name).write_bytes(content)
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    try:
        LiftedModel(read_program(package.path), LoadOptions(engine="interpreter"))
    except CoreflowError as error:
        assert str(error)
    assert tracemalloc.get_traced_memory()[1] - before < MEMORY


@pytest.fixture(scope="module")
def traced(packages: tuple[Package, ...]) -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
class TestDamage:
    def test_undamaged_packages_load(self, packages: tuple[Package, ...]) -> None:
        for package in packages:
            LiftedModel(read_program(package.path), LoadOptions(engine="interpreter"))

    @settings(max_examples=300, deadline=None, database=None, derandomize=True)
    @given(draw=st.randoms(use_true_random=False))
    def test_a_damaged_package_loads_or_is_refused(self, packages: tuple[Package, ...], draw: Random) -> None:
        check(packages, draw)

    @pytest.mark.slow
    @pytest.mark.parametrize("part", range(10))
    def test_a_hundred_thousand_damaged_packages_load_or_are_refused(self, packages: tuple[Package, ...], part: int) -> None:
        for seed in range(part * 10_000, (part + 1) * 10_000):
            try:
                check(packages, Random(seed))
            except Exception as error:
                error.add_note(f"seed {seed}")
                raise
