"""The systems of the papers: which posteriors a model has, and what it is trained for.

| system | posterior | objective |
| --- | --- | --- |
| vae | one encoder | ELBO of the one modality (Kingma & Welling 2014) |
| bivcca | each modality's own | BiVCCA, weight objective.mu (Wang et al. 2016) |
| jmvae | a joint network, and one per modality | joint ELBO - alpha Σ KL(joint || single) (Suzuki et al. 2017) |
| mvae | product with the prior expert | sub-sampled ELBO, objective.k (Wu & Goodman 2018, eq. 5) |
| mvae-moe | mixture of the experts | the same (Shi et al. 2019, appendix E) |
| mvae-q | product, divided by the prior | the same (eq. 3) |
| vaevae-a | product without the prior expert | VAEVAE's loss (Wu & Goodman 2019) |
| vaevae-b | a network for every subset | VAEVAE's loss |
| vaevae-star | a network for every subset | SVAE's loss |
| svae | product in which present modalities stand in for missing ones | SVAE's loss (eq. 7-10, D.28-D.37) |
| svae-star | the same | VAEVAE's loss |
| cvae | one network of all | conditional ELBO of the first modality given the others (Sohn et al. 2015) |
| telbo | a joint network, and one per modality | joint ELBO, then single ELBOs (Vedantam et al. 2018) |
| mmvae | mixture of Laplace experts | bound by samples, objective.bound (Shi et al. 2019, eq. 3, 5) |
| mopoe | mixture of the products of all subsets | ELBO (Sutter et al. 2021) |

MVAE19 is mvae with every attribute as a modality of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np

from infra.errors import UserError
from pipeline.config import Run
from pipeline.objectives.mixed import mixture_joint, mixtures, mopoe
from pipeline.objectives.paired import bivcca, cvae, jmvae, telbo_singles, tied, whole_rows
from pipeline.objectives.plan import Plan, joint_plan
from pipeline.objectives.sampled import mmvae, mmvae_joint
from pipeline.objectives.subsampled import subsampled
from pipeline.posteriors import (
    Conditional,
    LaplaceMixtures,
    Mixtures,
    Networks,
    Posterior,
    Products,
    Quotients,
    Substitutes,
)
from pipeline.settings import Objective

SPECIAL = ("k", "cross", "pseudo", "confidence", "alpha", "mu", "switch", "samples", "bound", "gradient")
"""Settings of the objective that some systems have."""
UNSEEN = ("cross", "pseudo", "confidence")
"""Those of systems whose terms may reconstruct what they did not see (`targets`)."""
Planner = Callable[[np.ndarray, Objective, Posterior, int, int], Plan]
"""(present_BM, objective, posterior, seed, step) -> the terms of a batch."""
Joint = Callable[[np.ndarray, Objective, Posterior], Plan]
"""(present_BM, objective, posterior) -> the terms of a joint ELBO."""


def _elbo(present_BM: np.ndarray, objective: Objective, posterior: Posterior) -> Plan:
    return joint_plan(present_BM, posterior)


@dataclass(frozen=True)
class System:
    """A model of the papers."""

    posterior: Callable[[Sequence[str]], Posterior]
    """From the modalities' names."""
    plan: Planner
    modalities: tuple[int, int] = (1, 64)
    """How few and how many modalities it is defined for."""
    joint: Joint = _elbo
    """The terms of the joint ELBO, for evaluation."""
    whole_rows: bool = False
    """Whether it learns from rows that have all modalities only."""
    uses: tuple[str, ...] = ()
    """Settings of the objective that mean something to it, beside lambda, beta, anneal and shared_noise."""
    later: Planner | None = None
    """The terms after `objective.switch` of training, when all but the experts of single modalities are frozen."""


def _always(joint: Joint) -> Planner:
    """In every step the terms of a joint ELBO."""

    def plan(present_BM: np.ndarray, objective: Objective, posterior: Posterior, seed: int, step: int) -> Plan:
        return joint(present_BM, objective, posterior)

    return plan


def _tied(singles_of_pairs: bool, leaders: bool) -> Planner:
    return _always(lambda present, objective, family: tied(present, objective, family, singles_of_pairs, leaders))


