"""The sections of a run: frozen dataclasses, checked on construction. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro
from pydantic import Field

from infra.errors import UserError


def check(condition: bool, sentence: str) -> None:
    """Raise UserError(sentence) unless the condition holds."""
    if not condition:
        raise UserError(sentence)


@dataclass(frozen=True)
class Pairing:
    """Which modalities of each training sample are shown, as a view over the same shards."""

    view: Literal["declared", "split", "keep-one", "keep"] = "declared"
    """declared: all that is there. split: keys that are not pairs give one row per modality, unpaired (MVAE
    section 5.1). keep-one: each such key shows one modality only, chosen by hash. keep: each modality of each key is
    kept with probability pairing.keep (MVAE appendix F)."""
    fraction: float = 1.0
    """Share of the keys that keep all their modalities, 0 to 1. Nested: the pairs of 0.01 are among those of 0.1."""
    keep: float = 1.0
    """With view keep: probability that a modality is kept, 0 to 1; keys left with nothing give no row. Nested too."""
    seed: int | None = None
    """Which keys are pairs; the run's seed where not given."""
    composition: Literal["natural", "balanced"] = "natural"
    """natural: rows as they come. balanced: fixed counts of complete and of one-modality rows in every step, the
    scarce ones re-sampled (SVAE algorithm 1)."""
    complete_share: float = 0.5
    """With `balanced`: share of a step's rows that are complete, 0 to 1; the modalities divide the rest."""

    def __post_init__(self) -> None:
        check(0 <= self.fraction <= 1, f"pairing.fraction is {self.fraction}: choose a share between 0 and 1")
        check(0 <= self.keep <= 1, f"pairing.keep is {self.keep}: choose a probability between 0 and 1")
        check(
            self.keep == 1 or self.view == "keep",
            f"pairing.keep = {self.keep:g} belongs to pairing.view = keep, the view is {self.view}",
        )
        check(
            self.view != "keep" or (self.fraction == 1 and self.composition == "natural"),
            "pairing.view = keep has rows of every pattern: it knows no pairing.fraction (set pairing.keep) and no "
            "balanced composition",
        )
        check(
            0 <= self.complete_share <= 1,
            f"pairing.complete_share is {self.complete_share}: choose a share between 0 and 1",
        )


@dataclass(frozen=True)
class Model:
    """The latent space, and which of the papers' models makes use of it."""

    latent: int = 64
    """Number of latent dimensions."""
    system: Literal[
        "vae",
        "bivcca",
        "jmvae",
        "mvae",
        "mvae-moe",
        "mvae-q",
        "vaevae-a",
        "vaevae-b",
        "vaevae-star",
        "svae",
        "svae-star",
        "cvae",
        "telbo",
        "mmvae",
        "mopoe",
    ] = "mvae"
    """Posterior and objective (the table of systems in README)."""

    def __post_init__(self) -> None:
        check(self.latent >= 1, f"model.latent is {self.latent}: choose at least 1")


Bound = Literal["stratified", "tight", "linear"]
Precision = Literal["fp32", "bf16"]
Gradient = Literal["dreg", "iwae"]


@dataclass(frozen=True)
class Objective:
    """What the terms of the system's objective weigh."""

    k: int = 0
    """mvae, mvae-moe, mvae-q: how many random subsets of the modalities are drawn each step (MVAE eq. 5)."""
    lambda_: Annotated[dict[str, float], Field(alias="lambda"), tyro.conf.arg(name="lambda")] = field(
        default_factory=dict
    )
    """Weight of each modality's log-likelihood in the objective. Every reported ELBO has 1 instead."""
    beta: float = 1.0
    """Weight of the KL at the end of annealing. Every reported ELBO has 1 instead."""
    anneal: float = 0.0
    """Share of training over which beta rises linearly from 0."""
    cross: float = 0.0
    """Weight with which a term also reconstructs the present modalities that it did not see; 0 is the paper."""
    shared_noise: bool = False
    """Whether the terms of a row share one epsilon (MVAE appendix I, figure 10 c) instead of one each."""
    alpha: float = 0.01
    """jmvae: weight of KL(joint || single); 0.01 in MVAE section 5.1, 1 in SVAE eq. 2."""
    mu: float = 0.5
    """bivcca: weight of the first modality's posterior."""
    switch: float = 0.5
    """telbo: share of training after which the joint network and the decoders are frozen and the networks of single
    modalities are fitted."""
    samples: int = 1
    """mmvae: K, samples of each component of the mixture."""
    bound: Bound = "stratified"
    """mmvae: stratified (eq. 3), tight (eq. 5), or linear in the number of modalities (appendix B)."""
    gradient: Gradient = "dreg"
    """mmvae: how the stratified and the tight bound move the encoders: doubly reparametrised as in the paper (eq. 8),
    or the bound's own gradient (eq. 7)."""
    pseudo: float = 0.0
    """Weight with which the terms of a row that lacks a label reconstruct the one that the model itself gives it,
    times lambda (pseudo-labels); 0 is the papers."""
    confidence: float = 0.95
    """Probability above which a pseudo-label counts, 0 to 1."""

    def __post_init__(self) -> None:
        check(self.k >= 0, f"objective.k is {self.k}: choose 0 or more random subsets")
        check(0 <= self.anneal <= 1, f"objective.anneal is {self.anneal}: choose a share of training, 0 to 1")
        check(self.alpha >= 0, f"objective.alpha is {self.alpha}: a weight must not be negative")
        check(0 <= self.mu <= 1, f"objective.mu is {self.mu}: choose a weight from 0 to 1")
        check(0 < self.switch < 1, f"objective.switch is {self.switch}: choose a share of training between 0 and 1")
        check(self.samples >= 1, f"objective.samples is {self.samples}: choose at least 1")
        check(self.beta >= 0 and self.cross >= 0, "objective.beta and objective.cross must not be negative")
        check(self.pseudo >= 0, f"objective.pseudo is {self.pseudo}: a weight must not be negative")
        check(
            0 <= self.confidence <= 1,
            f"objective.confidence is {self.confidence}: choose a probability between 0 and 1",
        )
        for name, weight in self.lambda_.items():
            check(weight >= 0, f"objective.lambda.{name} is {weight}: a weight must not be negative")


