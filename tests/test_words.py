"""Names say one thing each: the words that had several meanings are in no name of the product or its tests."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("benchmarks", "cli", "coreflow", "docs", "export", "models", "runtime", "tests", "validate")
FILES = [str(path.relative_to(ROOT)) for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]

# In no name, with the words that say more.
REFUSED = {
    "judged": "opened, compared",
    "wide": "fp32, fp64, float64",
    "narrow": "fp16",
    "halves": "fp16",
    "halved": "fp16",
    "truth": "reference",
    "wanted": "reference, expected",
    "want": "reference, expected",
    "mistranslated": "translation_errors",
    "misheld": "fp16_constants",
    "lossy": "rounding",
    "prepared": "inputs",
    "cascade": "chain",
}
# In no name of a value; a function may say "is_finished" or "test_it_is_found".
REFUSED_FOR_VALUES = {"each": "a noun", "found": "actual", "held": "values, kept", "finished": "outputs"}

# Exceptions by name, with their reason.
ALLOWED = {
    "cascade": "a key of the report's JSON schema",
    "wide_package": "a public keyword of validate()",
    "held_out": "the field's term for data that is not trained on",
    "find_lossy_ops": "the field's term for ops that lose digits",
}
# Of one file only: traced modules name the program's ops after their local variables, and reports name those ops.
ALLOWED_IN = {("models/energy/lattice.py", "wanted")}


def words(name: str) -> list[str]:
    """The words of a name, split at ``_`` and at capitals.

    >>> words("find_LossyOps2"), words("WIDE_INPUT")
    (['find', 'lossy', 'ops2'], ['wide', 'input'])
    """
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])[0-9]*|[A-Z]?[a-z0-9]+", name)]


def names(tree: ast.AST) -> Iterator[tuple[int, str, bool]]:
    """Line, name and whether it names a value: functions, classes, arguments, variables and attributes stored, aliases."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.lineno, node.name, False
            case ast.arg():
                yield node.lineno, node.arg, True
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, node.id, True
            case ast.Attribute(ctx=ast.Store()):
                yield node.lineno, node.attr, True
            case ast.alias(asname=str(name)):
                yield node.lineno, name, True


def problems(source: str, path: str = "") -> list[str]:
    """One line for every refused word of a name."""
    return [
        f"line {line}: {name}: rather {refused[word]}"
        for line, name, is_value in names(ast.parse(source))
        if not any(allowed in name.lower() for allowed in ALLOWED) and (path, name) not in ALLOWED_IN
        for refused in (REFUSED | REFUSED_FOR_VALUES if is_value else REFUSED,)
        for word in words(name)
        if word in refused
    ]


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("wide_input = 1", 1),
        ("class JudgedPackage: pass", 1),
        ("def f(each): pass", 1),
        ("for found in ():\n  self.held = found", 2),
        ("import a as HALVES", 1),
        ("def is_finished(): pass", 0),
        ("def test_it_is_found(): pass", 0),
        ("held_out, width, reach, foundation = 1, 2, 3, 4", 0),
        ("print(wide)", 0),
    ],
)
def test_refused_words_are_found_by_part(source: str, count: int) -> None:
    assert len(problems(source)) == count


@pytest.mark.parametrize("path", FILES)
def test_no_name_holds_a_refused_word(path: str) -> None:
    assert not problems((ROOT / path).read_text(encoding="utf-8"), path)
