"""What a sweep is: a run, the values to try, and how trials are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from infra.errors import UserError
from pipeline.config import Run, override

WEIGHTS = (
    "objective.lambda.", "objective.beta", "objective.anneal", "objective.k", "objective.cross", "objective.pseudo",
    "objective.confidence",
)  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """A grid over dotted config keys around one run."""

    run: Run
    grid: Mapping[str, Sequence[Any]]
    metric: str
    """The validation metric by which trials are compared."""
    direction: Literal["max", "min"] = "max"
    columns: tuple[str, ...] = ()
    """Test metrics that the table shows."""

    def __post_init__(self) -> None:
        """Raises UserError for an empty grid, an unknown key or value, or a metric that the swept keys re-weight."""
        if not self.grid or not all(self.grid.values()):
            raise UserError("the sweep's grid is empty: give at least one key with at least one value")
        for cell in self.cells():
            override(self.run, cell)
        if self.metric.endswith("objective") and any(key.startswith(WEIGHTS) for key in self.grid):
            raise UserError(
                f"{self.metric} is weighted by what this sweep varies, so its values cannot be compared; choose an "
                "unweighted metric such as val/elbo"
            )

    def cells(self) -> list[dict[str, Any]]:
        """Every combination of the grid's values, as dotted keys."""
        return [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]
