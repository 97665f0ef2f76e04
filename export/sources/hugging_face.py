"""A folder as ``save_pretrained`` writes it: its model by an adapter, and the files that a user of the packages needs beside them."""

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coreflow.export.recipe import TARGETS, Recipe, Target
from coreflow.export.sources.adapters import causal_decoders, clip, image_classifiers, t5, text_encoders, whisper
from coreflow.export.sources.adapters.adapter import Adapter, Checkpoint, Sizes, read_json
from coreflow.export.sources.names import package_name
from coreflow.models.errors import ConfigError, first_line

ADAPTERS: tuple[Adapter, ...] = tuple(
    adapter for family in (text_encoders, image_classifiers, clip, causal_decoders, whisper, t5) for adapter in family.ADAPTERS
)
# Tokenizers, preprocessors and licences; not the weights, which the packages hold.
_COMPANIONS = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model", "preprocessor_config.json"),
    *("processor_config.json", "config.json", "generation_config.json", "modules.json", "LICENSE*", "NOTICE*"),
)


def is_checkpoint(source: str) -> bool:
    """Whether ``source`` is a folder of transformers: its ``config.json`` names the type of a model, which that of a run does not.

    ``ConfigError`` where that is no JSON object.
    """
    return "model_type" in read_json(Path(source) / "config.json")


def load_checkpoint(source: str, *, task: str | None, sizes: Sizes, target: Target | None = None) -> tuple[Recipe, ...]:
    """The recipes of the model in the folder ``source`` for ``task``; without one that of the class that it was saved as.

    Weights are read from safetensors alone, in fp32. ``ConfigError`` lists the tasks, types or files that would be right.
    """
    folder = Path(source)
    settings = read_json(folder / "config.json")
    adapter = find_adapter(folder, settings, task)
    target = target or adapter.target
    if ignored := [name for name in sizes.given if name not in adapter.sizes]:
        raise ConfigError(f"{folder}: {adapter.task} takes no {', '.join(ignored)}; it takes {', '.join(adapter.sizes) or 'none'}")
    if TARGETS.index(target) < TARGETS.index(adapter.target):
        raise ConfigError(f"{folder}: {adapter.task} needs target {adapter.target}, not {target}")
    checkpoint = Checkpoint(folder, _load(folder, adapter), sizes, target, package_name(folder.resolve().name))
    return tuple(adapter.recipes(checkpoint))


def find_adapter(folder: Path, settings: dict[str, Any], task: str | None) -> Adapter:
    """The adapter for the model type in ``settings`` and ``task``."""
    kind = str(settings.get("model_type", ""))
    fitting = [adapter for adapter in ADAPTERS if kind in adapter.model_types]
    if not fitting:
        types = ", ".join(sorted({name for adapter in ADAPTERS for name in adapter.model_types}))
        raise ConfigError(f"{folder}: model type {kind or 'unknown'!r}; these can be exported from a folder: {types}. Any other: a recipe")
    tasks = [adapter.task for adapter in fitting]
    if task is None:
        task = _default_task(folder, settings, fitting)
    for adapter in fitting:
        if adapter.task == task:
            return adapter
    raise ConfigError(f"{folder}: task {task!r}; a {kind} can be exported for {', '.join(tasks)}")


def write_companions(folder: Path, out: Path) -> None:
    """Copy the files of ``folder`` that a user of its packages needs into ``out``."""
    for pattern in _COMPANIONS:
        for file in sorted(folder.glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, out / file.name)
    pooling = folder / "1_Pooling" / "config.json"
    if pooling.is_file():
        (out / pooling.parent.name).mkdir()
        shutil.copyfile(pooling, out / pooling.parent.name / pooling.name)


def _default_task(folder: Path, settings: dict[str, Any], fitting: list[Adapter]) -> str:
    if (folder / "modules.json").is_file() and any(adapter.task == "sentence-similarity" for adapter in fitting):
        return "sentence-similarity"
    saved_as = str((settings.get("architectures") or ["Model"])[0])
    ends = [(len(head), adapter.task) for adapter in fitting for head in adapter.heads if saved_as.endswith(head)]
    if not ends:
        raise ConfigError(f"{folder}: saved as {saved_as}; choose --task {' or '.join(adapter.task for adapter in fitting)}")
    return max(ends)[1]


def _load(folder: Path, adapter: Adapter) -> Any:
    """The model in eval mode and in fp32, on the CPU."""
    import torch
    import transformers

    if not any(folder.glob("*.safetensors")):
        others = ", ".join(sorted(file.name for file in folder.glob("*.bin"))) or "no weights"
        raise ConfigError(f"{folder} holds {others}; model.safetensors is right (save it again with save_pretrained)")
    try:
        with _quiet():
            model, told = getattr(transformers, adapter.auto_class).from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
                **adapter.options,
            )
    except Exception as error:
        raise ConfigError(f"{folder}: transformers cannot load it as {adapter.auto_class}: {first_line(error)}") from error
    # transformers draws what a file lacks at random, and only warns.
    if missing := sorted(key for key in told["missing_keys"] if not key.startswith(adapter.unused)):
        weights = f"{', '.join(missing[:4])}{f' and {len(missing) - 4} more' if len(missing) > 4 else ''}"
        raise ConfigError(
            f"{folder} has no weights {weights} of a {type(model).__name__}, for {adapter.task}; fine-tune it, or give another --task"
        )
    return model.eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """None of the warnings and bars of transformers."""
    import transformers

    log = logging.getLogger("transformers")
    level, has_bar = log.level, transformers.utils.logging.is_progress_bar_enabled()
    log.setLevel(logging.CRITICAL + 1)
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
        if has_bar:
            transformers.utils.logging.enable_progress_bar()
