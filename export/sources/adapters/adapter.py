"""What an adapter is, and what it is given: a checkpoint that was loaded, and the sizes that were asked for."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from coreflow.export.recipe import Recipe, Target
from coreflow.models.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The fixed shapes of an export, as far as they are chosen; the model's own are the defaults.

    >>> Sizes(length=128, batch=1)
    """

    length: int | None = None  # tokens; of a decoder those of its cache
    prompt: int | None = None  # tokens that a decoder with a cache reads at once
    batch: int = 1
    image_size: int | None = None  # pixels, of both sides

    def __post_init__(self) -> None:
        lengths = (("length", self.length, 1), ("prompt", self.prompt, 2))
        for name, value, least in (*lengths, ("batch", self.batch, 1), ("image size", self.image_size, 1)):
            if value is not None and value < least:
                raise ConfigError(f"{name} {value}; {least} or more is right")

    @property
    def given(self) -> tuple[str, ...]:
        """The options of a command that were given."""
        values = {"--length": self.length, "--prompt": self.prompt, "--batch": self.batch > 1, "--image-size": self.image_size}
        return tuple(option for option, value in values.items() if value)


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A folder as ``save_pretrained`` writes it, with its model loaded in fp32.

    >>> checkpoint.model.config.vocab_size, checkpoint.settings("preprocessor_config.json").get("image_mean")
    """

    folder: Path
    model: nn.Module
    sizes: Sizes
    target: Target = "iOS17"
    name: str = "model"

    @property
    def config(self) -> Any:
        """The model's configuration, as transformers has it."""
        return self.model.config

    def settings(self, file: str) -> dict[str, Any]:
        """The JSON object in a file of the folder; empty where there is none."""
        return read_json(self.folder / file)

    def length(self, most: int | None, default: int = 128) -> int:
        """Number of tokens: as asked for, else ``default``, and never more than the model's ``most``."""
        asked = self.sizes.length
        if asked is not None and most is not None and asked > most:
            raise ConfigError(f"length {asked}; {self.folder.name} takes at most {most} tokens")
        return asked or min(default, most or default)

    def prompt(self, length: int, default: int = 64) -> int:
        """Number of tokens that are read at once: as asked for, else ``default``, and never more than ``length``."""
        asked = self.sizes.prompt
        if asked is not None and asked > length:
            raise ConfigError(f"prompt {asked}; the cache holds {length} tokens (--length)")
        return asked or min(default, length)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """How the models of some types are exported for one task.

    >>> Adapter(task="feature-extraction", auto_class="AutoModel", model_types=("bert",), recipes=encoder)

    ``auto_class`` of transformers loads them; ``heads`` are endings of the class names in ``architectures`` for which this is the default
    task. ``recipes`` gives a recipe a package.
    """

    task: str
    auto_class: str
    model_types: Sequence[str]
    recipes: Callable[[Checkpoint], Sequence[Recipe]]
    heads: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  # of ``from_pretrained``
    target: Target = "iOS17"  # the least, and the default
    sizes: Sequence[str] = ("--length", "--batch")  # options that it takes
    unused: tuple[str, ...] = ()  # beginnings of the names of weights that none of its outputs depends on, and a folder may lack


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``; empty where there is no file, and ``ConfigError`` where it holds something else."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} is no JSON file ({error})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds a {type(content).__name__}; a JSON object is right")
    return content
