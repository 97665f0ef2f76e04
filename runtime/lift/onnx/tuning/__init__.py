"""A program's ONNX model made ready for onnxruntime on this processor.

onnxruntime optimises a model whenever it loads one, on copies of its weights. Here that is done once; the result loads in a fraction of the
time and of the memory. Further rewrites, which onnxruntime does not make by itself, have a file each:

- ``rounding``: relu and maxima come before the rounding of a convolution's result instead of behind it;
- ``blocks``: a convolution's result stays in blocks of channels through elementwise ops, above all through roundings;
- ``sums``: a sum of two values in blocks becomes a convolution;
- ``means``: a mean over an axis that is not the last becomes a product with a row of 1 / n.

None changes the results, except for the order of summation.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from tempfile import TemporaryDirectory

from onnx import GraphProto, load, save
from onnx.external_data_helper import set_external_data

from coreflow.runtime.lift.onnx.tuning.blocks import channels_in_a_block, stay_in_blocks
from coreflow.runtime.lift.onnx.tuning.graph import shapes_of
from coreflow.runtime.lift.onnx.tuning.means import means_as_products
from coreflow.runtime.lift.onnx.tuning.rounding import round_later, take_fp16_inputs
from coreflow.runtime.lift.onnx.tuning.sums import sums_as_convolutions

_WORTH_MAPPING = 4096  # bytes; a page


def tune(path: Path, optimise: Callable[[Path, Path], object], fp16_inputs: Collection[str] = ()) -> None:
    """Tunes the model at ``path``; its weights go into a file beside it (``.weights``).

    ``optimise(source, target)`` is onnxruntime's part: it optimises a model for this processor. The tuned model takes the inputs named in
    ``fp16_inputs``, as far as it has them, as fp16.
    """
    with TemporaryDirectory(dir=path.parent) as folder:
        unoptimised, optimised = Path(folder) / "prepared.onnx", Path(folder) / "optimised.onnx"
        # A function of its own: its copy of the weights is freed before onnxruntime makes another.
        nested = _prepare(path, unoptimised, fp16_inputs)
        optimise(unoptimised, optimised)
        model = load(optimised)
        block = channels_in_a_block(optimise, Path(folder))
    if not nested:
        shapes = shapes_of(model.graph)
        if block is not None:
            sums_as_convolutions(model.graph, shapes, stay_in_blocks(model.graph, shapes, block))
        means_as_products(model.graph, shapes)
    _put_weights_beside(model.graph, path.with_suffix(".weights"))
    save(model, path)


def _prepare(source: Path, target: Path, fp16_inputs: Collection[str]) -> bool:
    """Writes the model as onnxruntime is to see it; returns whether it has nested graphs.

    The values that a nested graph reads are not among the inputs of its node, so a model with one is left as it is.
    """
    model = load(source)
    nested = any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute)
    if not nested:
        take_fp16_inputs(model.graph, fp16_inputs)
        round_later(model.graph)
    save(model, target)
    return nested


def _put_weights_beside(graph: GraphProto, path: Path) -> None:
    """Moves the weights into a file of their own, which onnxruntime maps into memory instead of copying it there."""
    with path.open("wb") as file:
        for tensor in graph.initializer:
            if not tensor.HasField("raw_data") or len(tensor.raw_data) < _WORTH_MAPPING:
                continue
            file.write(bytes(-file.tell() % _WORTH_MAPPING))
            set_external_data(tensor, path.name, offset=file.tell(), length=len(tensor.raw_data))
            file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
