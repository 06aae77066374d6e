"""Checkpoints that exist whole or not at all.

`step_N.tmp/` is filled and synced to disk, then renamed to `step_N/`: one rename makes it visible, and one to
`step_N.gone/` invisible before its files are removed. COMPLETE.json inside names every file with its size and hash, so
a damaged checkpoint is recognised and the one before it serves. Tensors are whole, so that any number of ranks goes on
from them, and go in and out one by one, so that no host needs the memory for all of them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
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
CHUNK = 1 << 28
"""Bytes of tensors copied to main memory at a time, and in a file; a larger tensor has a file of its own."""


class Tensors(Mapping[str, "Tensor"]):
    """Tensors in files, by name; each is read when it is asked for, also where the files are gone by then."""

    def __init__(self, files: Iterable[Path]) -> None:
        from safetensors import safe_open

        self._file_of: dict[str, Any] = {}
        for path in files:
            file = safe_open(path, "pt")
            self._file_of |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file_of[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: where it lies, its step, and what COMPLETE.json says beside the files."""

    path: Path
    step: int
    meta: dict[str, Any]

    def tensors(self, *groups: str) -> Tensors:
        """The tensors of these groups ("model", "optimizer"); an absent group has none."""
        return Tensors(self.path / file for file in self.meta["files"] if file.partition(".")[0] in groups)

    @property
    def weights(self) -> str:
        """A hash of the weights' files: by it is known what a model has made."""
        files = sorted(self.meta["files"].items())
        hashes = [str(file["xxh3"]) for name, file in files if name.partition(".")[0] == "model"]
        return hashes[0] if len(hashes) == 1 else xxhash.xxh3_128_hexdigest(" ".join(hashes).encode())


class Checkpoints:
    """The checkpoints of one run directory. Only rank 0 writes."""

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self.directory, self.keep = directory, keep

    def save(self, step: int, tensors: Iterable[tuple[str, Tensor]], meta: Mapping[str, Any]) -> Path:
        """Write tensors as `step_N`; older ones beyond `keep` are removed, except the step that meta["best"]["step"]
        names. `model.NAME` are the weights, all others the optimizer's state.

        Raises UserError where the directory cannot be written or the disk is full; what was there stays.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        final = self.directory / f"step_{step}"
        partial = final.with_name(final.name + ".tmp")
        try:
            self._tidy()
            partial.mkdir(parents=True)
            files = {}
            for name, chunk in _chunks(tensors):
                path = partial / name
                save_file(chunk, path)
                chunk.clear()  # the next one takes its place
                sync_to_disk(path)
                files[name] = {"bytes": path.stat().st_size, "xxh3": _hash(path)}
            complete = partial / COMPLETE
            complete.write_text(json.dumps({**meta, "step": step, "files": files}, indent=2) + "\n")
            sync_to_disk(complete)
            sync_to_disk(partial)
            if final.exists():  # the same step of an earlier attempt
                os.replace(final, final.with_name(final.name + ".gone"))
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

    def reached(self) -> int:
        """Step of the newest whole checkpoint; 0 without any."""
        newest, _ = self.latest()
        return newest.step if newest else 0

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
        """`best_of` the newest checkpoint, or None without any."""
        newest, _ = self.latest()
        return self.best_of(newest) if newest else None

    def best_of(self, newest: Checkpoint) -> Checkpoint:
        """The checkpoint that this one names as best; itself, where none is named. Raises UserError where that one is
        damaged."""
        named = (newest.meta.get("best") or {}).get("step", newest.step)
        return newest if named == newest.step else self.load(named)

    def _retain(self, newest: int, best: int | None) -> None:
        """Remove those beyond `keep`, except the best one and any newer than this (a run that has gone back)."""
        kept = [step for step in self.all() if step <= newest][-self.keep :]
        for step in self.all():
            if step < newest and step not in kept and step != best:
                with suppress(OSError):
                    os.replace(self.directory / f"step_{step}", self.directory / f"step_{step}.gone")
        self._tidy()

    def _tidy(self) -> None:
        """Remove what no name makes visible any more, or not yet: of this attempt, or of one that was killed."""
        for path in self.directory.glob("step_*.*"):
            shutil.rmtree(path, ignore_errors=True)


def _chunks(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Files' names, and what goes into each: fp32 copies in main memory, at most CHUNK bytes of them at a time."""
    import torch

    held: dict[str, dict[str, Tensor]] = {}
    number, room = 1, CHUNK
    for name, tensor in tensors:
        if held and 4 * tensor.numel() > room:
            yield from held.items()
            held, number, room = {}, number + 1, CHUNK
        group = "model" if name.startswith("model.") else "optimizer"
        file = f"{group}.safetensors" if number == 1 else f"{group}.{number}.safetensors"
        whole = tensor.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
        held.setdefault(file, {})[name] = whole
        room -= whole.nbytes
    yield from held.items()


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()
