"""The documentation tells the truth about keys, commands, stages and modules."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from recbole_edt import __version__
from recbole_edt.cli import STAGES
from recbole_edt.config import settings
from recbole_edt.config.recbole_keys import DATASET_KEYS, RUN_DEFAULTS, properties
from recbole_edt.config.settings import load_settings
from recbole_edt.experiments import paper_numbers
from recbole_edt.files import read_file, read_yaml
from recbole_edt.models.registry import METHODS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "recbole_edt"
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
CONFIGS = sorted((ROOT / "dataset_configs").glob("*.yaml"))
PAIRS = [path for path in CONFIGS if path.stem.startswith("amazon2")]


def documented() -> set[str]:
    first_cells = [line.split("|")[1] for line in SETTINGS.splitlines() if line.startswith("|")]
    return {key for cell in first_cells for key in re.findall(r"`([\w.]+)`", cell)}


def test_every_key_of_ours_is_in_the_table_of_settings_and_no_other():
    groups = {f"{name}.{f.name}" for name, cls in settings.GROUPS.items() for f in fields(cls)}
    own = {key for method in METHODS.values() for key in method.defaults()}
    speed = {"enable_amp", "compile"}
    keys = (settings.OWN - set(settings.GROUPS)) | groups | own | set(DATASET_KEYS) | speed
    assert documented() == keys | set(RECBOLE)


def other_defaults() -> dict[str, tuple[object, object]]:
    """RecBole's keys that have another default here: ours, and RecBole's."""
    theirs = read_file(properties() / "overall.yaml")
    both = {key: (value, theirs[key]) for key, value in RUN_DEFAULTS.items() if key in theirs}
    return {key: (a, b) for key, (a, b) in both.items() if a != b and key not in ("eval_args", "metrics")}


def test_recboles_keys_with_other_defaults_stand_in_a_table_with_both():
    rows = [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in SETTINGS.splitlines()]
    shown = {row[0]: (read_yaml(row[1]), read_yaml(row[2])) for row in rows if row and row[0] in RECBOLE}
    assert shown == RECBOLE and len(RECBOLE) > 5


RECBOLE = other_defaults()


def row_of(method: str, key: str) -> str:
    """The key's row in the method's own table, or else in the table of all."""
    tables, own = SETTINGS.partition("\n## ")[0], SETTINGS.partition(f"\n## {method}\n")[2]
    rows = [*own.partition("\n## ")[0].splitlines(), *tables.splitlines()]
    found = [line for line in rows if line.startswith("|") and f"`{key}`" in line.split("|")[1]]
    assert found, f"docs/settings.md has no row for {method}'s key {key}"
    return found[0]


@pytest.mark.parametrize(
    "method, key, default", [(name, *one) for name, method in METHODS.items() for one in method.defaults().items()]
)
def test_the_table_of_settings_names_the_defaults_of_every_method(method, key, default):
    row = row_of(method, key)
    named = re.findall(r"`([\w.]+)`", row.split("|")[1])
    value = row.split("|")[2].replace("`", "").split(",")[named.index(key)].strip()
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    assert value in (shown, shown.replace("0.0", "0"), shown.replace("e-0", "e-"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_ready_configuration_loads_and_says_how_to_run_it(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert load_settings(path.stem).dataset == path.stem
    assert path.read_text(encoding="utf-8").startswith("# python run_edt.py")


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_the_papers_pairs_stand_beside_the_papers_numbers(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert paper_numbers.printed("table2", list(load_settings(path.stem).prepare.files)).same_domains


def test_there_are_configurations_and_stages_to_look_at():
    assert len(CONFIGS) >= 3
    assert all(f"`{stage}`" in GUIDE for stage in STAGES)


def test_the_readme_can_be_read_in_one_go_and_has_both_commands_for_the_check_to_run():
    assert len(README.splitlines()) <= 150
    assert len(CHANGELOG.splitlines()) <= 100
    assert all(README.count(f"<!-- {part} -->\n```bash\n") == 1 for part in ("main", "tests"))


def test_links_of_the_readme_and_of_contributing_lead_to_a_file():
    linked = [link for text in (README, CONTRIBUTING) for link in re.findall(r"\]\(([^)#]+)", text)]
    found = [link for link in linked if "://" not in link]
    assert len(found) > 10
    assert [link for link in found if not (ROOT / link).is_file()] == []


def test_the_version_is_the_same_everywhere():
    assert f'version="{__version__}"' in (ROOT / "setup.py").read_text(encoding="utf-8")
    assert f"## [{__version__}]" in CHANGELOG


PACKAGES = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def test_contributing_says_what_every_package_holds():
    table = CONTRIBUTING.partition("## Where things are")[2].partition("\n### ")[0].partition("|---|")[2]
    named = [name for line in table.splitlines()[1:] for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert sorted(named) == sorted(PACKAGES | modules)


def test_the_newcomers_ten_questions_are_answered_with_files_that_are_there():
    answers = CONTRIBUTING.partition("### Ten questions")[2].partition("\n## ")[0]
    assert len(re.findall(r"^\*\*.+\?\*\*", answers, re.MULTILINE)) == 10
    files = re.findall(r"`([\w/.]+/[\w.]*)`", answers)
    assert len(files) > 20
    assert [path for path in files if not (PACKAGE / path).exists() and not (ROOT / path).exists()] == []


def test_every_page_of_the_site_is_in_its_navigation():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    made = {"index.md", "contributing.md", "changelog.md"}  # by docs/hooks.py
    assert set(re.findall(r"[\w-]+\.md", nav)) == pages | made
