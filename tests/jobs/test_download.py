"""`prepare --download`: the official files from their public addresses, then the corpus made of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.download import Official
from jobs.cli import main
from pipeline.corpora import CORPORA, downloads
from pipeline.corpora.downloads import BY_CORPUS, addresses
from pipeline.corpora.mnist import FILES
from pipeline.manifest import open_manifest
from tests.infra.servers import FileServer
from tests.pipeline import official


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Tiny official files of MNIST at an address of this machine."""
    raw = official.write_mnist(tmp_path / "published")
    server = FileServer(raw, tmp_path)
    files = tuple(
        Official(
            path.name, f"{server.url}/{path.name}", len(data := path.read_bytes()), hashlib.sha256(data).hexdigest()
        )
        for path in sorted(raw.iterdir())
    )
    monkeypatch.setitem(downloads.BY_CORPUS, "mnist", files)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    server.start()
    yield server
    server.kill()


def test_a_corpus_is_fetched_and_prepared(published: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "mnist", "--download", "--json"]) == 0
    closing = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (closing["samples"], closing["samples_skipped"]) == (30, 0)
    assert sorted(path.name for path in Path("data/mnist.raw").glob("*.gz")) == sorted(f"{name}.gz" for name in FILES)
    assert len(open_manifest("data/mnist")) == 30
    published.kill()  # what is prepared needs no files
    assert main(["prepare", "mnist", "--download"]) == 0


def test_files_without_an_address_are_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "celeba", "--download"]) == 2
    assert "--download: no public address is known for the files of celeba, only for those of mnist," in (
        capsys.readouterr().err
    )


def test_the_table_is_of_files_that_the_corpora_read() -> None:
    assert set(BY_CORPUS) <= set(CORPORA)
    for corpus in ("mnist", "fashion-mnist", "multimnist"):
        assert {file.name for file in addresses(corpus)} == {f"{name}.gz" for name in FILES}
    for corpus in BY_CORPUS:
        assert len({file.name for file in addresses(corpus)}) == len(addresses(corpus))  # they lie in one directory
        assert all(Path(file.name).stem.split(".")[0] in CORPORA[corpus].needs or corpus == "iwslt-en-vi"
                   for file in addresses(corpus))  # fmt: skip
    assert addresses("celeba") == addresses("digits") == ()
    files = {file for corpus in BY_CORPUS for file in addresses(corpus)}
    for file in files:
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert re.fullmatch(r"https?://\S+/" + re.escape(file.name), file.url)
        assert file.size > 4000
    assert len({file.url for file in files}) == len({file.sha256 for file in files}) == len(files) == 19
