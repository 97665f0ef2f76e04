"""From what a user names to recipes: a recipe file, a folder of transformers, a class, or a captured program."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coreflow.export.recipe import Recipe, Target
from coreflow.export.reference import write_reference
from coreflow.export.sources.adapters.adapter import Sizes
from coreflow.export.sources.classes import is_class, load_class
from coreflow.export.sources.hugging_face import is_checkpoint, load_checkpoint, write_companions
from coreflow.export.sources.programs import is_program, load_program
from coreflow.export.user_files import is_recipe_source, load_recipes
from coreflow.models.errors import ConfigError
from coreflow.models.images import spec_from_json
from coreflow.models.spec import TensorSpec

OPTIONS = "options"  # of a manifest's settings
FORMS = (
    "a run of `coreflow train`, FILE.py:NAME of a recipe, a folder of transformers, module.path:Class, FILE.pt2, or a TorchScript FILE.pt"
)


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What a user says of a source beside its name.

    >>> SourceOptions(task="text-classification", sizes=Sizes(length=64))
    """

    task: str | None = None  # of a folder of transformers; None: that of the class it was saved as
    sizes: Sizes = field(default_factory=Sizes)
    inputs: Mapping[str, TensorSpec] = field(default_factory=dict)  # of a class or a program
    weights: Path | None = None  # of a class
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of a class
    target: Target | None = None  # None: the recipe's own, else iOS17
    has_reference: bool = True  # whether weights and golden samples belong into the bundle

    def to_json(self) -> dict[str, Any]:
        """What a bundle records, by which `coreflow validate --reference` finds the same recipes; without defaults and without paths."""
        sizes = {
            "length": self.sizes.length,
            "prompt": self.sizes.prompt,
            "image_size": self.sizes.image_size,
            "batch": self.sizes.batch if self.sizes.batch > 1 else None,
        }
        inputs = {name: spec.to_json() for name, spec in self.inputs.items()}
        plain = {"task": self.task, "sizes": _given(sizes), "inputs": inputs, "arguments": dict(self.arguments), "target": self.target}
        return _given(plain)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "SourceOptions":
        """Inverse of ``to_json``."""
        inputs = {name: spec_from_json(spec) for name, spec in plain.get("inputs", {}).items()}
        sizes, arguments = Sizes(**plain.get("sizes", {})), plain.get("arguments", {})
        return cls(task=plain.get("task"), sizes=sizes, inputs=inputs, arguments=arguments, target=plain.get("target"))


@dataclass(frozen=True, kw_only=True)
class Source:
    """The recipes that a source stands for, and what else belongs into their bundle.

    >>> load_source("artifacts/minilm").recipes[0].inputs
    """

    recipes: tuple[Recipe, ...]
    folder: Path | None = None  # of transformers
    has_reference: bool = True  # whether weights and golden samples belong into the bundle

    def write_companions(self, out: Path) -> None:
        """Weights and golden samples of the recipes, and the tokenizer and settings of a folder of transformers, into ``out``."""
        if self.has_reference:
            write_reference(self.recipes, out)
        if self.folder is not None:
            write_companions(self.folder, out)


def load_source(source: str, options: SourceOptions = SourceOptions()) -> Source:
    """What ``source`` stands for; ``ConfigError`` with the forms of a source for anything else, and for options that are not its own."""
    target = options.target or "iOS17"
    if is_recipe_source(source):
        refuse_options(source, options, ())
        recipes = load_recipes(source)
        if options.target is not None:
            recipes = tuple(_for_target(recipe, options.target) for recipe in recipes)
        return Source(recipes=recipes, has_reference=options.has_reference)
    if is_checkpoint(source):
        refuse_options(source, options, ("task", "sizes"))
        recipes = load_checkpoint(source, task=options.task, sizes=options.sizes, target=options.target)
        return Source(recipes=recipes, folder=Path(source), has_reference=options.has_reference)
    if is_program(source):
        refuse_options(source, options, ("inputs",))
        return Source(recipes=load_program(source, inputs=options.inputs, target=target), has_reference=options.has_reference)
    if is_class(source):
        refuse_options(source, options, ("inputs", "weights", "arguments"))
        fields = {"inputs": options.inputs, "weights": options.weights, "arguments": options.arguments}
        recipes = load_class(source, **fields, target=target)  # type: ignore[arg-type]
        return Source(recipes=recipes, has_reference=options.has_reference)
    settings = Path(source) / "config.json"
    why = "" if not Path(source).is_dir() else ": its config.json has no model_type" if settings.is_file() else ": it has no config.json"
    raise ConfigError(f"{source} is nothing to export{why}; {FORMS} is right")


def _given(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if value}


def refuse_options(source: str, options: SourceOptions, taken: tuple[str, ...] = ()) -> None:
    """``ConfigError`` for options that are given and not ``taken``, which would be ignored."""
    given: dict[str, Any] = {"task": options.task, "sizes": options.sizes if options.sizes != Sizes() else None, "inputs": options.inputs}
    given |= {"weights": options.weights, "arguments": options.arguments}
    words = {"sizes": "--length, --prompt, --batch and --image-size", "inputs": "--input"}
    if wrong := [words.get(name, f"--{name}") for name, value in given.items() if value and name not in taken]:
        raise ConfigError(f"{source} takes no {' and no '.join(wrong)}")


def _for_target(recipe: Recipe, target: Target) -> Recipe:
    return replace(recipe, target=target, functions=tuple(replace(function, target=target) for function in recipe.functions))
