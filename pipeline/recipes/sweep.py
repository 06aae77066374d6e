"""What a sweep is: a run, the values to try or to draw, and how trials are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from infra.errors import UserError, nearest
from pipeline.config import Run, override
from pipeline.order import seed_of

WEIGHTS = (
    "objective.lambda.", "objective.beta", "objective.anneal", "objective.k", "objective.cross", "objective.pseudo",
    "objective.confidence",
)  # fmt: skip
IN_MID_RUN = ("objective.", "optim.")
"""What population-based training may change while a trial trains."""
MOST = 10_000
"""Trials of one sweep."""
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)
"""MVAE section 5.1."""
DRAWS = {"uniform": 2, "loguniform": 2, "randint": 2, "choice": 0}
"""Kinds of distributions, and how many numbers each takes; 0 is one or more."""
Search = Literal["random", "optuna", "bohb"]
Scheduler = Literal["none", "asha", "hyperband", "pbt"]


@dataclass(frozen=True)
class Draw:
    """A distribution of one key's values: uniform:LOW:HIGH, loguniform:LOW:HIGH, randint:LOW:HIGH (HIGH is never
    drawn), choice:A:B:C."""

    kind: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        """Raises UserError where there is no such distribution."""
        if self.kind not in DRAWS:
            raise UserError(f"no distribution {self.kind!r}" + nearest(self.kind, list(DRAWS)))
        wanted = DRAWS[self.kind]
        if (len(self.values) != wanted) if wanted else not self.values:
            raise UserError(f"{self}: {self.kind} takes {'LOW:HIGH' if wanted else 'one value or more'}")
        if wanted:
            low, high = self.values
            if not all(isinstance(value, int | float) for value in self.values) or low >= high:
                raise UserError(f"{self}: LOW and HIGH are numbers, LOW the smaller one")
            if self.kind == "loguniform" and low <= 0:
                raise UserError(f"{self}: a logarithm needs LOW above 0")
            if self.kind == "randint" and not all(isinstance(value, int) for value in self.values):
                raise UserError(f"{self}: whole numbers, please")

    def __str__(self) -> str:
        return ":".join([self.kind, *map(str, self.values)])

    def at(self, share: float) -> Any:
        """The value below which `share` of the draws lie, 0 to below 1."""
        if self.kind == "choice":
            return self.values[int(share * len(self.values))]
        low, high = self.values
        if self.kind == "randint":
            return low + int(share * (high - low))
        if self.kind == "uniform":
            return low + share * (high - low)
        return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))


@dataclass(frozen=True)
class Sweep:
    """Trials around one run, which differ in dotted config keys: every cell of a grid, with each of which so many
    trials draw the other keys."""

    run: Run
    grid: Mapping[str, Sequence[Any]]
    metric: str
    """The validation metric by which trials are compared."""
    direction: Literal["max", "min"] = "max"
    columns: tuple[str, ...] = ()
    """Test metrics that the table shows; all accuracies and the ELBO where none is named."""
    sample: Mapping[str, Draw] = field(default_factory=dict)
    """Keys that are drawn, anew for each trial."""
    trials: int = 1
    """Trials of each cell of the grid: more than one where something is drawn."""
    search: Search = "random"
    """Who chooses: random draws, or a model of what came out so far."""
    scheduler: Scheduler = "none"
    """Who ends trials early (asha, hyperband), or changes them in mid-run (pbt)."""

    def __post_init__(self) -> None:
        """Raises UserError for nothing to vary, an unknown key or value, or a metric that the swept keys re-weight."""
        if not self.keys or not all(self.grid.values()):
            raise UserError("nothing to sweep: give at least one key with at least one value (--grid, --sample)")
        if self.total > MOST:
            raise UserError(
                f"{self.total:,} trials are more than {MOST:,}: leave values away, or draw some of the keys"
            )
        twice = self.grid.keys() & self.sample.keys()
        if twice:
            raise UserError(f"{', '.join(sorted(twice))}: in the grid or drawn, not both")
        if self.trials < 1 or (self.trials > 1 and not self.sample):
            raise UserError(f"--trials {self.trials}: that many draws of nothing; say with --sample what is drawn")
        if self.search != "random" and self.grid:
            raise UserError(
                f"--search {self.search} chooses every key itself: --sample KEY=choice:A:B in place of --grid"
            )
        if self.search == "bohb" and self.scheduler != "hyperband":
            raise UserError("--search bohb learns from what hyperband stops early: add --scheduler hyperband")
        for number in range(self.total // self.trials):
            override(self.run, self.cell(number))
        if self.metric.endswith("objective") and any(key.startswith(WEIGHTS) for key in self.keys):
            raise UserError(
                f"{self.metric} is weighted by what this sweep varies, so its values cannot be compared; choose an "
                "unweighted metric such as val/elbo"
            )
        fixed = [key for key in self.keys if not key.startswith(IN_MID_RUN)] if self.scheduler == "pbt" else []
        if fixed or (self.scheduler == "pbt" and self.grid):
            raise UserError(
                f"--scheduler pbt changes keys in mid-run: draw keys of {' and '.join(IN_MID_RUN)} with --sample"
                + (f", not {', '.join(fixed)}" if fixed else ", without --grid")
            )

    @property
    def keys(self) -> list[str]:
        """All that trials differ in."""
        return [*self.grid, *self.sample]

    @property
    def total(self) -> int:
        """Trials in all."""
        return math.prod(map(len, self.grid.values())) * self.trials

    def grid_cells(self) -> list[dict[str, Any]]:
        """Every combination of the grid's values, as dotted keys."""
        return [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]

    def cell(self, number: int) -> dict[str, Any]:
        """What a trial differs in: a pure function of the run's seed and the trial's number."""
        cells = self.grid_cells()
        drawn = {
            key: draw.at((seed_of(self.run.seed, "sweep", key, number) >> 11) / 2**53)
            for key, draw in self.sample.items()
        }
        return cells[number % len(cells)] | drawn


def supervision(run: Run) -> Sweep:
    """MVAE figure 3: the share of complete pairs."""
    return _ready(run, {"pairing.fraction": FRACTIONS})


def k_effect(run: Run) -> Sweep:
    """MVAE figure 10: random subsets a step."""
    return _ready(run, {"objective.k": (0, 1, 5, 10)})


def weights(run: Run) -> Sweep:
    """The weights of modalities other than the first, which is mostly the largest."""
    others = list(run.modalities)[1:]
    if len(others) > 3:
        raise UserError(
            f"{run.recipe} has {len(others)} weights: say with --grid or --sample which of {', '.join(others)} to vary "
            f"(objective.lambda.{others[0]}=1,10,50)"
        )
    return _ready(run, {f"objective.lambda.{name}": (1.0, 10.0, 50.0) for name in others})


def everything(run: Run) -> Sweep:
    """Supervision, k and the weights: their product."""
    grids = [make(run).grid for make in (supervision, k_effect, weights)]
    return _ready(run, {key: values for grid in grids for key, values in grid.items()})


READY: dict[str, Callable[[Run], Sweep]] = {
    "supervision": supervision, "k-effect": k_effect, "lambda": weights, "product": everything,
}  # fmt: skip
"""pairstream sweep RECIPE --over NAME"""


def _ready(run: Run, grid: Mapping[str, Sequence[Any]]) -> Sweep:
    if "pairing.fraction" in grid and run.pairing.view == "declared":
        run = override(run, {"pairing.view": "split"})
    return Sweep(run, grid, run.train.best, run.train.best_is)
