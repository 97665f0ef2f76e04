"""Contents of files that hold samples: lines, arrays and pixels; every error names the file."""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from coreflow.models.arrays import Array
from coreflow.models.errors import InputError

# Raised by numpy and zipfile for a file that is no .npz, is cut short, or holds other things than arrays.
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, NotImplementedError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, counted from 1."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no UTF-8 text (byte {error.start})") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.strip()


def read_npz(file: Path) -> dict[str, Array]:
    """The arrays in a .npz file, by name."""
    if not zipfile.is_zipfile(file):  # numpy would try to unpickle it next
        raise InputError(f"{file} is no .npz, or was cut short; numpy.savez writes one")
    name, arrays = "", {}
    try:
        with np.load(file, allow_pickle=False) as opened:
            for name in opened.files:
                arrays[name] = opened[name]
    except _UNREADABLE as error:
        problem = "holds Python objects, which are not unpickled" if _holds_objects(file, name) else f"cannot be read ({error})"
        raise InputError(f"{file}: {name!r} {problem}; plain arrays of numbers, as numpy.savez writes them, are right") from error
    if foreign := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise InputError(f"{file}: {foreign[0]!r} is no array; plain arrays of numbers, as numpy.savez writes them, are right")
    return arrays


def _holds_objects(file: Path, name: str) -> bool:
    """Whether a member of a .npz file is an array of Python objects, by its header."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as member:
            _, _, dtype = readers[np.lib.format.read_magic(member)](member)
    except _UNREADABLE:
        return False
    return bool(dtype.hasobject)


def read_safetensors(file: Path) -> dict[str, Array]:
    """The arrays in a .safetensors file, by name; bfloat16 and 8-bit floats as fp32."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{file} is no safetensors file, or was cut short ({error})") from error
    # numpy has neither bfloat16 nor the 8-bit floats; fp32 holds them all exactly.
    short_floats = {name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.element_size() <= 2}
    return {name: (tensor.float() if name in short_floats else tensor).numpy() for name, tensor in tensors.items()}


def read_picture(file: Path, *, channels: int, size: tuple[int, int]) -> tuple[Array, tuple[int, int]]:
    """Pixels (1, C, H, W) from 0 to 255 at ``size`` (W, H), and the original size of the picture."""
    from PIL import Image

    try:
        with Image.open(file, formats=("PNG", "JPEG")) as opened:
            opened.load()
            original_size = opened.size
            if opened.mode.startswith(("I", "F")):
                raise InputError(f"{file} is a picture of mode {opened.mode}; 8 bits a channel are right")
            picture = opened.convert("RGB" if channels == 3 else "L")
    except InputError:
        raise
    except Exception as error:  # the library raises SyntaxError, struct.error and classes of its own
        raise InputError(f"{file} is no PNG or JPEG picture, or was cut short ({error})") from error
    if original_size != size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, np.float32)
    return (pixels.transpose(2, 0, 1) if channels == 3 else pixels[None])[None], original_size
