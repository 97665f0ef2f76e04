"""Resizing and resampling the last two axes of an image. Source of every rule: MIL iOS15 image_resizing, where no other is named."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from coreflow.runtime.lift.limits import bounded, bounded_axis
from coreflow.runtime.lift.registry import lowering


def sampling_grid(mode: str, extent: float, count: int) -> list[float]:
    """Where ``count`` samples lie on an axis with pixels 0 .. extent - 1; not yet clamped to it."""
    bounded_axis(count)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if count == 1:
            return [(extent - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0]
        return [i * (extent - 1) / (count - 1) for i in range(count)]
    if mode == "DEFAULT":
        return [i * extent / count for i in range(count)]
    if mode == "OFFSET_CORNERS":
        delta = max(1.0, extent - 1) / count
        return [(i + 0.5) * delta for i in range(count)]
    if mode == "UNALIGN_CORNERS":
        return [(i + 0.5) * extent / count - 0.5 for i in range(count)]
    raise ValueError(f"sampling mode {mode!r}")


def _interpolate(x: Tensor, axis: int, places: Sequence[float]) -> Tensor:
    """``x`` at fractional places along ``axis``, linear between pixels and constant beyond the first and last."""
    last = x.shape[axis] - 1
    clamped = [min(max(place, 0.0), float(last)) for place in places]
    if clamped == [float(i) for i in range(x.shape[axis])]:
        return x
    low = [min(math.floor(place), last) for place in clamped]
    high = [min(i + 1, last) for i in low]
    shape = [1] * x.dim()
    shape[axis] = -1
    share = torch.tensor([place - i for place, i in zip(clamped, low, strict=True)], dtype=x.dtype, device=x.device).reshape(shape)
    return _taken(x, axis, low) * (1 - share) + _taken(x, axis, high) * share


def _taken(x: Tensor, axis: int, places: Sequence[int]) -> Tensor:
    bounded((*x.shape[:axis], len(places), *x.shape[axis + 1 :]))
    return torch.index_select(x, axis, torch.tensor(places, device=x.device))


def _nearest(x: Tensor, axis: int, places: Sequence[int]) -> Tensor:
    last = x.shape[axis] - 1
    return _taken(x, axis, [min(max(place, 0), last) for place in places])


def _linear_both(x: Tensor, mode: str, height: int, width: int) -> Tensor:
    tall = _interpolate(x, x.dim() - 2, sampling_grid(mode, x.shape[-2], height))
    return _interpolate(tall, x.dim() - 1, sampling_grid(mode, x.shape[-1], width))


def _scaled(extent: int, factor: float) -> int:
    """floor(extent * factor) with the product rounded to float32, as MIL does: 5 * 2.6 is 13 there and less in float64."""
    return bounded_axis(math.floor(np.float32(extent) * np.float32(factor)))


@lowering("upsample_nearest_neighbor")
def upsample_nearest_neighbor(x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1) -> Tensor:
    """Pixels repeated; fractional factors give floor(extent * factor) pixels."""
    for axis, factor in ((x.dim() - 2, scale_factor_height), (x.dim() - 1, scale_factor_width)):
        extent = x.shape[axis]
        count = _scaled(extent, factor)
        x = _nearest(x, axis, [i * extent // count for i in range(count)])
    return x


@lowering("resize_nearest_neighbor")
def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """The pixel at or before every sample."""
    for axis, count in ((x.dim() - 2, bounded_axis(target_size_height)), (x.dim() - 1, bounded_axis(target_size_width))):
        extent = x.shape[axis]
        x = _nearest(x, axis, [i * extent // count for i in range(count)])
    return x


@lowering("upsample_bilinear")
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """Bilinear with floor(extent * factor) pixels; half_pixel_centers (iOS16) is the opposite of align_corners unless given."""
    half = not align_corners if half_pixel_centers is None else half_pixel_centers
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if half else "DEFAULT"
    return _linear_both(x, mode, _scaled(x.shape[-2], scale_factor_height), _scaled(x.shape[-1], scale_factor_width))


@lowering("resize_bilinear")
def resize_bilinear(x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT") -> Tensor:
    """Bilinear to a given size."""
    return _linear_both(x, sampling_mode, target_size_height, target_size_width)


@lowering("resize")
def resize(
    x: Tensor, shape: Sequence[int], resized_dims: int, interpolation_mode: str = "LINEAR", sampling_mode: str = "DEFAULT"
) -> Tensor:
    """The last ``resized_dims`` axes to the last extents of ``shape``; 0 leaves an axis. Source: MIL iOS17.

    Its nearest neighbour is the pixel closest to a sample, not the one before it as in ``resize_nearest_neighbor``.
    """
    for axis, count in zip(range(x.dim() - resized_dims, x.dim()), shape[len(shape) - resized_dims :], strict=True):
        extent = x.shape[axis]
        places = sampling_grid(sampling_mode, extent, count or extent)
        if interpolation_mode == "LINEAR":
            x = _interpolate(x, axis, places)
        else:
            x = _nearest(x, axis, [math.floor(place + 0.5) for place in places])
    return x


@lowering("crop")
def crop(x: Tensor, crop_height: Sequence[int], crop_width: Sequence[int]) -> Tensor:
    """Without so many rows at the top and bottom and columns at the left and right."""
    height, width = x.shape[-2:]
    return x[..., crop_height[0] : height - crop_height[1], crop_width[0] : width - crop_width[1]]


@lowering("crop_resize")
def crop_resize(
    x: Tensor,
    roi: Tensor,
    *,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """Boxes cut out and resized: x (B, C, H, W), roi (N, 1, 4 or 5, 1, 1) -> (N, B or 1, C, height, width).

    A fifth number, in front, is the image that the box belongs to; otherwise every box is cut out of every image. pad_value since iOS16.
    """
    bounded((roi.shape[0], *x.shape[: 2 if roi.shape[2] == 4 else 1], target_height, target_width))
    crops = []
    for numbers in roi.reshape(roi.shape[0], -1).tolist():
        images = x if len(numbers) == 4 else x[int(numbers[0])].unsqueeze(0)
        box = _corners(numbers[-4:], box_coordinate_mode, spatial_scale, x.shape[-2:] if normalized_coordinates else None)
        if box[2] + 1 < box[0] and box[3] + 1 < box[1]:
            box = (0.0, 0.0, x.shape[-2] - 1.0, x.shape[-1] - 1.0)  # what Core ML gives; other inverted boxes are cut out mirrored
        crops.append(_cut_out(images, box, (target_height, target_width), sampling_mode, pad_value))
    return torch.stack(crops)


@lowering("crop_resize", since="iOS17")
def crop_resize_ios17(
    x: Tensor,
    boxes: Tensor,
    box_indices: Tensor | None = None,
    *,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """Boxes (N, 4) cut out of the images that ``box_indices`` names, box i out of image i without it: (N, C, height, width)."""
    bounded((boxes.shape[0], x.shape[1], target_height, target_width))
    images = range(boxes.shape[0]) if box_indices is None else box_indices.tolist()
    crops = []
    for image, numbers in zip(images, boxes.tolist(), strict=True):
        box = _corners(numbers, box_coordinate_mode, spatial_scale, x.shape[-2:] if normalized_coordinates else None)
        crops.append(_cut_out(x[image].unsqueeze(0), box, (target_height, target_width), sampling_mode, pad_value)[0])
    return torch.stack(crops)


Box = tuple[float, float, float, float]  # top, left, bottom, right in pixels


def _corners(numbers: Sequence[float], mode: str, scale: float, extents: Sequence[int] | None) -> Box:
    """A box in any of MIL's four notations; ``extents`` (H, W) where it is given in shares of the image."""
    first, second, third, fourth = (number * scale for number in numbers)
    if mode.endswith("WIDTH_FIRST"):
        first, second, third, fourth = second, first, fourth, third
    if mode.startswith("CENTER"):
        first, second, third, fourth = first - third / 2, second - fourth / 2, first + third / 2, second + fourth / 2
    height, width = (1, 1) if extents is None else (extents[0] - 1, extents[1] - 1)
    return first * height, second * width, third * height, fourth * width


