"""One file per experiment: functions that return a `Run`, and sweeps over them."""

from __future__ import annotations

from collections.abc import Callable

from infra.errors import UserError, nearest
from pipeline.config import Run
from pipeline.recipes.celeba import celeba
from pipeline.recipes.digits import digits, digits_sweep
from pipeline.recipes.mnist import fashion_mnist, mnist
from pipeline.recipes.sweep import Sweep

RECIPES: dict[str, Callable[[], Run]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "celeba": celeba,
}
SWEEPS: dict[str, Callable[[], Sweep]] = {"digits": digits_sweep}


def recipe(name: str) -> Run:
    """The run of a recipe. Raises UserError with the nearest names."""
    if name not in RECIPES:
        raise UserError(f"no recipe {name!r}" + nearest(name, list(RECIPES)))
    return RECIPES[name]()


def sweep(name: str) -> Sweep:
    """The sweep of a recipe. Raises UserError with the nearest names."""
    if name not in SWEEPS:
        raise UserError(f"no sweep {name!r}" + nearest(name, list(SWEEPS)))
    return SWEEPS[name]()
