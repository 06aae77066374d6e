"""The next step of several runs as one program: forward, backward, clipping and Adam, each run's numbers its own.

Nothing here waits for the device. Shape legend: N runs, B rows of all of them, M modalities.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infra.distributed import World
from infra.errors import UserError
from pipeline.augment import augment
from pipeline.batch import on_device
from pipeline.config import Run
from pipeline.gradients import gradient_norms
from pipeline.model import MultimodalVAE
from pipeline.objectives.systems import plan_of
from pipeline.objectives.terms import Terms, beta_at, combine
from pipeline.packing.joined import Joined, join_plans
from pipeline.packing.model import Pack
from pipeline.progress import Window, not_finite, spoilt

MOMENTS = ("exp_avg", "exp_avg_sq")
# a parameter of all models is not dense: between two models' parts lie their other parameters
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")


class Program:
    """Alike models under one optimizer, Adam as the engine has it, with each run's own rate, decay and clipping."""

    def __init__(self, models: Sequence[MultimodalVAE], runs: Sequence[Run], world: World) -> None:
        """The models, on the world's device, go on as they are; their parameters become parts of one matrix."""
        self.runs, self.world = list(runs), world
        self.pack = Pack(models, runs[0].train.batch)
        self.rows, self._models = self.pack.rows, list(models)
        self.norms: list[dict[str, Tensor]] = [{} for _ in runs]
        """Of each run, the norms of its networks' gradients at its last point (`pipeline/gradients.py`)."""
        self.adam = torch.optim.Adam(
            [{"params": [row], "betas": run.optim.betas} for row, run in zip(self.rows.each, runs, strict=True)],
            fused=True,
        )
        self.tally = Tally()
        weights = np.array([list(run.weights().values()) for run in runs], np.float32)
        self._lambdas_BM = weights.repeat(runs[0].train.batch, 0)
        clip = np.array([run.optim.clip or np.inf for run in runs], np.float32)
        self._clip_N = on_device(clip, world.device) if np.isfinite(clip).any() else None
        self.norm_N: Tensor | None = None
        """The last step's gradient norms before clipping, where any run clips."""

    def step(self, steps: Sequence[int], batch: Joined, asked: bool) -> list[Ballot]:
        """Take step `steps[n]` of each run on its part of the batch. `asked`: whether a stop was asked for."""
        batch = self._augmented(batch.to(self.world.device))
        terms = self._score(steps, batch)
        losses = Losses(self.world.sum_later(terms.loss.detach().double()))
        self.rows.gradients_NP.zero_()
        terms.loss.sum().backward()
        self._watch(steps)
        self._clip()
        for group, run, step in zip(self.adam.param_groups, self.runs, steps, strict=True):
            group["lr"] = run.optim.rate(step, run.train.steps)
        self.adam.step()
        self.tally.add(terms)
        parts = terms.row_objective_B.view(batch.runs, -1)
        return [
            Ballot(losses, number, asked, step, batch.keys[number * batch.share : (number + 1) * batch.share], part)
            for number, (step, part) in enumerate(zip(steps, parts, strict=True))
        ]

    def _score(self, steps: Sequence[int], batch: Joined) -> Terms:
        run, share = self.runs[0], batch.share
        plan = join_plans(
            [
                plan_of(one, batch.present_BM[n * share : (n + 1) * share], step)
                for n, (one, step) in enumerate(zip(self.runs, steps, strict=True))
            ]
        )
        seeds = [one.seed for one in self.runs]
        noise = plan.noise(seeds, "train", batch.row_B, run.model.latent, run.objective.shared_noise)
        betas = [beta_at(one.objective, step, one.train.steps) for one, step in zip(self.runs, steps, strict=True)]
        beta_B = on_device(np.repeat(np.array(betas, np.float32), share), self.world.device)
        return combine(
            self.pack(batch, plan, noise), plan, batch, self._lambdas_BM, beta_B, run.train.batch, len(self.runs)
        )

    def _augmented(self, batch: Joined) -> Joined:
        """Each run's pictures by its own seed."""
        modalities = self.runs[0].modalities
        if not any(getattr(modality, "augmented", False) for modality in modalities.values()):
            return batch
        parts = [augment(batch.part(number), modalities, run.seed) for number, run in enumerate(self.runs)]
        values = {
            name: torch.cat([part.values[name] for part in parts if len(part.rows_of[name])] or [batch.values[name]])
            for name in modalities
        }
        return replace(batch, values=values)

    def _watch(self, steps: Sequence[int]) -> None:
        """The norms of those runs that have a point of their curves after this step, before clipping."""
        for number, (step, run, model) in enumerate(zip(steps, self.runs, self._models, strict=True)):
            if (step + 1) % run.train.log_every == 0:
                self.norms[number] = gradient_norms(model)

    def _clip(self) -> None:
        """Each run's gradient cut down to its own `optim.clip`, by the factor that DeepSpeed takes."""
        if self._clip_N is not None:
            self.norm_N = torch.linalg.vector_norm(self.rows.gradients_NP, dim=1)
            self.rows.gradients_NP.mul_((self._clip_N / (self.norm_N + 1e-6)).clamp_max(1.0)[:, None])

    def state(self, number: int) -> Iterator[tuple[str, Tensor]]:
        """A run's parameters and moments by name, as `Engine.state` has them."""
        whole = {"model": self.rows.values_NP[number]}
        moments = self.adam.state.get(self.rows.each[number], {})
        whole |= {kind: moments[kind] for kind in MOMENTS if moments}
        for kind, row_P in whole.items():
            for name, view in self.rows.views(row_P):
                yield f"{kind}.{name}", view
        if moments:
            yield "step", moments["step"].reshape(1)

    def moments(self, number: int) -> dict[str, Any]:
        """What Adam knows of a run, for another program."""
        return dict(self.adam.state.get(self.rows.each[number], {}))

    def continue_from(self, number: int, moments: dict[str, Any]) -> None:
        """Adam goes on with a run from what another program, or `restored`, says of it."""
        if moments:
            self.adam.state[self.rows.each[number]] = moments

    def restored(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The moments in a checkpoint's tensors; nothing where it was written before a first step."""
        if "step" not in state:
            return {}
        found = {"step": state["step"].reshape(()).to(self.world.device, copy=True)}
        for kind in MOMENTS:
            found[kind] = torch.zeros_like(self.rows.values_NP[0])
            for name, view in self.rows.views(found[kind]):
                view.copy_(state[f"{kind}.{name}"])
        return found


class Losses:
    """The losses of a step's runs, read once."""

    def __init__(self, read: Callable[[], list[float]]) -> None:
        self._read, self._values = read, list[float]()

    def __getitem__(self, number: int) -> float:
        self._values = self._values or self._read()
        return self._values[number]


@dataclass(frozen=True)
class Ballot:
    """What is to be known of one run's step before anything of it is kept (`progress.Vote` for one process)."""

    losses: Losses
    number: int
    asked: bool
    step: int
    keys: list[str]
    row_objective_B: Tensor

    def count(self) -> tuple[bool, float]:
        """(whether a stop was asked for, the loss). Raises UserError where it is not finite."""
        loss = self.losses[self.number]
        if not np.isfinite(loss):
            raise UserError(not_finite(self.step, spoilt(self.keys, self.row_objective_B)))
        return self.asked, loss


class Tally:
    """All runs' sums and counts since they were last handed out to the runs' windows."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._total_2MN: Tensor | None = None

    def add(self, terms: Terms) -> None:
        """Take in one step."""
        self._names = list(terms.sums)
        both = [*terms.sums.values(), *(terms.counts[name] for name in self._names)]
        step_2MN = torch.stack([value.double() for value in both])
        self._total_2MN = step_2MN if self._total_2MN is None else self._total_2MN.add_(step_2MN)

    def hand_out(self, windows: Sequence[Window]) -> None:
        """Add what there is to each run's window. Waits for the device."""
        if self._total_2MN is None:
            return
        values = self._total_2MN.T.tolist()
        self._total_2MN = None
        for window, told in zip(windows, values, strict=True):
            for place, name in enumerate(self._names):
                window.sums[name] += told[place]
                window.counts[name] += told[place + len(self._names)]