def _cut_out(images: Tensor, box: Box, size: tuple[int, int], mode: str, pad_value: float) -> Tensor:
    """One box out of every image (B, C, H, W), resized; samples outside an image hold ``pad_value``."""
    top, left, bottom, right = box
    H, W = images.shape[-2:]
    rows = [top + place for place in sampling_grid(mode, bottom - top + 1, size[0])]
    columns = [left + place for place in sampling_grid(mode, right - left + 1, size[1])]
    cut = _interpolate(_interpolate(images, 2, rows), 3, columns)
    outside_rows = torch.tensor([not 0 <= row <= H - 1 for row in rows], device=images.device)
    outside_columns = torch.tensor([not 0 <= column <= W - 1 for column in columns], device=images.device)
    return torch.where(outside_rows[:, None] | outside_columns[None, :], torch.full_like(cut, pad_value), cut)


@lowering("affine")
def affine(
    x: Tensor,
    transform_matrix: Tensor,
    *,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """The image seen through a linear map: output (u, v) shows x at (a0 u + a1 v + a2, b0 u + b1 v + b2); matrix (B or 1, 6)."""
    bounded((x.shape[0], output_height, output_width, 2))
    across = torch.linspace(-1, 1, output_width, dtype=x.dtype, device=x.device)
    down = torch.linspace(-1, 1, output_height, dtype=x.dtype, device=x.device)
    v, u = torch.meshgrid(down, across, indexing="ij")
    ones = torch.ones_like(u)
    matrix = transform_matrix.reshape(-1, 2, 3).expand(x.shape[0], 2, 3)
    coordinates = torch.einsum("bij,hwj->bhwi", matrix, torch.stack((u, v, ones), -1))
    return resample(
        x,
        coordinates,
        sampling_mode=sampling_mode,
        padding_mode=padding_mode,
        padding_value=padding_value,
        coordinates_mode=coordinates_mode,
        align_corners=align_corners,
    )


@lowering("resample")
def resample(
    x: Tensor,
    coordinates: Tensor,
    *,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """``x`` (B, C, H, W) at ``coordinates`` (B, H', W', (x, y)): (B, C, H', W')."""
    H, W = x.shape[-2:]
    bounded((*x.shape[:2], *coordinates.shape[1:3]))
    points = coordinates.to(x.dtype)
    columns = _in_pixels(points[..., 0], W, coordinates_mode, align_corners=align_corners)
    rows = _in_pixels(points[..., 1], H, coordinates_mode, align_corners=align_corners)
    if sampling_mode == "nearest":
        # Half way between two pixels, the one after.
        return _pixels(x, torch.floor(rows + 0.5), torch.floor(columns + 0.5), padding_mode, padding_value)
    top, left = torch.floor(rows), torch.floor(columns)
    lower, right = (rows - top).unsqueeze(1), (columns - left).unsqueeze(1)
    corners = [_pixels(x, row, column, padding_mode, padding_value) for row in (top, top + 1) for column in (left, left + 1)]
    upper, under = ((1 - right) * corners[i] + right * corners[i + 1] for i in (0, 2))
    return (1 - lower) * upper + lower * under


def _in_pixels(place: Tensor, extent: int, mode: str, *, align_corners: bool) -> Tensor:
    """A coordinate in units of pixels, the first pixel's centre at 0."""
    if mode == "unnormalized":
        return place
    share = (place + 1) / 2 if mode == "normalized_minus_one_to_one" else place
    return share * (extent - 1) if align_corners else share * extent - 0.5


def _pixels(x: Tensor, rows: Tensor, columns: Tensor, padding_mode: str, padding_value: float) -> Tensor:
    """``x`` (B, C, H, W) at whole-numbered rows and columns (B, H', W'), which may lie outside."""
    H, W = x.shape[-2:]
    inside = (rows >= 0) & (rows <= H - 1) & (columns >= 0) & (columns <= W - 1)
    row, column = _back_inside(rows, H, padding_mode), _back_inside(columns, W, padding_mode)
    flat = (row * W + column).flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)
    taken = torch.gather(x.flatten(2), 2, flat).reshape(x.shape[0], x.shape[1], *rows.shape[1:])
    return torch.where(inside.unsqueeze(1), taken, torch.full_like(taken, padding_value)) if padding_mode == "constant" else taken


def _back_inside(place: Tensor, extent: int, padding_mode: str) -> Tensor:
    whole = place.long()
    if padding_mode in ("constant", "border"):
        return whole.clamp(0, extent - 1)
    if padding_mode == "reflection":
        period = max(2 * (extent - 1), 1)
        around = torch.remainder(whole, period)
        return torch.minimum(around, period - around)
    if padding_mode == "symmetric":
        around = torch.remainder(whole, 2 * extent)
        return torch.minimum(around, 2 * extent - 1 - around)
    raise ValueError(f"padding mode {padding_mode!r}")
