"""One half of a digit finds the other among many, and the neighbours are those of a plain loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from infra.errors import UserError
from pipeline.completing import batch_of
from pipeline.corpora.digits import DIGITS
from pipeline.embedding import embed
from pipeline.manifest import open_manifest
from pipeline.packaging import Packaged
from pipeline.searching import Index, Metric, draw, nearest, open_index, vector
from pipeline.train import build


@pytest.fixture(scope="module")
def file(trained_digits: Packaged, digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The top halves of the test digits."""
    file = tmp_path_factory.mktemp("index") / "tops.parquet"
    embed(trained_digits, open_manifest(digits_dir), file, ["top"], ["test"])
    return file


ENTRIES = {entry.key: entry for entry in DIGITS.entries(None)}


def halves(key: str) -> dict[str, np.ndarray]:
    """Of a digit, by the corpus itself."""
    values = DIGITS.load(ENTRIES[key])
    return {name: (np.asarray(values[name]) / 16).astype(np.float32) for name in ("top", "bottom")}


def test_a_half_finds_its_own_other_half(trained_digits: Packaged, file: Path) -> None:
    """Among the 10 nearest of 270; by chance 4 % would be."""
    index = open_index(file, trained_digits)
    queries = [vector(trained_digits.model, {"bottom": halves(key)["bottom"]}) for key in index.keys]
    for metric in ("cosine", "euclidean"):
        found = nearest(index, np.stack(queries), 10, metric)  # type: ignore[arg-type]
        own = [key in {one.key for one in some} for key, some in zip(index.keys, found, strict=True)]
        assert np.mean(own) > 0.15
    itself = nearest(index, vector(trained_digits.model, {"top": halves(index.keys[5])["top"]})[None], 1)[0][0]
    assert itself.key == index.keys[5]
    assert itself.distance == pytest.approx(0, abs=1e-5)


def naive(query: np.ndarray, one: np.ndarray, metric: Metric) -> float:
    if metric == "euclidean":
        return float(np.sqrt(np.square(query - one).sum()))
    return float(1 - query @ one / np.sqrt((query @ query) * (one @ one)))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_are_those_of_a_plain_loop(trained_digits: Packaged, file: Path, metric: Metric) -> None:
    index = open_index(file, trained_digits)
    generator = np.random.default_rng(0)
    queries = generator.normal(size=(3, index.mu_NZ.shape[1])).astype(np.float32)
    for query, found in zip(queries, nearest(index, queries, 7, metric), strict=True):
        distances = [naive(query.astype(float), one.astype(float), metric) for one in index.mu_NZ]
        order = np.argsort(distances)[:7]
        assert [one.key for one in found] == [index.keys[i] for i in order]
        np.testing.assert_allclose([one.distance for one in found], np.sort(distances)[:7], rtol=1e-4)
        assert {one.split for one in found} == {"test"}


def test_of_few_vectors_all_are_found(trained_digits: Packaged, file: Path) -> None:
    index = open_index(file, trained_digits)
    few = Index(index.source, index.keys[:3], index.splits[:3], index.mu_NZ[:3])
    assert len(nearest(few, index.mu_NZ[:1], 10)[0]) == 3


def test_a_vector_is_the_mean_of_the_posterior(trained_digits: Packaged) -> None:
    given = {"label": np.asarray(4), "top": np.full((4, 8), 0.3, np.float32)}
    with torch.no_grad():
        batch = batch_of(trained_digits.model.modalities, {n: [given.get(n)] for n in ("top", "bottom", "label")})
        expected = trained_digits.model.posterior(batch).mu[0].numpy()
    np.testing.assert_array_equal(vector(trained_digits.model, given), expected)


def test_what_was_found_is_drawn(trained_digits: Packaged, file: Path, digits_dir: Path, tmp_path: Path) -> None:
    index, manifest = open_index(file, trained_digits), open_manifest(digits_dir)
    (found,) = nearest(index, index.mu_NZ[:1], 4)
    draw(trained_digits, index, manifest, found, tmp_path / "found.png")
    picture = cv2.imread(str(tmp_path / "found.png"))
    assert picture.shape[1] > 4 * 128
    assert picture.std() > 10
    other = replace(index, source=replace(index.source, data="0"))
    with pytest.raises(UserError, match="the index was made of 0"):
        draw(trained_digits, other, manifest, found, tmp_path / "found.png")


def test_an_index_of_another_model_or_no_index_is_refused(
    trained_digits: Packaged, file: Path, digits_dir: Path, tmp_path: Path
) -> None:
    other = replace(trained_digits, model=build(trained_digits.run).eval())
    with pytest.raises(UserError, match=r"was made by another model \(digits, step 500\) than this one"):
        open_index(file, other)
    with pytest.raises(UserError, match=r"none\.parquet: no such file; pairstream embed writes it"):
        open_index(tmp_path / "none.parquet", other)
    (tmp_path / "text.parquet").write_text("no table")
    (tmp_path / "cut.parquet").write_bytes(file.read_bytes()[:-20])
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"key": ["a"], "split": ["test"], "mu": [[1.0]]}), tmp_path / "foreign.parquet")
    for name in ("text", "cut", "foreign"):
        with pytest.raises(UserError, match="is no file of vectors that pairstream embed has written"):
            open_index(tmp_path / f"{name}.parquet", other)
    with pytest.raises(UserError, match="no posterior of nothing alone"):
        vector(trained_digits.model, {})
