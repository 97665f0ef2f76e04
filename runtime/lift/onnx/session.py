"""The one place where onnxruntime is imported."""

import os
from typing import Any

from coreflow.models.errors import UnsupportedError

# Read once, when onnxruntime starts. Source: onnxruntime pull requests 27379 and 29843 (release 1.29).
_VARIABLE = "ORT_DISABLE_TELEMETRY"


def import_onnxruntime() -> Any:
    """onnxruntime, told not to report to its makers; ``UnsupportedError`` when it is not installed.

    Its releases since 1.29, on Windows earlier ones, write an identifier of the machine into the user's cache and send the names of models,
    hashes of their weights and running times. A user who wants that sets ``ORT_DISABLE_TELEMETRY=0``.
    """
    chosen = os.environ.setdefault(_VARIABLE, "1")
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise UnsupportedError("onnxruntime is not installed; pip install onnxruntime") from error
    if chosen != "0":
        onnxruntime.disable_telemetry_events()  # on Windows, where the variable says nothing
    return onnxruntime
