"""Recipes that are wrong in one way each: ``coreflow export`` says in one line what, and what would be right."""

from pathlib import Path

import pytest

from tests.cli.conftest import Refuses

FILE = "from tests.cli.wrong_modules import *\n\nRECIPE = {}\n"

WRONG = {
    # names, inputs and outputs
    "recipe(4)": "recipe 'small': module is of type int, neither an nn.Module nor an object that is called and holds some",
    "recipe(name='x-1')": "name 'x-1'; letters, digits and _ only, no digit first",
    "recipe(name='')": "name ''; letters, digits and _ only",
    "recipe(inputs={})": "at least one input and one output are needed",
    "recipe(outputs=())": "at least one input and one output are needed",
    "recipe(outputs=('x',))": "x named twice; inputs and outputs need names of their own",
    "recipe(outputs=('y', 'y'))": "y named twice",
    "recipe(inputs={'x': (1, 4)})": "input 'x' is (1, 4); a TensorSpec is right, as in TensorSpec((1, 128))",
    "recipe(inputs=['x'])": "inputs=['x']; a dict is right",
    "recipe(outputs=4)": "outputs=4; a list is right",
    "recipe(shape=(1, 4))": "unexpected keyword argument 'shape'",
    "recipe(target='iOS9')": "target 'iOS9'; choose one of iOS16, iOS17, iOS18",
    "recipe(precision='fp8')": "precision 'fp8'; choose fp16 or fp32",
    "[recipe(), recipe()]": "two recipes are named small; a bundle needs a name per stage",
    # specs
    "recipe(inputs={'x': TensorSpec((1, 0))})": "shape (1, 0) has an extent below 1",
    "recipe(inputs={'x': TensorSpec((1, 'n'))})": "shape (1, 'n'); whole numbers are right",
    "recipe(inputs={'x': TensorSpec((1, 4), 'int8')})": "dtype 'int8'; choose one of float16, float32, int32",
    "recipe(inputs={'x': TensorSpec((1, 4), bounds=(9, 0))})": "bounds (9, 0); two finite numbers, the lowest first, are right",
    "recipe(inputs={'x': TensorSpec((1, 4), bounds=5)})": "bounds 5; the lowest and the highest value are right",
    "recipe(inputs={'x': TensorSpec((1, 4), bounds=(0, float('nan')))})": "bounds (0, nan); two finite numbers",
    "recipe(inputs={'x': TensorSpec((1, 4), 'int32', values=(0.5,))})": "values (0.5,) of an int32 tensor; whole numbers are right",
    "recipe(nn.Embedding(10, 4), inputs={'x': TensorSpec((1, 4), 'int32')})": "int32 of shape (1, 4) without bounds",
    "recipe(nn.Embedding(10, 4))": "the module does not run on x (1, 4)",
    "recipe(nn.Embedding(10, 4), inputs={'x': TensorSpec((1, 4), 'int32', bounds=(0, 99))})": "the module does not run on x (1, 4)",
    "recipe(nn.Linear(5, 4))": "the module does not run on x (1, 4)",
    # pictures
    "recipe(inputs={'x': ImageSpec.of(8, 8, 'CMYK')})": "colour 'CMYK'; choose one of RGB, BGR, GRAYSCALE",
    "recipe(inputs={'x': ImageSpec((8, 8, 3))})": "shape (8, 8, 3) of a RGB image; (1, 3, H, W) is right",
    "recipe(inputs={'x': ImageSpec.of(8, 8, std=0)})": "std (0.0,); numbers above 0 are right",
    "recipe(inputs={'x': ImageSpec.of(8, 8, std=(-1, 1, 1))})": "numbers above 0 are right",
    "recipe(inputs={'x': ImageSpec.of(8, 8, scale=(1, 1))})": "one number or 3, one a channel, are right",
    "recipe(inputs={'x': ImageSpec.of(8, 8, scale=2, mean=0)})": "scale and bias beside mean and std; give the one pair or the other",
    "recipe(inputs={'x': ImageSpec.of(0, 8)})": "has an extent below 1",
    # states
    "recipe(Counts())": "forward changes the buffer count, which a trace loses; return it as an output, or keep it between predictions",
    "recipe(Counts(), states='total', target='iOS18')": "state 'total' is no buffer of the module; its buffers are count, still",
    "recipe(Counts(), states='count')": "states need target='iOS18', not 'iOS17'",
    "recipe(Counts(), states=('count', 'still'), target='iOS18')": "forward does not write into the state still",
    "recipe(Counts(), states=('count', 'whole'), target='iOS18')": "state 'whole' is torch.int32; a buffer of floats is right",
    "recipe(Counts(), states=('count', 'ones'), target='iOS18')": "state 'ones' does not start at zero",
    "recipe(Counts(), states='count', target='iOS18', precision='fp32')": "states need precision='fp16'",
    # shapes
    "recipe(shapes={'z': [(2, 4)]})": "shapes of 'z', which is no input",
    "recipe(shapes={'x': [(2, 4, 1)]})": "shape (2, 4, 1) for an input of shape (1, 4); 2 extents of 1 or more are right",
    "recipe(shapes={'x': [(1, 4)]})": "give no shape but the default (1, 4)",
    "recipe(shapes={'x': (Range(2, 8), 4)})": "the default shape (1, 4) is outside (2..8, 4)",
    "recipe(shapes={'x': (Range(8, 2), 4)})": "8..2: whole numbers with 1 <= low < high are right",
    "recipe(shapes={'x': (Range(1, None), 4)})": "1..None: whole numbers with 1 <= low < high are right",
    "recipe(shapes=[(2, 4)])": "shapes=[(2, 4)]; a dict is right",
    "recipe(Subtracts(), inputs=TWO, shapes={'left': [(2, 4)], 'right': [(2, 4)]})": "for left and right need target='iOS18'",
    "recipe(Subtracts(), inputs=TWO, shapes={'left': [(2, 4)], 'right': [(2, 4), (3, 4)]}, target='iOS18')": "left has 2, right has 3",
    "recipe(shapes={'x': [(1, 5)]})": "the module does not run on x (1, 5)",
    # labels
    "recipe(labels=('cat', 'cat', 'dog', 'eel'))": "the label 'cat' is given twice",
    "recipe(labels=(1, 2, 3, 4))": "labels are strings, one for every class",
    "recipe(labels=4)": "labels=4; a list is right",
    "recipe(labels=('cat', 'dog'))": "2 labels for 'y', float16 [1, 4]; the first output needs floats of shape [1, 2]",
    # functions
    "recipe(functions=(recipe(name='other'),))": "several functions need target='iOS18', small, other have another",
    "recipe(functions=(nn.Linear(4, 4),), target='iOS18')": "functions are recipes",
    "recipe(functions=(recipe(target='iOS18'),), target='iOS18')": "two functions are named small",
    "recipe(functions=(recipe(name='a', target='iOS18', functions=(recipe(target='iOS18'),)),), target='iOS18')": "functions of its own",
    # precision and metadata
    "recipe(nn.Sequential(nn.Linear(4, 4)), compute_dtype={'1': 'fp32'})": "compute_dtype of '1', which is no submodule",
    "recipe(nn.Sequential(nn.Linear(4, 4)), compute_dtype={'0': 'fp8'})": "compute_dtype 'fp8' of '0'; choose fp16 or fp32",
    "recipe(spoilt(0), compute_dtype={'0': 'fp32'}, precision='fp32')": "compute_dtype is for packages of precision='fp16'",
    "recipe(metadata={'author': 4})": "metadata 'author': 4; names and values are strings",
    "recipe(metadata={'coreflow.recipe': 'x'})": "names that begin with coreflow. are coreflow's own",
    # what forward does
    "recipe(Fails())": "wrong_modules.py",
    "recipe(nn.Module())": "is missing the required \"forward\" function",
    "recipe(Computes(lambda y: None))": "forward returns NoneType; return a tensor, a tuple of tensors, or tensors by name",
    "recipe(Computes(lambda y: {'z': y}))": "forward returns no tensor 'y'; there is 'z' (1, 4)",
    "recipe(Computes(lambda y: (y, y * 2)))": "forward returns 2 tensors, 1 outputs are named (y)",
    "recipe(Computes(lambda y: (y, y)), outputs=('y', 'z'))": "forward returns one tensor as two outputs",
    "recipe(Computes(lambda y: y > 0))": "output 'y' is torch.bool; give floats or integers (a mask as 0.0 and 1.0)",
    "recipe(Computes(lambda y: y[:, :0]))": "output 'y' of shape [1, 0] is empty; leave it out",
    "recipe(Computes(lambda y: y[y > 0]))": "depends on values",
    "recipe(Computes(lambda y: y + torch.rand(1, 4)))": "or draws random numbers",
    "recipe(Computes(lambda y: y * y.sum().item()))": "forward reads a value (.item(), int(), if on a tensor)",
    "recipe(Computes(lambda y: torch.special.i1(y)))": "the converter gave up at",
    "recipe(Computes(lambda y: torch.fft.fft(y)))": "output 'y' is torch.complex64",
    "recipe(Subtracts(), inputs={'right': X, 'other': X})": "Subtracts.forward has no 'other'",
    "recipe(Subtracts())": "the module does not run on x (1, 4)",
    "recipe(nn.Linear(4, 4, device='meta'))": "weight is on the device meta",
    "recipe(draw=lambda seed: {'x': None})": "recipe 'small': draw gives {'x': 'NoneType'}, the inputs are {'x': ((1, 4), 'float16')}",
    "recipe(draw=lambda seed: {}['x'])": "recipe 'small': draw fails on seed 0: KeyError: 'x'",
    # weights
    "recipe(spoilt(float('nan')))": "0.weight holds NaN",
    "recipe(spoilt(float('inf')))": "0.weight holds infinity",
}  # fmt: skip


@pytest.mark.parametrize("recipe", WRONG, ids=lambda text: str(text)[:70])
def test_a_wrong_recipe_is_one_clear_line(refuses: Refuses, tmp_path: Path, recipe: str) -> None:
    (tmp_path / "recipes.py").write_text(FILE.format(recipe))
    error = refuses(2, "export", f"{tmp_path}/recipes.py:RECIPE", "--out", tmp_path / "bundle", "--json")
    assert WRONG[recipe] in error
    assert "small" in error or "recipes.py" in error, "which recipe?"
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["recipes.py"]
