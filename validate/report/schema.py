"""The JSON Schema of a report, made from the dataclasses of ``model``; ``python -m coreflow.validate.report.schema`` prints it."""

import json
import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from coreflow.validate.report.model import BundleReport, ChainReport, OutputReport, Report, RungName, Samples, TokenAgreement

SCHEMA_VERSION = 3  # fields that were not in version 2 are listed in ``older``, by which baselines in other people's repositories are read
KINDS: Mapping[type, str] = {Report: "coreflow validation of a package", BundleReport: "coreflow validation of a bundle"}
# Properties that are written beside the fields.
COMPUTED: Mapping[type, tuple[str, ...]] = {
    OutputReport: ("outcome", "headroom", "largest_jump"),
    Report: ("exit_code",),
    BundleReport: ("exit_code", "failing_stages"),
    Samples: ("total", "left_out"),
    TokenAgreement: ("share",),
}
# Definitions that were published under another name than the class has now.
_PUBLISHED: Mapping[type, str] = {ChainReport: "CascadeReport"}


def schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12."""
    definitions: dict[str, Any] = {}
    roots = [_of_type(kind, definitions) for kind in KINDS]
    for kind, title in KINDS.items():
        properties = {"schema_version": {"const": SCHEMA_VERSION}, "report": {"const": title}}
        known = definitions[kind.__name__]
        # A stage inside a bundle is a Report without these two.
        definitions[f"{kind.__name__}File"] = _object({**properties, **known["properties"]}, known["description"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:coreflow:report:{SCHEMA_VERSION}",
        "title": "Report of coreflow validate",
        "description": "Numbers that are not finite are null. Errors are against float64; units are those of the output.",
        "oneOf": [{"$ref": f"{root['$ref']}File"} for root in roots],
        "$defs": dict(sorted(definitions.items())),
    }


def misfit(plain: Any, rule: Mapping[str, Any], definitions: Mapping[str, Any], at: str = "") -> str | None:
    """The first place where ``plain`` breaks ``rule``, in words; None where it keeps to it.

    Knows the keywords that ``schema`` writes and no others.
    """
    if "$ref" in rule:
        return misfit(plain, definitions[rule["$ref"].rpartition("/")[2]], definitions, at)
    if "anyOf" in rule:
        choices = [misfit(plain, choice, definitions, at) for choice in rule["anyOf"]]
        return None if None in choices else choices[0]
    if not _is_allowed(plain, rule):
        return f"{at.lstrip('.') or 'the report'} is {_shown(plain)}; {_allowed(rule)} is right"
    if isinstance(plain, Mapping):
        return _object_misfit(plain, rule, definitions, at)
    if isinstance(plain, list):
        misfits = (misfit(item, rule["items"], definitions, f"{at}[{place}]") for place, item in enumerate(plain))
        return next((text for text in misfits if text is not None), None)
    return None


def _is_allowed(plain: Any, rule: Mapping[str, Any]) -> bool:
    if "const" in rule:
        return bool(plain == rule["const"])
    if "enum" in rule:
        return plain in rule["enum"]
    return any(_is_a(plain, kind) for kind in _types(rule))


def _allowed(rule: Mapping[str, Any]) -> str:
    """Values or types that a rule allows, in words."""
    if "const" in rule:
        return _shown(rule["const"])
    if "enum" in rule:
        return f"one of {', '.join(map(_shown, rule['enum']))}"
    return " or ".join(_types(rule))


def _types(rule: Mapping[str, Any]) -> list[str]:
    return [rule["type"]] if isinstance(rule["type"], str) else list(rule["type"])


def _object_misfit(plain: Mapping[str, Any], rule: Mapping[str, Any], definitions: Mapping[str, Any], at: str) -> str | None:
    where = at.lstrip(".") or "the report"
    known, others = rule.get("properties", {}), rule["additionalProperties"]
    if missing := [name for name in rule.get("required", ()) if name not in plain]:
        return f"{where} lacks {', '.join(missing)}"
    if others is False and (unknown := [name for name in plain if name not in known]):
        return f"{where} has {', '.join(unknown)}, which no report has"
    misfits = (misfit(value, known.get(name, others), definitions, f"{at}.{name}") for name, value in plain.items())
    return next((text for text in misfits if text is not None), None)


def _of_type(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The rule for values of a Python type; dataclasses go to ``definitions``."""
    if is_dataclass(kind) and isinstance(kind, type):
        return _of_dataclass(kind, definitions)
    if kind in _NAMES:
        return {"type": _NAMES[kind]}
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of_type(choice, definitions) for choice in arguments]}
    if origin is tuple and arguments[1:] == (...,):
        return {"type": "array", "items": _of_type(arguments[0], definitions)}
    if origin is not None and issubclass(origin, Mapping) and _NAMES.get(arguments[0]) == "string":
        return {"type": "object", "additionalProperties": _of_type(arguments[1], definitions)}
    raise TypeError(f"{kind} has no place in a report")


_NAMES: Mapping[Any, Any] = {
    str: "string",
    RungName: "string",  # published as any string
    int: "integer",
    bool: "boolean",
    float: ["number", "null"],  # null: not finite
    type(None): "null",
}


def _of_dataclass(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    name = _PUBLISHED.get(kind, kind.__name__)
    if name not in definitions:
        definitions[name] = {}  # so that a type that holds itself ends
        hints = get_type_hints(kind)
        properties = {field.name: _of_type(hints[field.name], definitions) for field in fields(kind)}
        for computed in COMPUTED.get(kind, ()):
            properties[computed] = _of_type(get_type_hints(getattr(kind, computed).fget)["return"], definitions)
        definitions[name] = _object(properties, (kind.__doc__ or "").partition("\n")[0])
    return {"$ref": f"#/$defs/{name}"}


def _object(properties: Mapping[str, Any], description: str) -> dict[str, Any]:
    return {
        "type": "object",
        "description": description.strip(),
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _is_a(plain: Any, kind: str) -> bool:
    """Whether ``plain`` has a type of JSON; a number without a fraction is an integer, however it is written."""
    if isinstance(plain, bool):
        return kind == "boolean"
    if kind == "integer":
        return isinstance(plain, int) or (isinstance(plain, float) and math.isfinite(plain) and plain.is_integer())
    kinds = {"number": int | float, "string": str, "null": type(None), "array": list, "object": Mapping}
    return kind in kinds and isinstance(plain, kinds[kind])


def _shown(plain: Any) -> str:
    text = json.dumps(plain)
    return text if len(text) <= 60 else f"{text[:57]}..."


if __name__ == "__main__":
    print(json.dumps(schema(), indent=1))
