"""Generates the parts of the documentation that the code knows: ``python docs/generate.py`` writes them, ``--check`` names what is stale.

A generated part stands between two comments, ``<!-- generated: NAME -->`` and ``<!-- end -->``. ``--site FOLDER`` lays out the pages of
the documentation site, for ``make docs``.
"""

import argparse
import ast
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("coreflow", "models", "export", "runtime", "validate", "cli")
ROOT_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")


def main() -> int:
    """Write what is generated, or with ``--check`` return 1 where that would change a file."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a file is stale")
    arguments.add_argument("--site", type=Path, metavar="FOLDER", help="lay out the pages of the site in this folder instead")
    chosen = arguments.parse_args()
    if chosen.site:
        lay_out_site(chosen.site)
        return 0
    stale = {path: text for path, text in generated_files().items() if path.read_text("utf-8") != text}
    for path, text in stale.items():
        print(f"{path.relative_to(ROOT)} {'is stale; make readme' if chosen.check else 'written'}")
        if not chosen.check:
            path.write_text(text, "utf-8")
    return 1 if chosen.check and stale else 0


def generated_files() -> dict[Path, str]:
    """Every file with generated parts, as it should be."""
    return {
        path: _PART.sub(_filled, path.read_text("utf-8")) for path in (ROOT / "README.md", ROOT / "docs/engine.md", ROOT / "docs/ops.md")
    }


def file_list() -> str:
    """Every source file with the first sentence of its docstring, indented by folder."""
    lines = [line for room in ROOMS for line in _folder_lines(ROOT / room, depth=0)]
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(["```", *(f"{name:{width}}{text}".rstrip() for name, text in lines), "```"])


def op_list() -> str:
    """Every MIL op that has a lowering, by the file that holds it."""
    from coreflow.runtime.lift.registry import load_lowerings, supported_ops

    load_lowerings()
    ops: dict[str, list[str]] = defaultdict(list)
    for op, lowerings in supported_ops().items():
        ops[lowerings[-1].function.__module__.rpartition(".")[2]].append(f"`{op}`")
    rows = (f"| `{module}.py` | {', '.join(names)} |" for module, names in sorted(ops.items()))
    return "\n".join(["| file | ops |", "|---|---|", *rows])


def rule_list() -> str:
    """Every rule of ``coreflow lint`` about the engine, with its chips and how it is known."""
    from coreflow.export.lint.catalogue import catalogue

    rows = [
        (f"`{rule.id}`", rule.severity, ", ".join(rule.chips) or "all", rule.title, f"{evidence.label}: {evidence.source}")
        for rule in catalogue()
        if rule.about == "engine"
        for evidence in (rule.known.evidence,)
    ]
    return "\n".join(
        [
            "| rule | severity | chips | what happens | how it is known |",
            "|---|---|---|---|---|",
            *(f"| {' | '.join(row)} |" for row in rows),
        ]
    )


_PARTS: dict[str, Callable[[], str]] = {"files": file_list, "ops": op_list, "rules": rule_list}
_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _filled(part: re.Match[str]) -> str:
    return f"{part[1]}{_PARTS[part[2]]()}\n{part[3]}"


def _folder_lines(folder: Path, depth: int) -> Iterator[tuple[str, str]]:
    yield f"{'  ' * depth}{folder.name}/", _first_sentence(folder / "__init__.py")
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.is_dir() and (path / "__init__.py").exists():
            yield from _folder_lines(path, depth + 1)
        elif path.suffix == ".py" and path.name != "__init__.py":
            yield f"{'  ' * (depth + 1)}{path.name}", _first_sentence(path)


def _first_sentence(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return docstring.partition("\n")[0].partition(". ")[0].removesuffix(".").replace("``", "")


def lay_out_site(folder: Path) -> None:
    """Copy ``docs/`` and the pages of the root into ``folder``; the README becomes its index."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name in ROOT_PAGES:
        (folder / name).write_text(_with_links_of_the_site((ROOT / name).read_text("utf-8")), "utf-8")
    (folder / "index.md").write_text(_with_links_of_the_site((ROOT / "README.md").read_text("utf-8")), "utf-8")


def _with_links_of_the_site(text: str) -> str:
    """Links into ``docs/`` as links between pages."""
    return text.replace("](docs/", "](").replace('src="docs/', 'src="')


if __name__ == "__main__":
    raise SystemExit(main())
