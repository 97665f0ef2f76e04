"""Writes the evidence of a failure: the worst sample in a file that replays it, and a program cut around the culprit."""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import save_file

from coreflow.export.package.edit import cut
from coreflow.models.errors import CoreflowError
from coreflow.models.storage import write_atomically, write_folder_atomically
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.ladder.observation import Observation
from coreflow.validate.ladder.opening import OpenPackage
from coreflow.validate.options import Evidence
from coreflow.validate.replay.cut import record_inputs
from coreflow.validate.replay.recording import is_reachable, worst_sample, write_replay
from coreflow.validate.report.model import Report

logger = logging.getLogger(__name__)

_UNWRITABLE = (OSError, SafetensorError)  # the second is what safetensors makes of a full disk


def keep_evidence(evidence: Evidence, report: Report, opened: OpenPackage, observations: Sequence[Observation]) -> Report:
    """The report with the path of its replay, or a note why there is none; files of the same package and verdict are replaced."""
    reference, actual = [seen.reference for seen in observations], [seen.actual for seen in observations]
    worst = observations[worst_sample(report, [seen.sample for seen in observations], reference, actual)]
    outputs, stem = list(opened.model.outputs), f"{report.name}-{report.digest[:12]}"
    notes = [*report.notes]
    try:
        path = write_replay(
            evidence.folder / f"{stem}.safetensors",
            package=opened.path,
            sample=worst.sample,
            report=report,
            outputs=dict(zip(outputs, worst.reference, strict=True)),
            simulated=dict(zip(outputs, worst.simulated, strict=True)),
            reference=evidence.reference,
        )
    except _UNWRITABLE as error:
        return replace(report, notes=(*notes, f"the evidence could not be written: {error}"))
    if report.culprits:
        name = report.culprits[0].name
        folder = evidence.folder / f"{stem}-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}"
        try:
            if not folder.exists():
                write_folder_atomically(folder, lambda target: _cut_out(opened.path, name, target, worst.sample))
            notes.append(f"{name} alone, with what enters it: {folder}")
        except CoreflowError as error:  # not every op can stand alone
            logger.info("%s is not cut out: %s", name, error)
        except _UNWRITABLE as error:
            notes.append(f"{name} alone could not be written: {error}")
    replay_package = None if is_reachable(opened.path, path) else str(opened.path)
    return replace(report, replay=str(path), replay_package=replay_package, notes=tuple(notes))


def _cut_out(package: Path, op: str, folder: Path, sample: Sample) -> None:
    """Write the op and the one before it as a package of their own, and its inputs in fp16 execution."""
    cut(package, op, folder / "op.mlpackage", radius=1)
    inputs = record_inputs(package, op, sample, "fp16", radius=1)
    write_atomically(folder / "inputs.safetensors", lambda file: save_file(inputs, file))
