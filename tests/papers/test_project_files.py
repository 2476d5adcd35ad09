"""The files for contributors and their tools, held against what they describe."""

import re
import tomllib
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.testbed.process import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
GITHUB = ROOT / ".github"
WORKFLOW: dict[Any, Any] = yaml.safe_load((GITHUB / "workflows/test.yaml").read_text())
TEMPLATES = sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.md"))
PAPERS = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
JOB_KEYS = {"name", "runs-on", "timeout-minutes", "strategy", "container", "steps"}
STEP_KEYS = {"name", "uses", "with", "run"}


def jobs() -> list[dict[str, Any]]:
    """The jobs of the workflow."""
    return list(WORKFLOW["jobs"].values())


def test_workflow_has_keys_that_github_knows() -> None:
    """No key is misspelt: GitHub refuses a workflow for one that it does not know."""
    # To YAML 1.1 `on` is a truth value.
    assert WORKFLOW.keys() == {"name", True, "permissions", "concurrency", "jobs"}
    for job in jobs():
        assert {"runs-on", "timeout-minutes", "steps"} <= job.keys() <= JOB_KEYS
        for step in job["steps"]:
            assert step.keys() <= STEP_KEYS
            assert ("run" in step) != ("uses" in step)


def test_workflow_trusts_nobody_it_need_not() -> None:
    """It may only read, leaves no token behind, and runs foreign actions by their commit."""
    assert WORKFLOW["permissions"] == {"contents": "read"}
    used = [step for job in jobs() for step in job["steps"] if "uses" in step]
    assert len(used) == len(jobs())
    for step in used:
        assert re.fullmatch(r"actions/checkout@[0-9a-f]{40}", step["uses"])
        assert step["with"] == {"persist-credentials": False}


def test_workflow_runs_make_test_on_the_oldest_python_too() -> None:
    """The tests run on each Python in the list, and the image is built and started."""
    test, image = WORKFLOW["jobs"]["test"], WORKFLOW["jobs"]["image"]
    pythons = test["strategy"]["matrix"]["python"]
    assert pythons[0] == PROJECT["project"]["requires-python"].removeprefix(">=")
    assert test["container"]["image"].startswith("python:${{ matrix.python }}-")
    assert [step["run"] for step in test["steps"] if "run" in step] == ["make test"]
    commands = [step["run"] for step in image["steps"] if "run" in step]
    assert [command.split()[:2] for command in commands] == [
        ["docker", "build"],
        ["docker", "run"],
        ["docker", "build"],
    ]


def test_pre_commit_runs_the_checks_of_make() -> None:
    """Its hooks are the tools of `make check-code`, from the same virtual environment."""
    (code,) = re.findall(r"^CODE := (.*)$", MAKEFILE, re.MULTILINE)
    recipe = MAKEFILE.split("\ncheck-code: ")[1].split("\n\n")[0]
    checks = re.findall(r"\$\(BIN\)/(.*) \$\(CODE\)", recipe)
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = repository["hooks"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in hooks} == {"system"}
    entries = [hook["entry"].removeprefix(".venv/bin/") for hook in hooks]
    assert entries == [*(check.removesuffix(" --check") for check in checks[:2]), f"mypy {code}"]
    assert [hook.get("pass_filenames", True) for hook in hooks] == [True, True, False]


def test_editors_and_ruff_have_one_length_of_lines() -> None:
    """`.editorconfig` says what the formatter does."""
    parser = ConfigParser()
    parser.read_string("[top]\n" + (ROOT / ".editorconfig").read_text())
    assert parser["top"]["root"] == "true"
    assert parser["*.py"]["max_line_length"] == str(PROJECT["tool"]["ruff"]["line-length"])
    assert parser["Makefile"]["indent_style"] == "tab"


def test_builds_leave_nothing_to_commit() -> None:
    """What building a package writes is in no commit, and in no image."""
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"*.egg-info/", "/build/", "/dist/"} <= set(ignored)
    assert "**/*.egg-info" in (ROOT / ".dockerignore").read_text().splitlines()


@pytest.mark.parametrize("name", PAPERS)
def test_commands_in_the_papers_exist(name: str) -> None:
    """Each `make` target and each file of ours that a paper names is there."""
    text = (ROOT / name).read_text()
    assert set(re.findall(r"(?:`|\$ )make ([a-z-]+)", text)) <= TARGETS
    paths = re.findall(r"`((?:app|adapters|sinks|tests|k8s|bench)/[\w./-]*)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def links() -> list[tuple[Path, str]]:
    """Each link from a paper to another file of the repository, with the file it stands in."""
    texts = [*(ROOT / name for name in PAPERS), *GITHUB.rglob("*.md")]
    return [
        (path, target)
        for path in texts
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text())
    ]


def test_links_in_the_papers_lead_somewhere() -> None:
    """The file of each link exists, and has the heading that is named."""
    assert len(links()) > 5
    for path, target in links():
        name, _, anchor = target.partition("#")
        file = path.parent / name
        assert file.exists(), target
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
        assert not anchor or anchor in anchors, target


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_issue_template_has_a_name(path: Path) -> None:
    """GitHub shows a template by `name` and `about`, and hides one without."""
    _, front, body = path.read_text().split("---\n", 2)
    assert {"name", "about"} <= yaml.safe_load(front).keys()
    assert body.strip()
