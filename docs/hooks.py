"""Pages of the site that are not files in `docs/`: three from the top level, and the API, a page per module.

Nothing here is listed by hand: the modules are those that lie in the package when the site is built.
"""

from __future__ import annotations

import ast
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PACKAGE = "recbole_edt"
Modules = dict[str, Path]  # by dotted names
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINKED = ("CITATION.cff", "LICENSE")  # by the README


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and those of the API to the navigation."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for name in LINKED:
        files.append(File.generated(config, name, content=(ROOT / name).read_bytes()))
    modules = dict(walk(ROOT / PACKAGE, PACKAGE))
    for name, path in modules.items():
        files.append(File.generated(config, page_of(name, path), content=api_page(name, modules)))
    config.nav.append({"API": api_nav(PACKAGE, modules)})
    return files


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Links as they work in the repository, from the top level or from `docs/`, made those of the site."""
    markdown = markdown.replace("](docs/", "](")
    for source, page in PAGES.items():
        markdown = markdown.replace(f"]({source}", f"]({page}").replace(f"](../{source}", f"]({page}")
    return markdown


def walk(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    """The package and all that is in it, by dotted names; nothing is imported."""
    yield name, folder / "__init__.py"
    for module in pkgutil.iter_modules([str(folder)]):
        inner = f"{name}.{module.name}"
        if module.ispkg:
            yield from walk(folder / module.name, inner)
        else:
            yield inner, folder / f"{module.name}.py"


def is_package(path: Path) -> bool:
    return path.name == "__init__.py"


def page_of(name: str, path: Path) -> str:
    """``recbole_edt.augment.filter`` to ``api/augment/filter.md``; a package to ``index.md`` in its folder."""
    parts = ["api", *name.split(".")[1:], *(["index"] if is_package(path) else [])]
    return "/".join(parts) + ".md"


def children(name: str, modules: Modules) -> list[str]:
    """What lies directly in a package: its packages, then its modules."""
    inner = [one for one in modules if one.rpartition(".")[0] == name]
    return sorted(inner, key=lambda one: not is_package(modules[one]))


def api_nav(name: str, modules: Modules) -> list[Any]:
    """A package's page, and below it what it holds."""
    entries: list[Any] = [page_of(name, modules[name])]
    for one in children(name, modules):
        path = modules[one]
        entries.append({one.rpartition(".")[2]: api_nav(one, modules) if is_package(path) else page_of(one, path)})
    return entries


def api_page(name: str, modules: Modules) -> str:
    """Title, a line for each module inside, and what mkdocstrings makes of the docstrings."""
    rows = []
    for one in children(name, modules):
        last = one.rpartition(".")[2]
        page = f"{last}/index.md" if is_package(modules[one]) else f"{last}.md"
        rows.append(f"| [`{last}`]({page}) | {first_line(modules[one])} |")
    table = ["", "| module | what it holds |", "|---|---|", *rows] if rows else []
    return "\n".join([f"# {name.partition('.')[2] or name}", *table, "", f"::: {name}", ""])


def first_line(path: Path) -> str:
    """The first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].replace("|", "\\|")


class OneLineSections(Extension):
    """Our docstrings write ``Returns: what`` in running text; griffe takes lines below it for a list of names."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _RUNNING.sub(_paragraph, obj.docstring.value)


_RUNNING = re.compile(r"^(Returns|Raises|Yields): +(.+(?:\n +.+)*)", re.MULTILINE)


def _paragraph(found: re.Match[str]) -> str:
    return f"\n**{found[1]}:** " + " ".join(found[2].split())
