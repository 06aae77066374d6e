"""The Dockerfile and the compose file fit this repository: files, extras, versions and options that they name exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}


def test_dockerfile_copies_all_packages_and_installs_known_extras() -> None:
    lines = (ROOT / "infra" / "docker" / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    assert all((ROOT / name).exists() for name in copied)
    needed = {pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert needed <= copied
    assert {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], "pyproject.toml"} <= copied
    (extras,) = (line.partition("=")[2].strip("[]").split(",") for line in lines if line.startswith("ARG EXTRAS"))
    assert set(extras) <= PROJECT["project"]["optional-dependencies"].keys()
    (base,) = (line.split()[1] for line in lines if line.startswith("FROM"))
    assert PROJECT["project"]["requires-python"] == ">=" + re.findall(r"3[.]\d+", base)[0]


def test_templates_are_installed_with_the_package() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["infra"]
    found = {path for pattern in patterns for path in (ROOT / "infra").glob(pattern)}
    assert {path.name for path in found} == {"job.sh", "Dockerfile", "compose.yaml"}


def test_compose_file_starts_the_mlflow_that_is_pinned_here() -> None:
    from mlflow.cli import cli

    compose: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "mlflow" / "compose.yaml").read_text())
    server, database = compose["services"]["server"], compose["services"]["database"]
    assert server["command"][:2] == ["mlflow", "server"]
    known = {option for parameter in cli.commands["server"].params for option in parameter.opts}
    assert {word.partition("=")[0] for word in server["command"][2:]} <= known
    installed = server["build"]["dockerfile_inline"].split("constraints.txt ")[-1].split()
    assert installed == ["mlflow", "psycopg2-binary"]
    assert set(installed) <= PINS
    assert (ROOT / "infra" / "mlflow" / server["build"]["context"]).resolve() == ROOT
    address = next(word for word in server["command"] if word.startswith("--backend-store-uri"))
    settings = database["environment"]
    assert f"{settings['POSTGRES_USER']}:${{MLFLOW_PASSWORD}}@database/{settings['POSTGRES_DB']}" in address
    pool = server["environment"]
    most = sum(int(pool[f"MLFLOW_SQLALCHEMYSTORE_{name}"]) for name in ("POOL_SIZE", "MAX_OVERFLOW"))
    (workers,) = (word.partition("=")[2] for word in server["command"] if word.startswith("--workers="))
    connections = int(database["command"][-1].removeprefix("max_connections="))
    assert connections >= int(workers) * most + 100, "the server's jobs have some too, and the database's owner"
    mounted = [mount.partition(":")[0] for one in (server, database) for mount in one["volumes"]]
    assert set(mounted) == compose["volumes"].keys(), "what is kept must lie on a volume"
