"""One file per experiment: functions that return a `Run`, and sweeps over them."""

from __future__ import annotations

from collections.abc import Callable

from infra.errors import UserError, nearest
from pipeline.config import Run
from pipeline.recipes.celeba import celeba, celeba19, celeba_transforms
from pipeline.recipes.cub import cub, cub_features, cub_resnet
from pipeline.recipes.digits import digits, digits_sweep
from pipeline.recipes.files import files
from pipeline.recipes.mnist import binary_mnist, fashion_mnist, mnist, multimnist
from pipeline.recipes.mnist_split import mnist_split, mnist_split3
from pipeline.recipes.sweep import Sweep
from pipeline.recipes.translation import iwslt_en_vi
from pipeline.recipes.two_domains import mnist_digits, mnist_svhn, mnist_svhn_svae

RECIPES: dict[str, Callable[[], Run]] = {
    "digits": digits,
    "mnist": mnist,
    "binary-mnist": binary_mnist,
    "fashion-mnist": fashion_mnist,
    "multimnist": multimnist,
    "mnist-split": mnist_split,
    "mnist-split3": mnist_split3,
    "mnist-svhn": mnist_svhn,
    "mnist-svhn-svae": mnist_svhn_svae,
    "mnist-digits": mnist_digits,
    "celeba": celeba,
    "celeba19": celeba19,
    "celeba-transforms": celeba_transforms,
    "cub": cub,
    "cub-features": cub_features,
    "cub-resnet": cub_resnet,
    "iwslt-en-vi": iwslt_en_vi,
}
OF_DATA: dict[str, Callable[[str], Run]] = {"files": files}
"""Recipes that take their modalities from a data directory."""
SWEEPS: dict[str, Callable[[], Sweep]] = {"digits": digits_sweep}


def recipe(name: str, data: str | None = None) -> Run:
    """The run of a recipe. Raises UserError with the nearest names, and where a recipe of data gets none."""
    if name in OF_DATA:
        if data is None:
            raise UserError(f"recipe {name} takes its modalities from the data: say with --data DIR which")
        return OF_DATA[name](data)
    if name not in RECIPES:
        raise UserError(f"no recipe {name!r}" + nearest(name, [*RECIPES, *OF_DATA]))
    return RECIPES[name]()


def sweepable() -> list[str]:
    """Recipes that `pairstream sweep` takes, those with a sweep of their own first."""
    return list(dict.fromkeys([*SWEEPS, *RECIPES, *OF_DATA]))
