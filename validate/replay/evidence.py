"""What a failed validation leaves behind: the worst sample in a file that replays it, and a program cut around the culprit."""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.numpy import save_file

from coreflow.export.package.edit import cut
from coreflow.models.errors import CoreflowError
from coreflow.models.storage import write_atomically, write_folder_atomically
from coreflow.validate.ladder.observation import Observation
from coreflow.validate.ladder.opening import OpenPackage
from coreflow.validate.options import Evidence
from coreflow.validate.replay.cut import record_inputs
from coreflow.validate.replay.recording import is_reachable, worst_sample, write_replay
from coreflow.validate.report.model import Report

logger = logging.getLogger(__name__)


def keep_evidence(evidence: Evidence, report: Report, opened: OpenPackage, observations: Sequence[Observation]) -> Report:
    """The report with the path of its replay; files of the same package and verdict are replaced."""
    exact, actual = [seen.reference for seen in observations], [seen.actual for seen in observations]
    seen = observations[worst_sample(report, [each.sample for each in observations], exact, actual)]
    outputs, stem = list(opened.model.outputs), f"{report.name}-{report.digest[:12]}"
    path = write_replay(
        evidence.folder / f"{stem}.safetensors",
        package=opened.path,
        sample=seen.sample,
        report=report,
        outputs=dict(zip(outputs, seen.reference, strict=True)),
        simulated=None if seen.simulated is None else dict(zip(outputs, seen.simulated, strict=True)),
        reference=evidence.reference,
    )
    notes = [*report.notes]
    if report.culprits:
        name = report.culprits[0].name
        alone = evidence.folder / f"{stem}-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}"
        try:
            if not alone.exists():
                write_folder_atomically(alone, lambda folder: _cut(opened.path, name, folder, seen))
            notes.append(f"{name} alone, with what enters it: {alone}")
        except CoreflowError as error:  # not every op can stand alone
            logger.info("%s is not cut out: %s", name, error)
    told = None if is_reachable(opened.path, path) else str(opened.path)
    return replace(report, replay=str(path), replay_package=told, notes=tuple(notes))


def _cut(package: Path, op: str, folder: Path, seen: Observation) -> None:
    """The op and the one before it as a package of their own, and its inputs in fp16 execution."""
    cut(package, op, folder / "op.mlpackage", radius=1)
    inputs = record_inputs(package, op, seen.sample, "fp16", radius=1)
    write_atomically(folder / "inputs.safetensors", lambda file: save_file(inputs, file))
