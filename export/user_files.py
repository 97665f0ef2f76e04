"""A user's own recipes, from a Python file."""

import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import nn

from coreflow.export.recipe import Recipe
from coreflow.models.errors import ConfigError, CoreflowError, first_line


def is_recipe_source(source: str) -> bool:
    """Whether ``source`` has the form ``FILE.py:NAME``."""
    return ".py:" in source or source.endswith(".py")


def load_recipes(source: str) -> tuple[Recipe, ...]:
    """The recipes that ``FILE.py:NAME`` stands for: a ``Recipe``, a list of them, or a function without arguments that gives them.

    The file is executed. ``ConfigError`` when it is not there, has no such name, or fails, with the line that does.
    """
    file, _, name = source.rpartition(":") if ".py:" in source else (source, "", "")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; give FILE.py:NAME")
    definitions = vars(_execute(path))
    candidates = sorted(label for label, value in definitions.items() if isinstance(value, Recipe))
    if not name:
        raise ConfigError(f"{source}: which recipe? Give {path}:NAME, as in {path}:{candidates[0] if candidates else 'ENCODER'}")
    if name not in definitions:
        others = f"its recipes are {', '.join(candidates)}" if candidates else "no value in it is a Recipe"
        raise ConfigError(f"{path} has no {name}; {others}")
    value = definitions[name]
    if callable(value) and not isinstance(value, Recipe | nn.Module | type):
        with _faults_of(path):
            value = value()
    recipes = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not recipes or not all(isinstance(recipe, Recipe) for recipe in recipes):
        kind = next((type(item).__name__ for item in recipes if not isinstance(item, Recipe)), "an empty list")
        raise ConfigError(f"{source}: {kind}; a Recipe, a list of them, or a function that gives them is right")
    return tuple(replace(recipe, source=source) for recipe in recipes)


def _execute(path: Path) -> object:
    specification = importlib.util.spec_from_file_location(f"coreflow_recipes_{path.stem}", path)
    assert specification is not None and specification.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent.resolve()))  # modules beside the file, as a script would find them
    try:
        with _faults_of(path):
            specification.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


@contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """What the file raises, as an error of ours that begins with its line."""
    try:
        yield
    except CoreflowError as error:
        raise type(error)(f"{_line(path, error)}: {error}", path=error.path, problems=error.problems, expected=error.expected) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{_line(path, error)} fails: {type(error).__name__}: {getattr(error, 'msg', first_line(error))}") from error


def _line(path: Path, error: BaseException) -> str:
    """FILE:LINE of the innermost line of the file that ``error`` went through; the file alone where it was not executed."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).resolve() == path.resolve()]
    if isinstance(error, SyntaxError):
        lines.append(error.lineno)
    return f"{path}:{lines[-1]}" if lines and lines[-1] else str(path)
