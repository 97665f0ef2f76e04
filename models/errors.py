"""What can go wrong, one class a cause.

    CoreflowError                a caller or a file got something wrong; the text says what and what would be right
    ├── ConfigError              a preset, setting or recipe that cannot be
    ├── InputError               text, tensor or corpus that the model cannot take
    ├── BundleError              a bundle or package that is missing, changed, foreign or newer than this coreflow
    ├── UnsupportedError         a program that uses what a backend does not execute
    └── ExportError              a stage that could not be converted or written

The commands print the text of a ``CoreflowError`` after ``error:`` and exit with ``exit_code``.
"""


class CoreflowError(Exception):
    """Base of every error that coreflow raises on purpose."""

    exit_code = 2


class ConfigError(CoreflowError):
    """A preset, setting or recipe that cannot be."""


class InputError(CoreflowError):
    """Text, a tensor or a corpus that the model cannot take."""


class BundleError(CoreflowError):
    """A bundle or package that is missing, changed, foreign or newer than this coreflow."""

    exit_code = 3


class UnsupportedError(CoreflowError):
    """A program that uses what a backend does not execute."""


class ExportError(CoreflowError):
    """A stage that could not be converted or written."""
