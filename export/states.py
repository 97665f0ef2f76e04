"""What is known of states on the Neural Engine, as warnings to whoever declares some."""

from collections.abc import Iterator

from coreflow.export.recipe import Recipe

_WIDTH = 32  # coremltools issue 2631
_MOST = 2  # CoreML-LLM, docs/MLSTATE_PATTERN.md


def warn_of_states(recipe: Recipe) -> Iterator[str]:
    """A line for every state, and for a number of states, that others saw fail on the engine; on the CPU and the GPU they run.

    >>> list(warn_of_states(recipe))
    ["state 'keys' of width 20: ..."]
    """
    buffers = dict(recipe.module.named_buffers())
    for name in recipe.states:
        width = buffers[name].shape[-1] if buffers[name].ndim else 1
        if width % _WIDTH:
            yield (
                f"state {name!r} of width {width}: the Neural Engine was seen to refuse widths that are no multiple of {_WIDTH} "
                "(measured by others, coremltools issue 2631); pad the buffer"
            )
    if len(recipe.states) > _MOST:
        yield (
            f"{len(recipe.states)} states: programs with more than {_MOST} were seen to fail on the Neural Engine when they predict "
            "(measured by others, CoreML-LLM docs/MLSTATE_PATTERN.md); stack them in one buffer"
        )
