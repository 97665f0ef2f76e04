"""A user's corpus: pairs of a text and its answer, one pair per line. Standard library only."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coreflow.models.errors import InputError

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")  # the last so that a JSON document is refused, not learned as text

_USABLE_SENTENCE = "one sentence"
_USABLE_OBJECT = 'an object with a "text", or with a "question" and an "answer", whose strings are not blank'


@dataclass(frozen=True, slots=True)
class Pair:
    """A text and its answer; the text itself where the corpus has single sentences.

    >>> Pair("ein Haus", "a house")
    """

    source: str
    target: str


def read_corpus(path: Path) -> list[Pair]:
    """The pairs of a UTF-8 file in its order: JSONL by its name (``JSON_SUFFIXES``), else plain text with one sentence per line.

    Blank lines, and objects whose strings are blank, are skipped. Anything else that is no pair is an ``InputError`` with
    its line, and so is a file without a pair.
    """
    is_json = path.suffix.lower() in JSON_SUFFIXES
    usable = _USABLE_OBJECT if is_json else _USABLE_SENTENCE
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot read the corpus ({error.strerror}); give a text or JSONL file") from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        try:
            pair = _read_pair(line.decode("utf-8").strip(), is_json=is_json)
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, line {number}: byte {error.start + 1} is no UTF-8; save the corpus as UTF-8") from error
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}; a usable line is {usable}") from error
        if pair is not None:
            pairs.append(pair)
    if not pairs:
        raise InputError(f"{path}: no usable line among {len(lines)}; a usable line is {usable}")
    return pairs


def _read_pair(line: str, *, is_json: bool) -> Pair | None:
    """The pair of one line without its end, None for a blank one; ``ValueError`` says what is wrong with any other."""
    if not line:
        return None
    fields: Any = {"text": line}
    if is_json:
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"no JSON ({error.msg} at column {error.colno})") from error
        except RecursionError as error:
            raise ValueError("JSON nested too deeply") from error
    if not isinstance(fields, dict):
        raise ValueError(f"JSON of type {type(fields).__name__}")
    names = ("text", "text") if "text" in fields else ("question", "answer")
    if missing := [name for name in names if name not in fields]:
        raise ValueError(f"an object without {' and '.join(missing)}; it has {', '.join(map(repr, fields)) or 'nothing'}")
    if foreign := [name for name in names if not isinstance(fields[name], str)]:
        raise ValueError(f"{foreign[0]} is a {type(fields[foreign[0]]).__name__}, not a string")
    source, target = (fields[name].strip() for name in names)
    try:
        (source + target).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("half of a surrogate pair, which is no Unicode") from error
    return Pair(source, target) if source and target else None
