"""A page of HTML by itself: nothing is fetched, and nothing runs but our own style and script, whatever names the page holds."""

import base64
import hashlib
from importlib.resources import files

from coreflow.validate.report.html.markup import Child, join, tag, trusted


def document(title: str, *body: Child, styles: tuple[str, ...], script: str) -> str:
    """The whole page; ``styles`` and ``script`` name files of this folder."""
    style, code = (trusted("".join(_file(name) for name in names)) for names in (styles, (script,)))
    policy = f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(code)}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", style),
    )
    page = tag("html", head, tag("body", tag("main", join(body)), tag("script", code)), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """What the policy knows a style or a script by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