SYSTEMS: dict[str, System] = {
    "vae": System(lambda names: Products(names, prior=False), _always(_elbo), (1, 1)),
    "bivcca": System(Mixtures, _always(bivcca), (2, 64), bivcca, uses=("mu",)),
    "jmvae": System(lambda names: Networks(names, every=False), jmvae, (2, 64), whole_rows=True, uses=("alpha",)),
    "mvae": System(lambda names: Products(names, prior=True), subsampled, uses=("k", *UNSEEN)),
    "mvae-moe": System(Mixtures, mixtures, joint=mixture_joint, uses=("k", *UNSEEN)),
    "mvae-q": System(Quotients, subsampled, uses=("k", *UNSEEN)),
    "vaevae-a": System(lambda names: Products(names, prior=False), _tied(False, False), (2, 6), uses=UNSEEN),
    "vaevae-b": System(lambda names: Networks(names, every=True), _tied(False, False), (2, 6), uses=UNSEEN),
    "vaevae-star": System(lambda names: Networks(names, every=True), _tied(True, False), (2, 6), uses=UNSEEN),
    "svae": System(Substitutes, _tied(True, True), (2, 6), uses=UNSEEN),
    "svae-star": System(Substitutes, _tied(False, True), (2, 6), uses=UNSEEN),
    "cvae": System(Conditional, _always(cvae), (2, 64), cvae, whole_rows=True),
    "telbo": System(
        lambda names: Networks(names, every=False),
        _always(whole_rows),
        (2, 64),
        whole_rows=True,
        uses=("switch",),
        later=telbo_singles,
    ),
    "mmvae": System(LaplaceMixtures, mmvae, joint=mmvae_joint, uses=("samples", "bound", "gradient")),
    "mopoe": System(lambda names: Mixtures(names, subsets=True), _always(mopoe), joint=mopoe),
}
"""By name, as model.system takes it."""


@cache
def _built(name: str, modalities: tuple[str, ...]) -> tuple[System, Posterior]:
    system = SYSTEMS[name]
    few, many = system.modalities
    if not few <= len(modalities) <= many:
        wanted = "one modality" if many == 1 else f"{few} to {many} modalities"
        raise UserError(f"model.system = {name} is defined for {wanted}, the run has {len(modalities)}")
    return system, system.posterior(modalities)


def family_of(run: Run) -> Posterior:
    """A run's family of posteriors. Raises UserError where its system is not defined for as many modalities."""
    return _built(run.model.system, tuple(run.modalities))[1]


def plan_of(run: Run, present_BM: np.ndarray, step: int) -> Plan:
    """The terms of a batch in one step of a run."""
    system, family = _built(run.model.system, tuple(run.modalities))
    planner = system.later if system.later and step >= switch_step(run) else system.plan
    return planner(present_BM, run.objective, family, run.seed, step)


def uses_pseudo_labels(run: Run) -> bool:
    """Whether rows that lack a label are given one in training, by a system that has terms for it."""
    return run.objective.pseudo > 0 and "pseudo" in SYSTEMS[run.model.system].uses


def switch_step(run: Run) -> int:
    """Steps of the first stage, after which all but the experts of single modalities are frozen; 0 where there is one
    stage only."""
    if SYSTEMS[run.model.system].later is None:
        return 0
    return max(1, math.ceil(run.objective.switch * run.train.steps))


def joint_of(run: Run, present_BM: np.ndarray) -> Plan:
    """The terms of the joint ELBO of what each row has."""
    system, family = _built(run.model.system, tuple(run.modalities))
    return system.joint(present_BM, run.objective, family)


def unused(run: Run) -> list[str]:
    """The settings of the objective that mean nothing to a run's system, as dotted keys."""
    return [f"objective.{name}" for name in SPECIAL if name not in SYSTEMS[run.model.system].uses]


def remark(run: Run) -> str:
    """What a user should know of how a run's system takes partial data; "" where there is nothing to say."""
    system, said = SYSTEMS[run.model.system], []
    if system.whole_rows:
        until = " until objective.switch" if system.later else ""
        said.append(
            f"model.system = {run.model.system} learns from rows that have all modalities{until}; other rows weigh "
            "nothing (pairing.composition = balanced gives every step some whole ones)"
        )
    plain, own = asdict(Objective()), asdict(run.objective)
    idle = [key for key in unused(run) if own[key.split(".")[1]] != plain[key.split(".")[1]]]
    if idle:
        said.append(f"model.system = {run.model.system} makes no use of {', '.join(idle)}")
    return "\n".join(said)
