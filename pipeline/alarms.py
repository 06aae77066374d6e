"""Warnings while a model trains: a posterior that has collapsed, an expert that drowns the others.

Told from the validation metrics alone, so that they can be told again from a run's journal.

Collapse: q(z|x) is the same for every x. No latent dimension is active (Burda et al. 2016): the decoders have learnt to
do without z. An expert of most of the precision makes a product overlook the others (MMVAE sections 3.1 and 4.2 call it
overdominant); a label whose likelihood weighs 50 times as much makes one of itself, and then the accuracy from the
image, reached before, is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from pipeline.config import Run
from pipeline.objectives.systems import switch_step

IN_A_ROW = 2
"""Validations that must show a sign before it counts."""
MOST_PRECISION = 0.9
"""Share of the joint posterior's precision above which an expert is overdominant."""
LOST = 0.25
"""Share of the best accuracy so far that may be lost."""
ACTIVE, PRECISION, ACCURACY = "val/latents/active.", "val/precision.", "val/accuracy/"


class Alarms:
    """What a run's validations gave reason to warn of."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.told: dict[str, str] = {}
        """Every warning so far, by its sign."""
        self._best: dict[str, tuple[float, dict[str, float]]] = {}
        """The best value of each accuracy so far, and whose precision had which share then."""
        self._in_a_row: Counter[str] = Counter()

    def look(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Warnings that the validation after `step` steps gives rise to, each once in a run."""
        signs = dict(self._signs(step, metrics))
        self._in_a_row = Counter({sign: self._in_a_row[sign] + 1 for sign in signs})
        for name, value in metrics.items():
            if name.startswith(ACCURACY) and value >= self._best.get(name, (0.0, {}))[0]:
                self._best[name] = value, _shares(metrics)
        new = {
            sign: f"step {step}: {warning}"
            for sign, warning in signs.items()
            if self._in_a_row[sign] >= IN_A_ROW and sign not in self.told
        }
        self.told |= new
        return list(new.values())

    def _signs(self, step: int, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        beta, anneal = self.run.objective.beta, self.run.objective.anneal
        collapsed = [
            name.removeprefix(ACTIVE) for name, units in metrics.items() if name.startswith(ACTIVE) and not units
        ]
        if "all" in collapsed:
            yield (
                "collapse",
                "posterior collapse: no latent dimension depends on the data; let beta rise more slowly "
                f"(objective.anneal is {anneal:g}) or lower objective.beta ({beta:g})",
            )
        elif step > switch_step(self.run):  # before, they have not been fitted
            for name in collapsed:
                yield (
                    f"collapse of {name}",
                    f"posterior collapse: no latent dimension depends on {name} alone; raise objective.lambda.{name} "
                    f"({self.run.weights()[name]:g}), or let beta rise more slowly (objective.anneal is {anneal:g})",
                )
        shares = _shares(metrics)
        for name, share in shares.items():
            if share > MOST_PRECISION:
                yield (
                    f"dominance of {name}",
                    f"the expert of {name} has {share:.0%} of the joint posterior's precision, others hardly count; "
                    + self._lighter(name),
                )
        for name, (best, before) in self._best.items():
            if name in metrics and metrics[name] < (1 - LOST) * best:
                label, _, given = name.removeprefix(ACCURACY).partition("_given_")
                grown = {expert: share - before.get(expert, 0.0) for expert, share in shares.items()}
                loudest = max(grown, key=grown.__getitem__, default=label)
                yield (
                    f"loss of {name}",
                    f"the accuracy of {label} from {given} has fallen to {metrics[name]:.3f}, it was {best:.3f}: the "
                    f"expert of {loudest} may have become too sure; {self._lighter(loudest)}",
                )

    def _lighter(self, expert: str) -> str:
        """What to do about an overdominant expert."""
        weights = self.run.weights()
        if expert in weights:
            return f"lower objective.lambda.{expert} ({weights[expert]:g}), or raise that of the others"
        return "give the likelihoods weights that are less apart (objective.lambda)"


def _shares(metrics: Mapping[str, float]) -> dict[str, float]:
    """Each expert's share of the joint posterior's precision."""
    return {name.removeprefix(PRECISION): share for name, share in metrics.items() if name.startswith(PRECISION)}
