"""A user's own recipes, from a Python file."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

from coreflow.export.recipe import Recipe
from coreflow.models.errors import ConfigError, CoreflowError


def is_recipe_source(source: str) -> bool:
    """Whether ``source`` has the form ``FILE.py:NAME``."""
    return ".py:" in source or source.endswith(".py")


def load_recipes(source: str) -> tuple[Recipe, ...]:
    """The recipes that ``FILE.py:NAME`` stands for: a ``Recipe``, a list of them, or a function without arguments that gives them.

    The file is executed. ``ConfigError`` when it is not there, fails, or has no such name.
    """
    file, _, name = source.rpartition(":") if ".py:" in source else (source, "", "")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; give FILE.py:NAME")
    definitions = vars(_execute(path))
    candidates = sorted(label for label, value in definitions.items() if isinstance(value, Recipe))
    if not name:
        raise ConfigError(f"{source}: which recipe? Give {path}:NAME" + (f", as in {path}:{candidates[0]}" if candidates else ""))
    if name not in definitions:
        raise ConfigError(f"{path} has no {name}" + (f"; its recipes are {', '.join(candidates)}" if candidates else ""))
    value = definitions[name]
    if callable(value) and not isinstance(value, Recipe):
        value = value()
    recipes = (value,) if isinstance(value, Recipe) else tuple(value) if isinstance(value, list | tuple) else ()
    if not recipes or not all(isinstance(recipe, Recipe) for recipe in recipes):
        raise ConfigError(
            f"{source} is a {type(definitions[name]).__name__}; a Recipe, a list of them, or a function that gives them is right"
        )
    return tuple(replace(recipe, source=source) for recipe in recipes)


def _execute(path: Path) -> object:
    specification = importlib.util.spec_from_file_location(f"coreflow_recipes_{path.stem}", path)
    assert specification is not None and specification.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent.resolve()))  # modules beside the file, as a script would find them
    try:
        specification.loader.exec_module(module)
    except CoreflowError:
        raise
    except Exception as error:
        raise ConfigError(f"{path} fails: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    return module
