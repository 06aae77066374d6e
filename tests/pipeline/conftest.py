"""What the tests of the pipeline share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pipeline.packaging import Packaged
    from tests.pipeline.imputed import Trained


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Partial data of every kind of modality, to be imputed."""
    from tests.pipeline.imputed import data

    data(tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def trained(tmp_path: Path, source: Path) -> Trained:
    """A model for them."""
    from tests.pipeline.imputed import Trained

    return Trained(tmp_path / "run", source)


@pytest.fixture(scope="session")
def trained_digits(digits_dir: Path) -> Packaged:
    """A small model of the digits recipe that has learnt something."""
    from pipeline.forms import form_of
    from pipeline.packaging import Packaged
    from tests.pipeline.training import a_run, learnt

    widths = {"top": [128], "bottom": [128], "label": [64, 64]}
    networks = {f"modalities.{name}.hidden": hidden for name, hidden in widths.items()}
    settings = {"train.batch": 100, "train.steps": 500, "pairing.fraction": 1.0, "model.latent": 16}
    run = a_run(digits_dir, **networks, **settings)
    forms = {name: form_of(name, modality, {}) for name, modality in run.modalities.items()}
    return Packaged(run, learnt(run).eval(), forms, {"step": 500})
