"""Samples that the page can give to a model, from the test split of the data that it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infra.errors import UserError
from pipeline.asking import Values
from pipeline.collate import Collator
from pipeline.manifest import NAME, Manifest, open_manifest
from pipeline.packaging import Packaged
from pipeline.pictures.made import held
from pipeline.stream import Refs

SPLIT = "test"


@dataclass(frozen=True)
class Examples:
    """The samples of a split."""

    manifest: Manifest
    packaged: Packaged

    def __len__(self) -> int:
        return len(self.manifest.split(SPLIT))

    def sample(self, wanted: str) -> tuple[str, Values]:
        """A sample by its number in the split, or by its key: (its key, what it has).

        Raises UserError where there is no such sample, or where it is damaged.
        """
        row = np.array([self._row(wanted.strip())])
        kinds, zeros = self.packaged.run.modalities, np.zeros(1, np.uint64)
        members = self.manifest.members(row, self.manifest.column(list(kinds)), zeros, zeros)
        batch = Collator([self.manifest], kinds)(Refs(row, members, row))
        return batch.keys[0], {name: value for name, (value,) in held(batch).items() if value is not None}

    def _row(self, wanted: str) -> int:
        there = self.manifest.split(SPLIT)
        if wanted.isdecimal() and wanted == str(int(wanted)) and int(wanted) < len(there):  # 000016 is a key
            return there[int(wanted)]
        found = self.manifest.rows(SPLIT, [wanted])
        if found:
            return found[wanted]
        raise UserError(
            f"the {SPLIT} split has no sample {wanted!r}: choose a number from 0 to {len(there) - 1}, or a key such as "
            f"{self.manifest.key(there[0])}"
        )


def examples_of(packaged: Packaged) -> Examples | None:
    """None where the data of the model's training do not lie here any more, are others now or have no such split."""
    directory = Path(packaged.run.data)
    if not (directory / NAME).is_file():
        return None
    manifest = open_manifest(directory).reading(packaged.run.modalities)
    if manifest.fingerprint != packaged.about["data"] or not manifest.splits.get(SPLIT):
        return None
    return Examples(manifest, packaged)
