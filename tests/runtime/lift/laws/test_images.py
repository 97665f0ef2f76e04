"""Laws of resizing and resampling: every sampling mode and size, against the documented grids and scipy's interpolation."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import ndimage

if TYPE_CHECKING:
    from tests.runtime.lift.laws.conftest import Draw, Law

Arguments = dict[str, Any]
MODES = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS")
PADDING = {"constant": "grid-constant", "border": "nearest", "reflection": "mirror", "symmetric": "reflect"}


def grid(mode: str, extent: float, count: int) -> Any:
    """The table in the documentation of resize_bilinear, before the samples are cut to the image; one sample has no spacing."""
    i, steps = np.arange(count), max(count - 1, 1)
    if mode == "ALIGN_CORNERS" and count == 1:
        return np.array([(extent - 1) / 2])
    delta = max(1.0, extent - 1) / count
    return {
        "STRICT_ALIGN_CORNERS": i * (extent - 1) / steps,
        "ALIGN_CORNERS": i * (extent - 1) / steps,
        "DEFAULT": i * (extent - extent / count) / steps,
        "OFFSET_CORNERS": 0.5 * delta + i * (count - 1) * delta / steps,
        "UNALIGN_CORNERS": i * extent / count + 0.5 * extent / count - 0.5,
    }[mode]


def linear(x: Any, axis: int, places: Any) -> Any:
    return np.apply_along_axis(lambda row: np.interp(places, range(len(row)), row), axis, x.astype(np.float64))


def nearest(x: Any, axis: int, places: Any) -> Any:
    return np.take(x, np.clip(np.floor(places), 0, x.shape[axis] - 1).astype(int), axis)


def image(draw: "Draw") -> Any:
    return draw.floats(*draw.shape(3, 5))


def resize_bilinear(draw: "Draw") -> Arguments:
    sizes = {"target_size_height": draw.whole(1, 7), "target_size_width": draw.whole(1, 7)}
    return {"x": image(draw), **sizes, "sampling_mode": draw.one([None, *MODES])}


def bilinear(x: Any, target_size_height: int, target_size_width: int, sampling_mode: str = "DEFAULT") -> Any:
    tall = linear(x, -2, grid(sampling_mode, x.shape[-2], target_size_height))
    return linear(tall, -1, grid(sampling_mode, x.shape[-1], target_size_width))


def resize_nearest(draw: "Draw") -> Arguments:
    return {"x": image(draw), "target_size_height": draw.whole(1, 7), "target_size_width": draw.whole(1, 7)}


def nearest_before(x: Any, target_size_height: int, target_size_width: int) -> Any:
    """In whole numbers: i * 5 / 3 as a float may lie below the whole number that it is."""
    for axis, count in ((-2, target_size_height), (-1, target_size_width)):
        x = np.take(x, [i * x.shape[axis] // count for i in range(count)], axis)
    return x


def factors(draw: "Draw", x: Any) -> Arguments:
    """Factors that leave at least one pixel: both whole, or both not."""
    whole, result = draw.flag(), {}
    for name, extent in zip(("scale_factor_height", "scale_factor_width"), x.shape[-2:], strict=True):
        fractions = [1.5, 2.6, 1.0 / extent + 0.26, float(draw.floats(1, low=1, high=3)[0])]
        result[name] = draw.one([None, 1, 2, 3] if whole else fractions)
    return result


def upsample_nearest(draw: "Draw") -> Arguments:
    x = image(draw)
    return {"x": x, **factors(draw, x)}


def enlarged(x: Any, scale_factor_height: float = 1, scale_factor_width: float = 1) -> tuple[int, int]:
    H, W = x.shape[-2:]
    return math.floor(np.float32(scale_factor_height) * np.float32(H)), math.floor(np.float32(scale_factor_width) * np.float32(W))


def upsample_bilinear(draw: "Draw") -> Arguments:
    x, opset = image(draw), draw.since("CoreML5")
    align = draw.one([None, False, True])
    half = draw.one([None, False, True]) if opset >= "CoreML6" and align is False else None
    return {"x": x, **factors(draw, x), "align_corners": align, "half_pixel_centers": half, "opset": opset}


def upsampled(x: Any, align_corners: bool = True, half_pixel_centers: bool | None = None, **factors: float) -> Any:
    half = "DEFAULT" if half_pixel_centers is False else "UNALIGN_CORNERS"
    return bilinear(x, *enlarged(x, **factors), "STRICT_ALIGN_CORNERS" if align_corners else half)


def resize(draw: "Draw") -> Arguments:
    shape = draw.shape(1, 5)
    mode = draw.one([None, "LINEAR", "NEAREST_NEIGHBOR"])
    x = draw.numbers(*shape) if mode == "NEAREST_NEIGHBOR" else draw.floats(*shape)
    given = draw.whole(1, len(shape))
    return {
        "x": x,
        "shape": draw.wholes(given, 0, 6),
        "resized_dims": np.uint32(draw.whole(1, given)),
        "interpolation_mode": mode,
        "sampling_mode": draw.one([None, *MODES]),
        "opset": draw.since("CoreML7"),
    }


def resized(x: Any, shape: Any, resized_dims: Any, interpolation_mode: str = "LINEAR", sampling_mode: str = "DEFAULT") -> Any:
    """Nearest is the pixel closest to the sample, of two the one after."""
    for axis in range(-int(resized_dims), 0):
        places = grid(sampling_mode, x.shape[axis], shape[axis] or x.shape[axis])
        x = linear(x, axis, places) if interpolation_mode == "LINEAR" else nearest(x, axis, np.round(places + 0.5, 9))
    return x


def sampling(draw: "Draw") -> Arguments:
    return {
        "sampling_mode": draw.one(["bilinear", "nearest"]),
        "padding_mode": draw.one(list(PADDING)),
        "padding_value": draw.one([0.0, 2.5]),
        "coordinates_mode": draw.one(["unnormalized", "normalized_minus_one_to_one", "normalized_zero_to_one"]),
        "align_corners": draw.flag(),
    }


def resample(draw: "Draw") -> Arguments:
    x = draw.floats(*draw.shape(4, 4, most=5))
    shape = (len(x), *draw.wholes(2, 1, 3), 2)
    options = sampling(draw)
    if options["coordinates_mode"] == "unnormalized":
        coordinates = draw.ints(*shape, low=-6, high=9) if draw.flag() else draw.floats(*shape, low=-6, high=9)
    else:
        coordinates = draw.floats(*shape, low=-2, high=2)
    return {"x": x, "coordinates": coordinates, **options}


def resampled(
    x: Any, coordinates: Any, sampling_mode: str, padding_mode: str, padding_value: float, coordinates_mode: str, align_corners: bool
) -> Any:
    result = np.empty((*x.shape[:2], *coordinates.shape[1:3]))
    for b, c in np.ndindex(*x.shape[:2]):
        pixels = []
        for part, extent in ((1, x.shape[2]), (0, x.shape[3])):
            place = coordinates[b, ..., part].astype(np.float64)
            if coordinates_mode != "unnormalized":
                share = (place + 1) / 2 if coordinates_mode == "normalized_minus_one_to_one" else place
                place = share * (extent - 1) if align_corners else share * extent - 0.5
            pixels.append(place)
        order = 1 if sampling_mode == "bilinear" else 0
        result[b, c] = ndimage.map_coordinates(
            x[b, c].astype(np.float64), pixels, order=order, mode=PADDING[padding_mode], cval=padding_value, prefilter=False
        )
    return result


def affine(draw: "Draw") -> Arguments:
    """MIL has one sampling, one padding and one kind of coordinates for it."""
    x = draw.floats(*draw.shape(4, 4, most=5))
    matrix = draw.floats(draw.one([1, len(x)]), 6, low=-1, high=1)
    sampled = {"sampling_mode": "bilinear", "padding_mode": "constant", "padding_value": 0.0}
    placed = {"coordinates_mode": "normalized_minus_one_to_one", "align_corners": True}
    return {"x": x, "transform_matrix": matrix, "output_height": draw.whole(1, 4), "output_width": draw.whole(1, 4), **sampled, **placed}


def seen_through(x: Any, transform_matrix: Any, output_height: int, output_width: int, **options: Any) -> Any:
    """Output pixels lie between -1 and 1 too."""
    v, u = np.meshgrid(np.linspace(-1, 1, output_height), np.linspace(-1, 1, output_width), indexing="ij")
    matrix = np.broadcast_to(transform_matrix.reshape(-1, 2, 3), (len(x), 2, 3)).astype(np.float64)
    coordinates = np.einsum("bij,jhw->bhwi", matrix, np.stack((u, v, np.ones_like(u))))
    return resampled(x, coordinates, **options)


def boxes(draw: "Draw", count: int, H: int, W: int, mode: str, *, normalized: bool) -> Any:
    """Boxes in any notation: within the image, or reaching beyond it."""
    out = draw.one([0, 0, -2])
    top, left = draw.floats(count, low=out, high=(H - 1) / 2), draw.floats(count, low=out, high=(W - 1) / 2)
    bottom, right = top + draw.floats(count, low=0, high=(H - 1) / 2), left + draw.floats(count, low=0, high=(W - 1) / 2)
    if normalized:
        down, across = max(H - 1, 1), max(W - 1, 1)
        top, bottom, left, right = top / down, bottom / down, left / across, right / across
    rows, columns = (top, bottom), (left, right)
    if mode.startswith("CENTER"):
        rows, columns = ((top + bottom) / 2, bottom - top), ((left + right) / 2, right - left)
    first, second = (rows, columns) if mode.endswith("HEIGHT_FIRST") else (columns, rows)
    return np.stack((first[0], second[0], first[1], second[1]), -1).astype(np.float32)


def crop_options(draw: "Draw") -> Arguments:
    return {
        "target_height": draw.whole(1, 4),
        "target_width": draw.whole(1, 4),
        "normalized_coordinates": draw.flag(),
        "spatial_scale": draw.one([None, 0.5]),
        "box_coordinate_mode": draw.one([f"{kind}_{order}_FIRST" for kind in ("CORNERS", "CENTER_SIZE") for order in ("HEIGHT", "WIDTH")]),
        "sampling_mode": draw.one([None, *MODES]),
    }


def crop_resize(draw: "Draw") -> Arguments:
    """Of every image (four numbers), or of one that the fifth number, in front, names; MIL counts all images for that too."""
    numbered = draw.flag()
    x = draw.floats(1 if numbered else draw.whole(1, 2), *draw.wholes(3, 1, 5))
    options = crop_options(draw)
    count, opset = draw.whole(1, 3), draw.one(["CoreML5", "CoreML6"])
    options["pad_value"] = draw.one([None, 2.5]) if opset == "CoreML6" else None
    H, W = x.shape[2:]
    own = boxes(draw, count, H, W, options["box_coordinate_mode"], normalized=options["normalized_coordinates"])
    roi = np.concatenate((np.zeros((count, 1), np.float32), own), 1) if numbered else own
    return {"x": x, "roi": roi.reshape(count, 1, -1, 1, 1), **options, "opset": opset}


def crop_resize_ios17(draw: "Draw") -> Arguments:
    x = draw.floats(*draw.wholes(2, 1, 3), *draw.wholes(2, 1, 5))
    options = crop_options(draw)
    indices = draw.one([None, draw.ints(draw.whole(1, 3), low=0, high=len(x) - 1)])
    options["pad_value"] = draw.one([None, 2.5])
    count = len(x) if indices is None else len(indices)
    H, W = x.shape[2:]
    own = boxes(draw, count, H, W, options["box_coordinate_mode"], normalized=options["normalized_coordinates"])
    return {"x": x, "boxes": own, "box_indices": indices, **options, "opset": draw.since("CoreML7")}


def cut(
    image: Any, numbers: Any, *, target_height: int, target_width: int, normalized_coordinates: bool, box_coordinate_mode: str,
    spatial_scale: float = 1.0, sampling_mode: str = "DEFAULT", pad_value: float = 0.0,
) -> Any:  # fmt: skip
    """One box (four numbers) of one image (C, H, W)."""
    numbers = numbers.astype(np.float64) * spatial_scale
    rows, columns = numbers[[0, 2]], numbers[[1, 3]]
    if box_coordinate_mode.endswith("WIDTH_FIRST"):
        rows, columns = columns, rows
    if box_coordinate_mode.startswith("CENTER"):
        rows, columns = (np.array([centre - size / 2, centre + size / 2]) for centre, size in (rows, columns))
    places = []
    for (first, last), extent, count in ((rows, image.shape[1], target_height), (columns, image.shape[2], target_width)):
        scale = extent - 1 if normalized_coordinates else 1
        places.append(first * scale + grid(sampling_mode, (last - first) * scale + 1, count))
    inside = [(p >= 0) & (p <= e - 1) for p, e in zip(places, image.shape[1:], strict=True)]
    return np.where(inside[0][:, None] & inside[1], linear(linear(image, 1, places[0]), 2, places[1]), pad_value)


def cropped(x: Any, roi: Any, **options: Any) -> Any:
    rows = roi.reshape(len(roi), -1)
    chosen = [x if rows.shape[1] == 4 else x[[int(row[0])]] for row in rows]
    return np.stack([[cut(image, row[-4:], **options) for image in images] for images, row in zip(chosen, rows, strict=True)])


def cropped_ios17(x: Any, boxes: Any, box_indices: Any = None, **options: Any) -> Any:
    chosen = range(len(boxes)) if box_indices is None else box_indices
    return np.stack([cut(x[index], row, **options) for index, row in zip(chosen, boxes, strict=True)])


LAWS: dict[str, tuple[Callable[["Draw"], Arguments], Callable[..., Any]]] = {
    "resize_bilinear": (resize_bilinear, bilinear),
    "resize_nearest_neighbor": (resize_nearest, nearest_before),
    "upsample_nearest_neighbor": (upsample_nearest, lambda x, **factors: nearest_before(x, *enlarged(x, **factors))),
    "upsample_bilinear": (upsample_bilinear, upsampled),
    "resize": (resize, resized),
    "resample": (resample, resampled),
    "affine": (affine, seen_through),
    "crop_resize": (crop_resize, cropped),
    "crop_resize since iOS17": (crop_resize_ios17, cropped_ios17),
}


@pytest.mark.parametrize("case", LAWS)
def test_results_are_the_documented_samples_in_the_shape_that_mil_infers(law: "Law", case: str) -> None:
    law.agrees_with_mil(case.partition(" ")[0], *LAWS[case])
