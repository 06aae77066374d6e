"""Every corpus, from tiny files in the official formats: what comes out of its shards is what its files say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infra.errors import UserError
from pipeline.corpora import CORPORA, prepare
from pipeline.description import described, readers
from pipeline.manifest import open_manifest
from pipeline.shards import POOL, SPLITS, Corrupt, Reader
from pipeline.sheet import draw
from pipeline.verifying import verify
from pipeline.writing.shard import encode
from tests.pipeline.corpora import TINY, tiny, without_extras


def test_every_corpus_has_tiny_files() -> None:
    assert set(TINY) == set(CORPORA)


@pytest.mark.parametrize("name", TINY)
def test_what_comes_out_is_what_went_in(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys, splits, every member's bytes and value, links, settings and files beside the shards; a sheet of it."""
    without_extras(monkeypatch)
    corpus, source = tiny(name, tmp_path / "raw")
    written = prepare(name, tmp_path / "out", source=source, shard_bytes=2**16)
    manifest = open_manifest(tmp_path / "out")
    entries = {entry.key: entry for entry in corpus.entries(source)}
    assert (written.skipped, written.samples) == (0, len(entries))
    assert written.notes == tuple(corpus.notes(source))
    assert verify(manifest) == []
    assert described(manifest) == dict(corpus.modalities)
    assert set(manifest.files) == set(corpus.files)
    assert all(manifest.file(file) == data for file, data in corpus.files.items())

    reader, names, shown = Reader([manifest]), list(manifest.modalities), set[str]()
    keys = manifest.keys(range(len(manifest)))
    assert sorted(keys) == sorted(entries)
    stored = {key: encode(name, corpus.modalities, entry, corpus.load(entry)) for key, entry in entries.items()}
    for split, rows in manifest.splits.items():
        assert split in SPLITS
        for row in rows:
            entry = entries[keys[row]]
            assert entry.split == split
            held: dict[str, list[bytes]] = {}
            for member, (number, data) in sorted(stored[entry.key].items(), key=lambda item: item[1][0]):
                assert member.startswith(names[number] + ".")
                held.setdefault(names[number], []).append(data)
            for modality, targets in (entry.links or {}).items():
                held[modality] = [data for key in targets for n, data in stored[key].values() if names[n] == modality]
            members = np.arange(manifest.first[row], manifest.first[row + 1])
            found = dict.fromkeys(held, 0)
            for member, data in zip(members.tolist(), reader.read(members), strict=True):
                modality = names[manifest.modality[member]]
                assert not isinstance(data, Corrupt)
                assert data == held[modality][found[modality]]
                assert corpus.modalities[modality].decode([data]).shape == (1, *corpus.modalities[modality].shape)
                found[modality] += 1
            assert found == {modality: len(values) for modality, values in held.items()}
            shown |= set(held) if split != POOL else set()
    assert shown == set(names) - ({"label"} if "labels: none" in " ".join(written.notes) else set())
    assert {"train", "val", "test"} <= set(manifest.splits)

    modalities = described(manifest)
    draw(manifest, modalities, readers(manifest, modalities), tmp_path / "sheet.png", samples=4)
    assert (tmp_path / "sheet.png").stat().st_size > 1000


@pytest.mark.parametrize("name", ["mnist-svhn", "iwslt-en-vi", "cub"])
def test_processes_and_shards_do_not_show(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Corpora that link, bring tokenizers, or load by more than a function: also in processes of their own."""
    without_extras(monkeypatch)
    _, source = tiny(name, tmp_path / "raw")
    prints = {prepare(name, tmp_path / str(n), 2**14, workers=n, source=source).fingerprint for n in (1, 2)}
    assert len(prints) == 1


@pytest.mark.parametrize("name", [name for name, files in TINY.items() if files])
def test_missing_files_are_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_extras(monkeypatch)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty.*(expected|has no|No such file)"):
        prepare(name, tmp_path / "out", source=tmp_path / "empty")
    with pytest.raises(UserError, match=f"corpus {name} is made from .*: say with --source DIR where they are"):
        prepare(name, tmp_path / "out")
    assert not (tmp_path / "out").exists()
