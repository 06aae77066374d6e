"""The latent vectors of a data set as Parquet, for search and for other people's classifiers.

A row is a sample: `key`, `split`, `modalities` (those that the posterior is of), `mu` and `sigma`, the mean and the
standard deviation of q(z | these) in each latent dimension, in float32. What made it stands in the file's metadata.

Shape legend: B rows, M modalities, Z latent dimensions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from infra.disk import sync_to_disk
from infra.errors import UserError
from pipeline.batch import Batch
from pipeline.collate import Collator
from pipeline.data import check_fit
from pipeline.description import model_file, names_file
from pipeline.manifest import Manifest
from pipeline.packaging import Packaged
from pipeline.posteriors import Posterior
from pipeline.shards import POOL
from pipeline.stream import Refs

TOGETHER, GROUP = 256, 2**14
"""Rows that go through the networks at once, and rows of a group in the file, which is what memory holds."""
ABOUT = b"pairstream"
"""Under which key of a file's metadata its `Source` stands, as JSON."""
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("split", pa.string()),
        ("modalities", pa.list_(pa.string())),
        ("mu", pa.list_(pa.float32())),
        ("sigma", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True)
class Source:
    """What a file was made of."""

    recipe: str
    step: int
    weights: str
    """`Packaged.weights` of the model."""
    data: str
    """The data's fingerprint."""
    modalities: tuple[str, ...]
    """Those that were used where a sample has them."""
    latent: int


@dataclass(frozen=True)
class Embedded:
    """What became of the samples."""

    rows: int
    """That are in the file."""
    left_out: int
    """That have none of the modalities, or from which the model's system has no posterior."""
    damaged: int


def embed(
    packaged: Packaged,
    manifest: Manifest,
    file: Path,
    given: Collection[str] = (),
    splits: Collection[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Embedded:
    """Write the vectors of all samples of these splits (all but the pool) into a file, which is whole or not there.

    The posteriors are of what each sample has of `given`; of all modalities that the shards hold where none is named.
    Of several instances of a modality it is one, always the same. Raises UserError where the data do not fit the model,
    or the file cannot be written.
    """
    if file.is_dir():
        raise UserError(f"{file} is a directory: --out takes the file to write")
    used = _used(packaged, manifest, given)
    source = Source(
        packaged.run.recipe, packaged.about["step"], packaged.weights, manifest.fingerprint, tuple(used),
        packaged.model.latent,
    )  # fmt: skip
    chosen = list(splits) or [split for split in manifest.splits if split != POOL]
    total = sum(len(manifest.split(split)) for split in chosen)
    collate = Collator([manifest], packaged.run.modalities, budget=packaged.run.train.damage)
    columns = manifest.column(list(packaged.run.modalities), partly=True)
    columns = [column if name in used else -1 for name, column in zip(packaged.run.modalities, columns, strict=True)]
    part = file.with_name(file.name + ".tmp")
    schema = SCHEMA.with_metadata({ABOUT: json.dumps(asdict(source)).encode()})
    kept = seen = 0
    try:
        with pq.ParquetWriter(part, schema) as writer:
            waiting: list[pa.RecordBatch] = []
            for split in chosen:
                for refs in _steps(manifest, split, columns):
                    batch = collate(refs)
                    waiting.append(_rows(packaged, batch, split, schema))
                    kept, seen = kept + len(waiting[-1]), seen + len(batch)
                    if sum(map(len, waiting)) >= GROUP:
                        writer.write_table(pa.Table.from_batches(waiting, schema))
                        waiting = []
                    progress(seen, total)
            writer.write_table(pa.Table.from_batches(waiting, schema))
        sync_to_disk(part)
        os.replace(part, file)
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror or error}): choose another --out") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return Embedded(kept, total - kept - collate.rows_damaged, collate.rows_damaged)


def _used(packaged: Packaged, manifest: Manifest, given: Collection[str]) -> list[str]:
    """The modalities of which posteriors are made. Raises UserError where the data hold no such, or others."""
    manifest.reading(packaged.run.modalities)
    manifest.column(list(given))
    names, held = list(packaged.run.modalities), manifest.modalities
    used = [name for name in names if manifest.member_of[name] in held and (not given or name in given)]
    if not used:
        raise UserError(f"{manifest.directory} holds {', '.join(held)}, and the model knows {', '.join(names)} only")
    check_fit(packaged.run, manifest)
    for name in used:
        for one in (model_file(name), names_file(name)):
            if one in manifest.files and one in packaged.files and manifest.file(one) != packaged.files[one]:
                raise UserError(
                    f"{manifest.directory} has another {one} than the model: the same numbers mean other words or "
                    "classes there; prepare these data as those that it was trained on"
                )
    return used


def _steps(manifest: Manifest, split: str, columns: list[int]) -> Iterator[Refs]:
    rows = manifest.split(split)
    for start in range(rows.start, rows.stop, TOGETHER):
        sample = np.arange(start, min(start + TOGETHER, rows.stop))
        zeros = np.zeros(len(sample), np.uint64)
        yield Refs(sample, manifest.members(sample, columns, zeros, zeros), sample)


@torch.no_grad()
def _rows(packaged: Packaged, batch: Batch, split: str, schema: pa.Schema) -> pa.RecordBatch:
    """Those of a batch of which there is a posterior."""
    posterior = packaged.model.posterior(batch)
    rows = np.flatnonzero(answerable(packaged.model.family, batch.present_BM))
    names = np.array(list(batch.values))
    vectors = (_lists(part.numpy()[rows]) for part in (posterior.mu, posterior.deviation))
    used = [names[there].tolist() for there in batch.present_BM[rows]]
    keys = [batch.keys[row] for row in rows]
    columns = [
        pa.array(keys, pa.string()),
        pa.array([split] * len(rows), pa.string()),
        pa.array(used, schema.field("modalities").type),
    ]
    return pa.record_batch([*columns, *vectors], schema=schema)


def answerable(family: Posterior, present_BM: np.ndarray) -> np.ndarray:
    """Of which rows the family has a posterior that is not just the prior: (B,)."""
    mask_TBE = family.of(family.components(present_BM)[0]).mask_TBE
    return np.asarray(mask_TBE.any((0, 2)))


def _lists(values_BZ: np.ndarray) -> pa.ListArray:
    offsets = np.arange(len(values_BZ) + 1, dtype=np.int32) * values_BZ.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values_BZ.ravel().astype(np.float32, copy=False)))
