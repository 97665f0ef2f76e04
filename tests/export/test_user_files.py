"""Recipes from a user's Python file."""

from pathlib import Path

import pytest

from coreflow.export.user_files import is_recipe_source, load_recipes
from coreflow.models.errors import ConfigError

HEADER = "from torch import nn\nfrom coreflow.export import Recipe, TensorSpec\n"
ONE = HEADER + "ONE = Recipe(name='one', module=nn.Linear(2, 2), inputs={'x': TensorSpec((1, 2))}, outputs=('y',))\n"


@pytest.mark.parametrize(
    ("body", "name", "count"),
    [("", "ONE", 1), ("BOTH = [ONE, ONE]\n", "BOTH", 2), ("def make():\n    return (ONE,)\n", "make", 1)],
    ids=["recipe", "list", "function"],
)
def test_a_name_stands_for_recipes(tmp_path: Path, body: str, name: str, count: int) -> None:
    file = tmp_path / "mine.py"
    file.write_text(ONE + body)
    assert [recipe.name for recipe in load_recipes(f"{file}:{name}")] == ["one"] * count


@pytest.mark.parametrize(
    ("text", "source", "message"),
    [
        (ONE, "{}:TWO", "has no TWO; its recipes are ONE"),
        (ONE, "{}", "which recipe\\? Give .*:ONE"),
        (ONE + "X = 3\n", "{}:X", "X: int; a Recipe"),
        (ONE + "X = []\n", "{}:X", "a Recipe, a list of them"),
        ("import nothing_of_that_name\n", "{}:ONE", "fails: ModuleNotFoundError"),
        ("def (", "{}:ONE", "fails: SyntaxError"),
        (ONE.replace("'one'", "'1'"), "{}:ONE", "recipe '1': name '1'"),
    ],
    ids=["no such name", "no name", "a number", "an empty list", "import fails", "syntax", "bad recipe"],
)
def test_a_file_without_such_a_recipe_is_refused(tmp_path: Path, text: str, source: str, message: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipes(source.format(file))


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not a file"):
        load_recipes("nowhere.py:ONE")


def test_runs_and_recipe_files_are_told_apart() -> None:
    assert is_recipe_source("examples/recipes.py:CLASSIFIER")
    assert is_recipe_source("recipes.py")
    assert not is_recipe_source("artifacts/runs/demo")
