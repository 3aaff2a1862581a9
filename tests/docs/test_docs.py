"""The documentation says what there is: links lead somewhere, commands are described, examples are right."""

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from vpmu.cli import app
from vpmu.kernels.designs.registry import FUNCTIONS
from vpmu.scenario import load_scenario

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])
SCENARIOS = sorted(ROOT.glob("examples/**/*.toml"))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file(page: Path):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_in_a_page_is_python(page: Path):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        ast.parse(block)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_toml_in_a_page_is_toml(page: Path):
    for block in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL):
        tomllib.loads(block)


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"({page})" not in index} == set()


def test_every_command_and_every_option_of_run_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    command: Any = get_command(app)
    names = {
        f"{name} {inner}"
        for name, group in command.commands.items()
        for inner in getattr(group, "commands", {"": None})
    }
    assert [name for name in sorted(names) if f"vpmu {name.strip()}" not in text] == []
    given = {option for parameter in command.commands["run"].params for option in parameter.opts}
    options = given - {"--quiet", "-q", "--json", "--progress"}
    assert {option for option in options if f"`{option}" not in text and f" {option}" not in text} == set()


def test_every_function_of_a_design_is_in_its_guide():
    text = (ROOT / "docs" / "add-a-design.md").read_text()
    assert [name for name in FUNCTIONS if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize("file", SCENARIOS, ids=name_of)
def test_every_example_is_right(file: Path):
    assert load_scenario(file).vms
