"""One file per data set: from raw official files to samples, and which modalities it has.

A new corpus is a file with a `Corpus`, and its name in `CORPORA`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import xxhash

from infra.errors import UserError, nearest
from pipeline.corpora.binary_mnist import BINARY_MNIST
from pipeline.corpora.celeba import CELEBA
from pipeline.corpora.celeba_transforms import CELEBA_TRANSFORMS
from pipeline.corpora.corpus import Corpus
from pipeline.corpora.cub import CUB, CUB_FEATURES, CUB_RESNET
from pipeline.corpora.digits import DIGITS
from pipeline.corpora.files import FILES
from pipeline.corpora.iwslt import IWSLT
from pipeline.corpora.mnist import FASHION_MNIST, MNIST
from pipeline.corpora.mnist_digits import MNIST_DIGITS
from pipeline.corpora.mnist_split import MNIST_SPLIT, MNIST_SPLIT3
from pipeline.corpora.mnist_svhn import MNIST_SVHN
from pipeline.corpora.multimnist import MULTIMNIST
from pipeline.description import NAME as SETTINGS
from pipeline.description import describe, described
from pipeline.manifest import NAME, Manifest, open_manifest
from pipeline.writing import SHARD_BYTES, Progress, Written, write
from pipeline.writing.merging import SKIPPED

CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        DIGITS, MNIST, BINARY_MNIST, FASHION_MNIST, MULTIMNIST, MNIST_SPLIT, MNIST_SPLIT3, MNIST_SVHN, MNIST_DIGITS,
        CELEBA, CELEBA_TRANSFORMS, CUB, CUB_FEATURES, CUB_RESNET, IWSLT, FILES,
    )
}  # fmt: skip


def find(name: str) -> Corpus:
    """The corpus of that name. Raises UserError with the nearest names."""
    if name not in CORPORA:
        raise UserError(f"no corpus {name!r}" + nearest(name, list(CORPORA)))
    return CORPORA[name]


def prepare(
    name: str,
    out: Path,
    shard_bytes: int = SHARD_BYTES,
    workers: int = 0,
    progress: Progress | None = None,
    source: Path | None = None,
) -> Written:
    """Write a corpus as shards and a manifest into `out`, or finish what an interrupted call began.

    `source` is the directory of its official files, for a corpus that needs some. A directory `out` that already holds
    this corpus whole is left as it is. Raises UserError, also where it holds other files of a user's own.
    """
    corpus = find(name)
    if source and not corpus.needs:
        raise UserError(f"corpus {name} is made from no files of yours: leave --source {source} away")
    if (out / NAME).is_file():
        manifest = open_manifest(out)
        if manifest.corpus == name and not manifest.damaged_shards and not manifest.damaged_files():
            if source and source.is_dir() and not corpus.modalities:
                _check_same(manifest, _opened(corpus, source), source)
            elif corpus.modalities and not (out / SETTINGS).is_file():  # an earlier version wrote none
                describe(out, corpus.modalities)
            return Written(manifest.fingerprint, 0, len(manifest.shards))
    if corpus.needs and not source:
        raise UserError(f"corpus {name} is made from {corpus.needs}: say with --source DIR where they are")
    if source and not source.is_dir():
        raise UserError(f"--source {source} is no directory: it has to hold {corpus.needs}")
    if source:
        corpus = _opened(corpus, source)
    written = write(out, corpus, shard_bytes, workers, progress, source)
    return replace(written, notes=tuple(corpus.notes(source)))


def _opened(corpus: Corpus, source: Path) -> Corpus:
    try:
        return corpus.opened(source) if corpus.opened else corpus
    except OSError as error:
        raise UserError(f"{error.filename or source} cannot be read: {error.strerror or error}") from None


def _check_same(manifest: Manifest, corpus: Corpus, source: Path) -> None:
    """Raise UserError where the shards hold something else than a user's files there: the name alone tells nothing."""
    files = {name: xxhash.xxh3_128_hexdigest(data) for name, data in corpus.files.items()}
    left_out = Path(manifest.directory, SKIPPED)
    count = len(manifest) + (len(left_out.read_text().splitlines()) if left_out.is_file() else 0)
    same = (described(manifest), manifest.files, count) == (corpus.modalities, files, len(corpus.entries(source)))
    if not same:
        raise UserError(
            f"{manifest.directory} holds something else than {source} says now: choose another --out, or "
            "remove it first"
        )
