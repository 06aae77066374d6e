"""Checkpoints that exist whole or not at all.

`step_N.tmp/` is filled and synced to disk, then renamed to `step_N/`: one rename makes it visible. COMPLETE.json
inside names every file with its size and hash, so a damaged checkpoint is recognised and the one before it serves.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from infra.disk import sync_to_disk
from infra.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

COMPLETE = "COMPLETE.json"
NAME = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: where it lies, its step, and what COMPLETE.json says beside the files."""

    path: Path
    step: int
    meta: dict[str, Any]

    def tensors(self, *groups: str) -> dict[str, Tensor]:
        """The tensors of these groups (file names without ending), all of one dictionary; an absent group has none."""
        from safetensors.torch import load_file

        result: dict[str, Tensor] = {}
        for group in groups:
            if f"{group}.safetensors" in self.meta["files"]:
                result |= load_file(self.path / f"{group}.safetensors")
        return result


class Checkpoints:
    """The checkpoints of one run directory. Only rank 0 writes."""

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self.directory, self.keep = directory, keep

    def save(self, step: int, groups: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> Path:
        """Write groups of tensors (each a .safetensors file) as `step_N`; older ones beyond `keep` are removed,
        except the step that meta["best"]["step"] names.

        Raises UserError where the directory cannot be written or the disk is full; what was there stays.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        final = self.directory / f"step_{step}"
        partial = final.with_name(final.name + ".tmp")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            files = {}
            for group, tensors in groups.items():
                path = partial / f"{group}.safetensors"
                save_file(dict(tensors), path)
                sync_to_disk(path)
                files[path.name] = {"bytes": path.stat().st_size, "xxh3": _hash(path)}
            complete = partial / COMPLETE
            complete.write_text(json.dumps({**meta, "step": step, "files": files}, indent=2) + "\n")
            sync_to_disk(complete)
            sync_to_disk(partial)
            shutil.rmtree(final, ignore_errors=True)  # the same step of an earlier attempt
            os.replace(partial, final)
            sync_to_disk(self.directory)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)  # on a full disk, room for what is to be said of it
            raise UserError(
                f"checkpoint of step {step} could not be written to {self.directory}: "
                f"{getattr(error, 'strerror', None) or error}; the ones before it are untouched"
            ) from None
        self._retain(step, (meta.get("best") or {}).get("step"))
        return final

    def all(self) -> list[int]:
        """Steps of the visible checkpoints, oldest first."""
        if not self.directory.is_dir():
            return []
        found = (NAME.fullmatch(path.name) for path in self.directory.iterdir())
        return sorted(int(match.group(1)) for match in found if match)

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest whole checkpoint (None without any), and a sentence for each damaged one passed over."""
        notes: list[str] = []
        for step in reversed(self.all()):
            try:
                return self.load(step), notes
            except UserError as error:
                notes.append(f"{error}; falling back to the checkpoint before it")
        return None, notes

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of a step. Raises UserError when a file of it is missing or damaged."""
        path = self.directory / f"step_{step}"
        try:
            meta = json.loads((path / COMPLETE).read_text())
            for name, expected in meta["files"].items():
                file = path / name
                if file.stat().st_size != expected["bytes"] or _hash(file) != expected["xxh3"]:
                    raise UserError(f"checkpoint {path} is damaged: {name} is not what was saved")
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"checkpoint {path} is damaged: {error}") from None
        return Checkpoint(path, step, meta)

    def best(self) -> Checkpoint | None:
        """The checkpoint that the newest one names as best (itself, where none is named), or None without any."""
        newest, _ = self.latest()
        if newest is None:
            return None
        named = (newest.meta.get("best") or {}).get("step", newest.step)
        return newest if named == newest.step else self.load(named)

    def _retain(self, newest: int, best: int | None) -> None:
        """Remove those beyond `keep`, except the best one and any newer than this (a run that has gone back)."""
        kept = [step for step in self.all() if step <= newest][-self.keep :]
        for step in self.all():
            if step < newest and step not in kept and step != best:
                shutil.rmtree(self.directory / f"step_{step}", ignore_errors=True)


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()
