"""What an installation and a newcomer rely on: imports run one way, the documents keep their word."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEST_COMMAND = re.compile(r"<!-- test-command -->\n```bash\n(python3 .*)\n```")


def run_process(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_no_module_of_the_library_loads_ray() -> None:
    files = sorted((ROOT / "musicrl").rglob("*.py"))
    modules = [".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files]
    names = [name.removesuffix(".__init__") for name in modules]
    assert "musicrl.config" in names
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "sys.exit('ray' in sys.modules)"
    )
    done = run_process([sys.executable, "-c", program])
    assert done.returncode == 0, done.stderr or "ray was loaded"


def test_importing_the_package_is_light() -> None:
    program = "import sys, musicrl; sys.exit(bool({'ray', 'torch', 'numpy'} & sys.modules.keys()))"
    assert run_process([sys.executable, "-c", program]).returncode == 0


def test_imports_run_one_way() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    found = str(linter) if linter.exists() else shutil.which("lint-imports")
    if found is None:
        pytest.skip("import-linter is not installed (pip install -e .[dev])")
    done = run_process([found])
    assert done.returncode == 0, done.stdout


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 250


def test_ci_runs_the_test_command_of_the_readme() -> None:
    found = TEST_COMMAND.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert found is not None
    line = found.group(1)
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    extract = re.search(r"^test_command=\$\((.*)\)$", script, re.MULTILINE)
    assert extract is not None
    shell = run_process(["bash", "-c", extract.group(1)])
    assert shell.stdout.strip() == line
    assert 'bash -c "$test_command"' in script
    assert line.startswith("python3 -m venv .venv && . .venv/bin/activate && pip install ")
    assert line.endswith("&& pytest")
