"""Oracles: classifiers that read the class off a picture, by which generated pictures are judged.

SVAE's is a ResNet-18 trained on MNIST (section 4), MMVAE's are small networks that its code brings along. Here one is
trained on the training pictures of the data at hand, the first time that it is asked for, and kept in the cache: all
runs on the same data have the same judge. MNIST takes one CPU core about 100 seconds.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from infra.disk import sync_to_disk
from infra.distributed import World
from infra.errors import UserError
from infra.storage.cache import DIRECTORY, Cache
from modalities import Image, Label
from pipeline.batch import on_device
from pipeline.collate import Collator
from pipeline.config import Run
from pipeline.evaluate.classifier import SEED, Pictures, accuracy_of, network, trained
from pipeline.evaluate.labelled import spread
from pipeline.manifest import Manifest

VERSION = 1
"""Of the recipe, here and in classifier.py: raise it with whatever changes the weights."""
ROOM = 2**30
"""Bytes of training pictures that are held at once, as float32; where there are more, some of them, evenly spread."""
READ = 1000
"""Rows that are read at a time."""
Kept = tuple[dict[str, Tensor], dict[str, Any]]
"""Weights and provenance."""


@dataclass(frozen=True)
class Oracle:
    """A trained classifier of one kind of picture."""

    network: nn.Sequential
    provenance: dict[str, Any]
    """What it was made of, and how good it is on validation and test data."""

    @torch.no_grad()
    def classes(self, parts: Sequence[Tensor]) -> Tensor:
        """The most likely class (B,) of pictures given as their parts, each (B, Y, X) or (B, 3, Y, X)."""
        classes: Tensor = self.network(joined(parts)).argmax(1)
        return classes


def joined(parts: Sequence[Tensor]) -> Tensor:
    """One picture (B, C, Y, X) of strips, each (B, Y, X) or (B, 3, Y, X), the first on top."""
    whole = torch.cat(list(parts), -2).float()
    return whole[:, None] if whole.dim() == 3 else whole


@dataclass(frozen=True)
class Task:
    """What an oracle is to tell, from which picture."""

    run: Run
    manifest: Manifest
    parts: tuple[str, ...]
    """The image modalities that the picture is made of, from the top; mostly one."""
    label: Label
    """What the data's run.examine.label is."""

    @property
    def title(self) -> str:
        """For the user."""
        return f"oracle of {' + '.join(self.parts)}"

    def key(self) -> dict[str, Any]:
        """All that its weights depend on."""
        images = {name: self.run.modalities[name] for name in self.parts}
        return {
            "version": VERSION,
            "data": self.manifest.fingerprint,
            "pictures": [
                [name, [*image.shape], image.levels] for name, image in images.items() if isinstance(image, Image)
            ],
            "label": self.run.examine.label,
            "classes": self.label.classes,
            "seed": SEED,
        }

    def pictures(self, split: str) -> Pictures:
        """Of a split's rows that have all parts and a label. Raises UserError where there is none."""
        name = self.run.examine.label
        kinds = {part: self.run.modalities[part] for part in self.parts} | {name: self.label}
        collate = Collator([self.manifest], kinds, budget=self.run.train.damage)
        most = max(1, ROOM // sum(4 * math.prod(self.run.modalities[part].shape) for part in self.parts))
        values, classes = [], []
        for refs in spread(self.manifest, split, list(kinds), READ, most):
            batch = collate(refs)
            whole = np.flatnonzero(batch.present_BM.all(1))
            *strips, label = (
                batch.values[one][on_device(np.searchsorted(batch.rows_of[one], whole), batch.row_B.device)]
                for one in kinds
            )
            values.append(joined(strips))
            classes.append(label)
        if not sum(map(len, classes)):
            raise UserError(
                f"{self.manifest.directory}: no row of the split {split} has both {' and '.join(kinds)}, so no "
                f"{self.title} can judge pictures; set examine.label to a label that they have"
            )
        return Pictures(torch.cat(values), torch.cat(classes))


def oracle_of(task: Task, world: World) -> Oracle:
    """The oracle of a task: from the cache, or trained now, by rank 0, while the others wait. Collective.

    Raises UserError, on every rank, where no row of the training or validation data has the picture and the label, all
    training rows are of one class, or the cache cannot be used.
    """
    failure, found = None, None
    if world.is_main:
        try:
            found = _kept(task, world.device)
        except UserError as error:
            failure = str(error)
    world.raise_together(failure)
    kept: Kept = world.gather(found)[0]  # type: ignore[assignment]  # not from the cache, which is a node's own
    weights, provenance = kept
    model = network(provenance["shape"], task.label.classes)
    model.load_state_dict(weights)
    return Oracle(model.to(world.device).eval(), provenance)


def _kept(task: Task, device: torch.device) -> Kept:
    """From the cache, into which it is put first where it is not there."""
    directory = Cache.from_environment().directory / "oracles"
    path = directory / f"{xxhash.xxh3_128_hexdigest(json.dumps(task.key()).encode())}.safetensors"
    with _usable(directory):
        directory.mkdir(exist_ok=True)
        lock = FileLock(path.with_suffix(".lock")).acquire()  # of two runs on the same data one trains
    with lock:
        found = _load(path)
        if found is None:
            found = _train(task, device)
            part = path.with_suffix(".part")
            with _usable(directory):
                save_file(found[0], part, {"oracle": json.dumps(found[1])})
                sync_to_disk(part)
                os.replace(part, path)
    return found


@contextmanager
def _usable(directory: Path) -> Iterator[None]:
    """Errors of the cache as a sentence for the user."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{directory} cannot hold the oracles that judge pictures ({error}); set {DIRECTORY} to a directory on a "
            "local disk that you may write to"
        ) from None


def _load(path: Path) -> Kept | None:
    """None where there is no such file, or not the whole of one."""
    try:
        with safe_open(path, "pt") as file:
            told = (file.metadata() or {}).get("oracle")
            return ({name: file.get_tensor(name) for name in file.keys()}, json.loads(told)) if told else None  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):
        return None


def _train(task: Task, device: torch.device) -> Kept:
    """A new one. Says so on stderr."""
    from rich.console import Console
    from rich.progress import Progress

    name, place = task.run.examine.label, task.manifest.directory
    seen, unseen = task.pictures("train"), task.pictures("val")
    if len(seen.classes.unique()) < 2:
        raise UserError(
            f"{place}: all {len(seen):,} training rows with {' and '.join(task.parts)} have {name} "
            f"{int(seen.classes[0])}, so an {task.title} has nothing to tell apart; set examine.label to another label"
        )
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"{task.title}: training a classifier of {name} on {len(seen):,} pictures of {place}, once for these data; it "
        "judges what models generate"
    )
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        line = bar.add_task(task.title, total=1.0)
        model, epochs, accuracy = trained(
            seen, unseen, task.label.classes, device, lambda share: bar.update(line, completed=share)
        )
    provenance = task.key() | {
        "shape": list(seen.values.shape[1:]),
        "rows": len(seen),
        "epochs": epochs,
        "accuracy": {"val": accuracy},
    }
    if "test" in task.manifest.splits:
        provenance["accuracy"]["test"] = accuracy_of(model, task.pictures("test"))
    return {weight: tensor.cpu() for weight, tensor in model.state_dict().items()}, provenance
