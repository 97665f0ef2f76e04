"""Errors that coreflow raises on purpose, one class per cause.

    CoreflowError                a caller or a file is wrong; the text names the fault and the remedy
    ├── ConfigError              an invalid preset, setting or recipe
    ├── InputError               an invalid text, tensor or corpus
    ├── BundleError              a bundle or package that is missing, changed, foreign or newer than this coreflow
    ├── UnsupportedError         a program with an op, type or option that a backend does not support
    └── ExportError              a stage that could not be converted or written

The commands print the text of a ``CoreflowError`` after ``error:`` and exit with ``exit_code``. Programs read its attributes; none has to
parse the text.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class FileProblem:
    """A file or folder of a bundle that is not as its manifest records it.

    >>> try:
    ...     Chain.load("artifacts/demo")
    ... except BundleError as error:
    ...     damaged = {problem.path for problem in error.problems if problem.kind == "digest"}
    """

    path: str  # below the bundle, with forward slashes
    kind: Literal["outside", "missing", "size", "digest", "unlisted"]
    text: str  # the whole sentence, beginning with the path

    def is_in(self, folder: str) -> bool:
        """Whether it is ``folder``, or lies below it; both below the bundle."""
        return self.path == folder or self.path.startswith(f"{folder}/")


class CoreflowError(Exception):
    """Base of every error that coreflow raises on purpose.

    >>> try:
    ...     Chain.load("artifacts/demo")
    ... except BundleError as error:
    ...     print(error.path, [problem.path for problem in error.problems if problem.kind == "missing"])
    """

    exit_code = 2

    def __init__(
        self,
        message: str = "",
        *,
        path: Path | str | None = None,  # of the bundle, package or file that it is about
        problems: Iterable[FileProblem] = (),
        expected: Iterable[str] = (),  # what would have been right, where that is a list of names
    ) -> None:
        super().__init__(message)
        self.path = None if path is None else Path(path)
        self.problems = tuple(problems)
        self.expected = tuple(expected)


class ConfigError(CoreflowError):
    """An invalid preset, setting or recipe.

    >>> raise ConfigError("preset 'huge' does not exist; choose one of demo, small", expected=("demo", "small"))
    """


class InputError(CoreflowError):
    """An invalid text, tensor or corpus.

    >>> raise InputError("no word in the text ' '; give at least one character that is not white space")
    """


class BundleError(CoreflowError):
    """A bundle or package that is missing, changed, foreign or newer than this coreflow.

    >>> try:
    ...     read_program("encoder.mlpackage")
    ... except BundleError as error:
    ...     print(error.path)
    """

    exit_code = 3


class UnsupportedError(CoreflowError):
    """A program with an op, type or option that a backend does not support.

    >>> try:
    ...     load_model("encoder.mlpackage", "lifted", device="cuda")
    ... except UnsupportedError:
    ...     load_model("encoder.mlpackage", "lifted")
    """


class ExportError(CoreflowError):
    """A stage that could not be converted or written.

    >>> try:
    ...     build(recipe, "artifacts/own")
    ... except ExportError as error:
    ...     print(error)
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says anything, or the name of its class; of TorchScript's the last, below its own stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if "TorchScript interpreter" in lines[0] else 0]
