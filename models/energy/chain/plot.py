"""A picture of one sentence's way through the lattice."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coreflow.models.arrays import Array
from coreflow.models.energy.config import EnergyConfig
from coreflow.models.errors import InputError
from coreflow.models.storage import write_atomically

if TYPE_CHECKING:
    from coreflow.models.energy.chain.pipeline import EnergyResult

SUFFIXES = (".png", ".svg", ".pdf")


def plot_flows(result: "EnergyResult", config: EnergyConfig, path: Path) -> None:
    """Save the surface that enters, the paths of the flows, and the surface that leaves, on one scale of energy."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: a picture ends in {', '.join(SUFFIXES)}")
    limit = max(1.0, float(np.abs(result.input_surface).max()), float(np.abs(result.output_surface).max()))
    figure = Figure(figsize=(14, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1, 3, width_ratios=(1, 1.35, 1))
    for column, surface, title in ((0, result.input_surface, "surface in"), (2, result.output_surface, "surface out")):
        axes = figure.add_subplot(grid[column])
        image = axes.imshow(surface, cmap="coolwarm", vmin=-limit, vmax=limit, origin="lower")
        axes.set(title=title, xlabel="x (cells)", ylabel="y (cells)")
    figure.colorbar(image, ax=figure.axes, location="right", shrink=0.8, label="energy")
    space: Any = figure.add_subplot(grid[1], projection="3d")
    colours = image.cmap
    for path_points, energies in flow_paths(result):
        x, y, z = path_points.T
        space.plot(
            z,
            x,
            y,
            color=colours((energies.mean() / limit + 1) / 2),
            linewidth=0.6 + 1.8 * float(np.abs(energies).mean()) / limit,
            alpha=0.85,
        )
    # A flow leaves the table in the step that takes it to the face: the face is drawn as what it holds at the end.
    rows, columns = np.nonzero(result.tables[-1]["face_weight"][0, 0])
    faces = colours((result.output_surface[rows, columns] / limit + 1) / 2)
    space.scatter(np.full(len(rows), config.depth - 1), columns, rows, c=faces, marker="s", s=18, depthshade=False)
    space.set(
        xlabel="z (depth)",
        ylabel="x",
        zlabel="y",
        xlim=(config.plane, config.depth - 1),
        ylim=(0, config.width - 1),
        zlim=(0, config.height - 1),
    )
    space.set_xticks(range(config.plane, config.depth))
    space.view_init(elev=18, azim=-62)
    flows = result.statistics
    space.set_title(f"{flows.started} flows, {flows.spawned} spawned, {flows.died} died, {flows.arrived} arrived in {flows.steps} steps")
    figure.suptitle(result.text)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110, format=path.suffix[1:].lower()))


def flow_paths(result: "EnergyResult") -> list[tuple[Array, Array]]:
    """Points (K, 3) in cells and energies (K,) of every flow while it was in the table.

    A slot can hold several flows one after the other: a flow's age grows by one a step, so a slot whose age does not is
    another flow's.
    """
    paths: list[tuple[Array, Array]] = []
    slots = result.tables[0]["alive"].shape[3]
    for slot in range(slots):
        points: list[Array] = []
        energies: list[float] = []
        age = -1.0
        for table in result.tables:
            alive = table["alive"][0, 0, 0, slot] > 0.5
            follows = alive and table["age"][0, 0, 0, slot] == age + 1
            if points and not follows:
                paths.append((np.array(points), np.array(energies)))
                points, energies = [], []
            if alive:
                points.append(table["position"][0, :, 0, slot])
                energies.append(float(table["energy"][0, 0, 0, slot]))
                age = float(table["age"][0, 0, 0, slot])
        if points:
            paths.append((np.array(points), np.array(energies)))
    return paths
