"""The files for contributors and their tools, held against the things they describe."""

import re
import tomllib
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.testbed.process import ROOT
from tests.conftest import LOAD

MAKEFILE = (ROOT / "Makefile").read_text()
GITHUB = ROOT / ".github"
WORKFLOW: dict[Any, Any] = yaml.safe_load((GITHUB / "workflows/test.yaml").read_text())
TEMPLATES = sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.md"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
JOB_KEYS = {"name", "runs-on", "timeout-minutes", "strategy", "container", "steps"}
STEP_KEYS = {"name", "uses", "with", "run"}


def jobs() -> list[dict[str, Any]]:
    """The jobs of the workflow."""
    return list(WORKFLOW["jobs"].values())


def test_workflow_has_keys_that_github_knows() -> None:
    """No key is misspelt: GitHub refuses a workflow for an unknown one."""
    # To YAML 1.1 `on` is a truth value.
    assert WORKFLOW.keys() == {"name", True, "permissions", "concurrency", "jobs"}
    for job in jobs():
        assert {"runs-on", "timeout-minutes", "steps"} <= job.keys() <= JOB_KEYS
        for step in job["steps"]:
            assert step.keys() <= STEP_KEYS
            assert ("run" in step) != ("uses" in step)


def test_workflow_has_least_privilege() -> None:
    """It may only read, leaves no token behind, and runs foreign actions by their commit."""
    assert WORKFLOW["permissions"] == {"contents": "read"}
    used = [step for job in jobs() for step in job["steps"] if "uses" in step]
    assert len(used) == len(jobs())
    for step in used:
        assert re.fullmatch(r"actions/checkout@[0-9a-f]{40}", step["uses"])
        assert step["with"] == {"persist-credentials": False}


def test_workflow_runs_make_test_on_each_python() -> None:
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
    """`.editorconfig` has the line length of the formatter."""
    parser = ConfigParser()
    parser.read_string("[top]\n" + (ROOT / ".editorconfig").read_text())
    assert parser["top"]["root"] == "true"
    assert parser["*.py"]["max_line_length"] == str(PROJECT["tool"]["ruff"]["line-length"])
    assert parser["Makefile"]["indent_style"] == "tab"


def test_builds_leave_nothing_to_commit() -> None:
    """The files of a build and of coverage are in no commit, and in no image."""
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"*.egg-info/", "/build/", "/dist/", "/.coverage*"} <= set(ignored)
    assert "**/*.egg-info" in (ROOT / ".dockerignore").read_text().splitlines()


def test_files_of_load_exist() -> None:
    """The files of tests that never run beside each other are named as they are."""
    assert [path for path in LOAD if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_issue_template_has_a_name(path: Path) -> None:
    """GitHub shows a template by `name` and `about`, and hides one without."""
    _, front, body = path.read_text().split("---\n", 2)
    assert {"name", "about"} <= yaml.safe_load(front).keys()
    assert body.strip()


@pytest.mark.parametrize("name", ["Makefile", "Dockerfile", "docs/deploying.md"])
def test_locks_are_installed_without_a_resolution(name: str) -> None:
    """A lock holds every dependency: pip must not prefer a release that came out since.

    With a package as an extra of itself (`coverage[toml]`) an older pip does, and fails.
    """
    text = (ROOT / name).read_text().replace("\\\n", " ")
    installs = [line for line in text.splitlines() if "--require-hashes" in line]
    assert installs
    assert [line for line in installs if "--no-deps" not in line] == []
