"""A peer: the MVAE of MultiVae (Senellart et al., JOSS 2025) with our networks and terms, trained as its trainer does.

It is no dependency: `INSTALL` in the environment of a benchmark is enough, and without it the peer is left out.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modalities import Label
from pipeline.batch import Batch
from pipeline.config import Run
from pipeline.objectives.systems import plan_of

INSTALL = "pip install --no-deps multivae==1.0.3 pythae==0.1.2"
UNUSED = ("torchvision", "nltk")
"""What its data sets import, and its models do not use."""
PARTS = ("", ".datasets", ".datasets.utils", ".tokenize", ".transforms", ".utils")


def available() -> bool:
    """Whether its MVAE can be imported."""
    try:
        models()
    except ImportError:
        return False
    return True


def models() -> Any:
    """multivae.models, also where the packages are missing that its data sets alone need."""
    with _stand_ins([name for name in UNUSED if importlib.util.find_spec(name) is None]):
        return importlib.import_module("multivae.models")


@contextmanager
def _stand_ins(names: Sequence[str]) -> Iterator[None]:
    """These packages can be imported, and everything in them is `object`; afterwards they are gone again."""
    made = {name + part: ModuleType(name + part) for name in names for part in PARTS}
    for module in made.values():
        module.__dict__.update(__path__=[], __getattr__=lambda _: object)
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def mvae(encoders: Mapping[str, nn.Module], decoders: Mapping[str, nn.Module], run: Run) -> Any:
    """MultiVae's MVAE around these very networks, with the terms of `run` and β = 1."""
    library = models()
    base: Any = importlib.import_module("multivae.models.base")

    class Encoder(base.BaseEncoder):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.latent_dim, self.network = run.model.latent, encoders[name]
            self.one_hot = isinstance(run.modalities[name], Label)

        def forward(self, value: Tensor) -> Any:
            mu, logvar = self.network(value.argmax(1) if self.one_hot else value)
            return base.ModelOutput(embedding=mu, log_covariance=logvar.clone())  # it is written into where masks are

    class Decoder(base.BaseDecoder):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.latent_dim, self.network = run.model.latent, decoders[name]
            modality = run.modalities[name]
            self.shape = (modality.classes,) if isinstance(modality, Label) else modality.shape

        def forward(self, z: Tensor) -> Any:
            return base.ModelOutput(reconstruction=self.network(z).unflatten(1, self.shape))

    config = library.MVAEConfig(
        n_modalities=len(run.modalities), latent_dim=run.model.latent, k=run.objective.k, warmup=0, beta=1.0,
        use_subsampling=True, uses_likelihood_rescaling=True, rescale_factors=run.weights(),
        input_dims=dict.fromkeys(run.modalities, (1,)),  # networks of its own are not made
        decoders_dist={n: "categorical" if isinstance(m, Label) else "bernoulli" for n, m in run.modalities.items()},
    )  # fmt: skip
    return library.MVAE(
        config, {n: Encoder(n) for n in run.modalities}, {n: Decoder(n) for n in run.modalities}
    ).train()


def inputs(run: Run, batch: Batch) -> Any:
    """A batch as its data loader gives it: values of all rows, 0 where there is none, and masks where one is missing.

    Labels are one-hot.
    """
    output = importlib.import_module("pythae.data.datasets").DatasetOutput
    data, masks = {}, {}
    for column, (name, modality) in enumerate(run.modalities.items()):
        value, there = batch.values[name], torch.from_numpy(batch.rows_of[name])
        if isinstance(modality, Label):
            value = nn.functional.one_hot(value, modality.classes).float()
        data[name] = torch.zeros(len(batch), *value.shape[1:]).index_copy(0, there, value[: len(there)])
        masks[name] = torch.from_numpy(batch.present_BM[:, column].copy())
    return output(data=data) if batch.present_BM.all() else output(data=data, masks=masks)


def subsets(run: Run, batch: Batch, step: int) -> list[list[str]]:
    """The random subsets that our objective draws in a step."""
    seen: np.ndarray = plan_of(run, batch.present_BM, step).seen_TBM[1 + len(run.modalities) :].max(1)
    return [[list(run.modalities)[column] for column in np.flatnonzero(row)] for row in seen]


def steps(model: Any, run: Run, batches: Sequence[Batch], fused: bool | None = None) -> Callable[[], int]:
    """Training steps over the batches, like `BaseTrainer.train_step` less its loader, callbacks and sums of metrics.

    Adam is torch's with its defaults, as its trainer makes it; `fused` is not among them on a CPU.
    """
    adam = torch.optim.Adam(model.parameters(), lr=run.optim.lr, fused=fused)
    given = [(inputs(run, batch), subsets(run, batch, step)) for step, batch in enumerate(batches)]

    def work() -> int:
        for batch, drawn in given:
            model.subsets = drawn
            output = model(batch, epoch=1, dataset_size=len(batches), uses_ddp=False, batch_ratio=0.0)
            adam.zero_grad()
            output.loss.backward()
            adam.step()
            output.loss_sum.item()
        return sum(map(len, batches))

    return work
