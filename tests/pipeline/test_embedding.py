"""Each sample's row in the file is the model's own posterior of what it has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from infra.errors import UserError
from modalities import Label
from pipeline import embedding
from pipeline.embedding import embed
from pipeline.experts import Gaussian, Laplace, Mixture
from pipeline.manifest import Manifest, open_manifest
from pipeline.model import MultimodalVAE
from pipeline.packaging import Packaged
from pipeline.posteriors import generates
from pipeline.train import build
from tests.pipeline.drawn import KINDS, ROWS, has, make, subject, value

NAMES = ("grey", "traits", "label")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("drawn") / "data")


def packaged(data: Path, system: str = "mvae", names: tuple[str, ...] = NAMES) -> Packaged:
    """An untrained model."""
    one = subject(data, *names, system=system, seed=5)
    with torch.no_grad():  # initial networks hardly look at what they are given
        for parameter in one.model.parameters():
            parameter.mul_(2)
    return Packaged(one.run, one.model, {}, {"step": 7})


def alone(model: MultimodalVAE, number: int, used: list[str]) -> Gaussian | Laplace | Mixture:
    """The posterior of one sample, without the code under test."""
    from pipeline.completing import batch_of

    own = {
        name: [KINDS[name].decode([KINDS[name].encode(value(name, number))])[0] if name in used else None]
        for name in NAMES
    }
    return model.posterior(batch_of(model.modalities, own))


@torch.no_grad()
@pytest.mark.parametrize("system", ["mvae", "mvae-moe", "mmvae", "svae", "jmvae"])
@pytest.mark.parametrize("given", [(), ("traits", "label"), ("grey",)])
def test_rows_are_the_model_s_posteriors(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, given: tuple[str, ...]
) -> None:
    monkeypatch.setattr(embedding, "TOGETHER", 7)
    monkeypatch.setattr(embedding, "GROUP", 10)
    model, told = packaged(data, system), []
    done = embed(model, open_manifest(data), tmp_path / "v.parquet", given, ["test"], lambda *at: told.append(at))
    table = pq.read_table(tmp_path / "v.parquet")
    rows = {row["key"]: row for row in table.to_pylist()}
    left_out = 0
    for number in range(ROWS):
        used = [name for name in given or NAMES if has(name, number)]
        if not used or (system == "jmvae" and len(used) == 2):  # it has networks of one and of all
            left_out += 1
            assert f"test/{number}" not in rows
            continue
        row, posterior = rows[f"test/{number}"], alone(model.model, number, used)
        assert (row["split"], sorted(row["modalities"])) == ("test", sorted(used))
        np.testing.assert_allclose(row["mu"], posterior.mu[0].numpy(), atol=1e-5)
        noise = torch.randn(4000, 1, 5, generator=torch.Generator().manual_seed(0))
        drawn = posterior.sample(noise if isinstance(posterior, Mixture) else noise[..., :4])[:, 0]
        np.testing.assert_allclose(row["sigma"], drawn.std(0).numpy(), rtol=0.12)
    assert (done.rows, done.left_out, done.damaged) == (ROWS - left_out, left_out, 0)
    assert len(rows) == done.rows
    assert told[-1] == (ROWS, ROWS)
    assert len(told) == 4
    assert table.column_names == ["key", "split", "modalities", "mu", "sigma"]
    assert pq.ParquetFile(tmp_path / "v.parquet").num_row_groups > 1 or done.rows < 10


def test_all_splits_in_their_order_and_what_made_them(data: Path, tmp_path: Path) -> None:
    model, manifest = packaged(data), open_manifest(data)
    done = embed(model, manifest, tmp_path / "v.parquet")
    table = pq.read_table(tmp_path / "v.parquet")
    splits = table["split"].to_pylist()
    assert done.rows == len(splits)
    assert splits == sorted(splits, key=list(manifest.splits).index)
    about = json.loads(table.schema.metadata[b"pairstream"])
    told = {"recipe": "drawn", "step": 7, "data": manifest.fingerprint, "modalities": [*NAMES], "latent": 4}
    assert about == told | {"weights": model.weights}


def test_data_may_lack_a_modality_of_the_model_altogether(data: Path, tmp_path: Path) -> None:
    model = packaged(data)
    more = replace(model.run, modalities={"age": Label(3, hidden=(8,)), **model.run.modalities})
    done = embed(Packaged(more, build(more).eval(), {}, {"step": 0}), open_manifest(data), tmp_path / "v.parquet")
    assert done.rows > 0
    used = pq.read_table(tmp_path / "v.parquet")["modalities"].to_pylist()
    assert {name for some in used for name in some} == {*NAMES}


def test_a_model_is_known_by_its_weights(data: Path) -> None:
    one, other = packaged(data), packaged(data)
    assert one.weights == other.weights
    with torch.no_grad():
        next(iter(other.model.parameters())).view(-1)[0] += 1e-3
    assert one.weights != other.weights


def test_the_deviation_of_a_mixture_is_that_of_its_samples() -> None:
    generator = torch.Generator().manual_seed(1)
    mu, log = 2 * torch.randn(2, 3, 4, generator=generator), torch.randn(2, 3, 4, generator=generator) / 2
    weight = torch.tensor([[0.3, 1.0, 0.5], [0.7, 0.0, 0.5]])
    noise = torch.randn(40_000, 3, 5, generator=generator)
    for parts in (Gaussian(mu, log), Laplace(mu, log)):
        mixture = Mixture(parts, weight)
        torch.testing.assert_close(mixture.deviation, mixture.sample(noise).std(0), rtol=0.03, atol=0)


def damaged(data: Path, out: Path) -> Manifest:
    """A copy of the data with one byte of one member of the test data flipped."""
    import shutil

    shutil.copytree(data, out)
    shard = out / "test-000000.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    return open_manifest(out)


def test_damage_beyond_the_budget_leaves_no_file(data: Path, tmp_path: Path) -> None:
    manifest, file = damaged(data, tmp_path / "damaged"), tmp_path / "v.parquet"
    model = packaged(data, names=tuple(KINDS))
    strict = replace(model.run, train=replace(model.run.train, damage=0.0))
    with pytest.raises(UserError, match="damaged rows"):
        embed(replace(model, run=strict), manifest, file)
    assert {path.name for path in tmp_path.iterdir()} == {"damaged"}
    done = embed(model, manifest, file, splits=["test"])
    assert (done.rows, done.left_out, done.damaged) == (ROWS - 1, 0, 1)
    assert pq.read_table(file).num_rows == ROWS - 1


def test_what_does_not_fit_is_refused_with_a_sentence(data: Path, tmp_path: Path) -> None:
    manifest, file = open_manifest(data), tmp_path / "v.parquet"
    model = packaged(data)
    with pytest.raises(UserError, match="no split 'tests'"):
        embed(model, manifest, file, splits=["tests"])
    strange = replace(model.run, modalities={"age": Label(3, hidden=(8,))})
    with pytest.raises(UserError, match=r"holds .*grey.*, and the model knows age only"):
        embed(replace(model, run=strange), manifest, file)
    with pytest.raises(UserError, match="the shards hold no modality 'age'"):
        embed(replace(model, run=strange), manifest, file, ["age"])
    other = replace(model, files={"label.names.json": b'["cat"]'})
    with pytest.raises(UserError, match=r"has another label\.names\.json than the model"):
        embed(other, manifest, file)
    with pytest.raises(UserError, match="cannot be written"):
        embed(model, manifest, tmp_path / "no" / "v.parquet")
    assert list(tmp_path.iterdir()) == []
    file.write_text("mine")
    with pytest.raises(UserError, match="cannot be written"):
        embed(model, manifest, file / "v.parquet")
    told: list[int] = []
    with pytest.raises(UserError, match="is a directory: --out takes the file to write"):
        embed(model, manifest, tmp_path, progress=lambda done, total: told.append(done))
    assert not told
    assert (list(tmp_path.iterdir()), file.read_text()) == ([file], "mine")


def test_every_posterior_that_generates_has_a_row() -> None:
    """`answerable` agrees with `generates`, which knows no rows."""
    from itertools import product

    from pipeline.config import Run
    from pipeline.objectives.systems import family_of
    from pipeline.settings import Model

    for system in ("mvae", "mvae-moe", "mmvae", "mopoe", "svae", "jmvae", "vaevae-b", "telbo"):
        run = Run("toy", "", {name: KINDS[name] for name in NAMES}, model=Model(4, system=system))  # type: ignore[arg-type]
        patterns = np.array(list(product([False, True], repeat=3)))
        family = family_of(run)
        found = embedding.answerable(family, patterns)
        for pattern, there in zip(patterns, found, strict=True):
            given = frozenset(name for name, shown in zip(NAMES, pattern, strict=True) if shown)
            assert there == generates(family, NAMES, NAMES[0], given)