@dataclass(frozen=True)
class Optim:
    """Adam, as in the papers."""

    lr: float = 1e-3
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""
    clip: float = 0.0
    """Largest gradient norm; 0 does not clip."""
    decay: float = 0.0
    """Share of training, at its end, over which the learning rate falls linearly to 0; 0 (the papers) keeps it."""

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step of so many."""
        return self.lr * min(1.0, (steps - step) / (self.decay * steps)) if self.decay else self.lr

    def __post_init__(self) -> None:
        check(self.lr > 0, f"optim.lr is {self.lr}: choose a positive learning rate")
        check(0 <= self.decay <= 1, f"optim.decay is {self.decay}: choose a share of training, 0 to 1")
        check(
            all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas is {self.betas}: choose two rates from 0 to below 1",
        )
        check(self.clip >= 0, f"optim.clip is {self.clip}: choose 0 (no clipping) or a positive norm")


@dataclass(frozen=True)
class Engine:
    """How the step is run. Changes speed and memory, never the mathematics."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: what ranks share out among them (0 nothing, 1 optimizer, 2 gradients, 3 parameters)."""
    precision: Precision = "fp32"
    """Precision of the networks. Posteriors and likelihoods are always fp32."""
    accumulate: int = 1
    """Micro-batches per step."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a device, otherwise the CPU."""
    threads: int = 0
    """CPU threads of each rank; 0 takes OMP_NUM_THREADS where it is set, else divides the machine's cores among the
    ranks."""
    workers: int = 1
    """Threads that read and decode ahead of training; 0 reads in the training thread."""
    patience: float = 60.0
    """Seconds after which a rank that says nothing is lost: the others end, and the run can be resumed."""
    compile: bool = False
    """Whether torch.compile makes the networks' code: a minute or so at the start, for fewer kernels in each step."""

    def __post_init__(self) -> None:
        check(
            not (self.compile and self.zero_stage == 3),
            "engine.compile takes engine.zero_stage 0 to 2: ZeRO 3 gathers parameters behind the back of compiled code",
        )
        check(self.accumulate >= 1, f"engine.accumulate is {self.accumulate}: choose at least 1")
        check(self.patience > 0, "engine.patience is a number of seconds above 0")
        check(self.workers >= 0 and self.threads >= 0, "engine.workers and engine.threads must not be negative")


@dataclass(frozen=True)
class Training:
    """How long, how often, and what is kept."""

    batch: int = 100
    """Rows of the global batch, over all ranks and micro-batches."""
    steps: Annotated[int, tyro.conf.arg(aliases=("--steps",))] = 1000
    """Optimizer steps."""
    log_every: int = 10
    """Steps between two points of a curve; each point is the mean over these steps."""
    validate_every: int = 200
    """Steps between validations; 0 validates at the end only."""
    checkpoint_every: int = 200
    """Steps between checkpoints; 0 saves at the end only."""
    keep: int = 2
    """How many of the latest checkpoints stay (the best one always does)."""
    best: str = "val/elbo"
    """The validation metric that picks the best checkpoint."""
    best_is: Literal["max", "min"] = "max"
    """Whether a larger or a smaller value of it is better."""
    patience: int = 0
    """Stop after this many validations without a better value; 0 never stops early."""
    damage: float = 0.001
    """Share of the rows read that may be corrupt (each is quarantined and weighs 0) before the run stops."""

    def __post_init__(self) -> None:
        check(self.batch >= 1, f"train.batch is {self.batch}: choose at least one row")
        check(self.steps >= 1, f"train.steps is {self.steps}: choose at least one step")
        check(self.log_every >= 1, f"train.log_every is {self.log_every}: choose at least 1")
        check(self.keep >= 2, f"train.keep is {self.keep}: keep at least two checkpoints, one may be damaged")
        check(
            min(self.validate_every, self.checkpoint_every, self.patience) >= 0,
            "train.validate_every, train.checkpoint_every and train.patience must not be negative",
        )


@dataclass(frozen=True)
class Examine:
    """How a trained model is examined beside what its modalities tell."""

    label: str = "label"
    """The label of the data by which oracles and probes judge, whether or not the model knows it; where the data have
    none of this name they go unjudged."""
    parts: tuple[str, ...] = ()
    """Images that are strips of one picture, from the top: an oracle sees the whole."""


@dataclass(frozen=True)
class Tracking:
    """Where MLflow keeps the record."""

    uri: str = ""
    """MLflow tracking URI; empty means MLFLOW_TRACKING_URI, or SQLite beside the runs where that is unset."""
    experiment: str = "pairstream"
    """MLflow experiment."""
    enabled: bool = True
    """Whether the journal is shipped to MLflow; it is written in any case."""
    model: bool = True
    """Whether the trained model is shipped too, as one that MLflow loads and serves; of a sweep's trials the best."""
