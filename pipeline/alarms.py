"""Warnings while a model trains: a posterior that has collapsed, an expert that drowns the others, a rank that is slow.

Told from the points of its curves alone, so that they can be told again from a run's journal.

Collapse: q(z|x) is the same for every x. No latent dimension is active (Burda et al. 2016): the decoders have learnt to
do without z. An expert of most of the precision makes a product overlook the others (MMVAE sections 3.1 and 4.2 call it
overdominant); a label whose likelihood weighs 50 times as much makes one of itself, and then the accuracy from the
image, reached before, is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from pipeline.config import Run
from pipeline.objectives.systems import switch_step
from pipeline.pace import OTHERS, SLOWEST, SLOWEST_RANK

IN_A_ROW = 2
"""Validations, or points of the speed, that must show a sign before it counts."""
MOST_PRECISION = 0.9
"""Share of the joint posterior's precision above which an expert is overdominant."""
LOST = 0.25
"""Share of the best accuracy so far that may be lost."""
NOISE = 0.1
"""Accuracy that may be lost, however little was reached: models of a few steps guess by turns."""
HELD_UP = 0.2
"""Share of a step's time that the other ranks may wait for the slowest one."""
SLOW, ALONE = "slow rank", "collapse of "
ACTIVE, PRECISION, ACCURACY = "val/latents/active.", "val/precision.", "val/accuracy/"


class Alarms:
    """What the points of a run's curves gave reason to warn of."""

    def __init__(self, run: Run, hosts: Sequence[str] = ()) -> None:
        """`hosts`: on which node each rank is."""
        self.run, self.hosts = run, hosts
        self.told: dict[str, str] = {}
        """Every warning so far, by its sign."""
        self._best: dict[str, tuple[float, dict[str, float]]] = {}
        """The best value of each accuracy so far, and whose precision had which share then."""
        self._in_a_row: Counter[str] = Counter()

    @property
    def warnings(self) -> list[str]:
        """All so far, each once however many signs share it."""
        return list(dict.fromkeys(self.told.values()))

    def look(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Warnings that the point after `step` steps gives rise to, each once in a run."""
        if SLOWEST_RANK in metrics:
            signs, others = dict(self._slow(metrics)), [sign for sign in self._in_a_row if not sign.startswith(SLOW)]
        elif any(name.startswith("val/") for name in metrics):
            signs, others = dict(self._signs(step, metrics)), [s for s in self._in_a_row if s.startswith(SLOW)]
        else:
            return []
        seen = {sign: self._in_a_row[sign] + 1 for sign in signs}
        self._in_a_row = Counter(seen | {sign: self._in_a_row[sign] for sign in others})
        for name, value in metrics.items():
            if name.startswith(ACCURACY) and value >= self._best.get(name, (0.0, {}))[0]:
                self._best[name] = value, _shares(metrics)
        new = {
            sign: f"step {step}: {warning}"
            for sign, warning in signs.items()
            if self._in_a_row[sign] >= IN_A_ROW and sign not in self.told
        }
        alone = [sign for sign in new if sign.startswith(ALONE)]
        if len(alone) > 1:  # of eighteen attributes one sentence, not eighteen
            warning = self._collapsed([sign.removeprefix(ALONE) for sign in alone])
            new |= dict.fromkeys(alone, f"step {step}: {warning}")
        self.told |= new
        return list(dict.fromkeys(new.values()))

    def _slow(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        rank, own, others = int(metrics[SLOWEST_RANK]), metrics[SLOWEST], metrics[OTHERS]
        share = (own - others) * metrics["speed/steps_per_second"]
        if share > HELD_UP:
            host = f" on {self.hosts[rank]}" if rank < len(self.hosts) else ""
            yield (
                f"{SLOW} {rank}",
                f"rank {rank}{host} holds the others up, {share:.0%} of every step: its data and its forward pass take "
                f"{own:.3g} s, those of the other ranks {others:.3g} s; look what else runs there (pairstream doctor)",
            )

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
                yield ALONE + name, self._collapsed([name])
        shares = _shares(metrics)
        for name, share in shares.items():
            if share > MOST_PRECISION:
                yield (
                    f"dominance of {name}",
                    f"the expert of {name} has {share:.0%} of the joint posterior's precision, others hardly count; "
                    + self._lighter(name),
                )
        for name, (best, before) in self._best.items():
            if name in metrics and metrics[name] < min((1 - LOST) * best, best - NOISE):
                label, _, given = name.removeprefix(ACCURACY).partition("_given_")
                grown = {expert: share - before.get(expert, 0.0) for expert, share in shares.items()}
                loudest = max(grown, key=grown.__getitem__, default=label)
                yield (
                    f"loss of {name}",
                    f"the accuracy of {label} from {given} has fallen to {metrics[name]:.3f}, it was {best:.3f}: the "
                    f"expert of {loudest} may have become too sure; {self._lighter(loudest)}",
                )

    def _collapsed(self, names: Sequence[str]) -> str:
        """What to do about posteriors of single modalities that have collapsed."""
        weights = [f"objective.lambda.{name} ({self.run.weights()[name]:g})" for name in names]
        return (
            f"posterior collapse: no latent dimension depends on {' or '.join(names)} alone; raise {', '.join(weights)}"
            f", or let beta rise more slowly (objective.anneal is {self.run.objective.anneal:g})"
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
