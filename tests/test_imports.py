"""Imports go one way, and asking for help imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def python(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter, from the top of the repository."""
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)


def test_imports_go_one_way() -> None:
    lint = python(
        "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"
    )
    assert lint.returncode == 0, lint.stdout + lint.stderr


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], {"torch", "deepspeed", "ray", "mlflow", "pyarrow"}),
        (["train", "digits", "--help"], {"torch", "deepspeed", "ray", "mlflow"}),
        (["generate", "--help"], {"torch", "deepspeed", "ray", "mlflow", "pyarrow"}),
        (["studio", "--help"], {"torch", "deepspeed", "ray", "mlflow", "pyarrow", "streamlit"}),
        (["embed", "--help"], {"torch", "deepspeed", "ray", "mlflow", "pyarrow"}),
        (["search", "--help"], {"torch", "deepspeed", "ray", "mlflow", "pyarrow", "sklearn"}),
        (["submit", "--help"], {"torch", "deepspeed", "ray", "mlflow"}),
        (["reproduce", "mnist-weak", "--help"], {"torch", "deepspeed", "ray", "mlflow", "pyarrow", "sklearn"}),
        (["doctor", "--help"], {"torch", "deepspeed", "ray", "mlflow"}),
        (["impute", "--help"], {"torch", "deepspeed", "ray", "mlflow"}),
        (["submit", "slurm", "--help"], {"torch", "deepspeed", "ray", "mlflow"}),
        (["submit", "ray", "--help"], {"torch", "deepspeed", "ray", "mlflow"}),
        (["submit", "kubernetes", "--help"], {"torch", "deepspeed", "ray", "mlflow"}),
    ],
)
def test_help_needs_no_torch(arguments: list[str], heavy: set[str]) -> None:
    program = f"""
import sys
from jobs.cli import main
try:
    code = main({arguments})
except SystemExit as end:
    code = end.code
assert code == 0, code
imported = {heavy} & set(sys.modules)
assert not imported, f"help imports {{imported}}"
"""
    answer = python(program)
    assert answer.returncode == 0, answer.stderr
    assert "pairstream" in answer.stdout
