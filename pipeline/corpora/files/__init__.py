"""A user's own files as a corpus, without Python: a `pairstream.toml` beside them says what they are.

    pairstream prepare files --source DIR --out OUT

DIR/pairstream.toml, with every key there is:

    [data]
    table = "train.csv"             # .csv, .tsv or .parquet; or several files: "parts/*.parquet"
    # folder = "."                  # instead: files KEY.MODALITY.ext in it and in the folders below, which are in KEY
    # dataset = "saved"             # instead: what `save_to_disk` of Hugging Face wrote, with splits or without
    key = "id"                      # a column that names the samples; without it a file's name and a row's number do
    split = "part"                  # a column of train, val (or validation, valid, dev) and test
    val = 0.1                       # share of the training samples held out for what has no split val of its own
    test = 0.1                      # the same for test; both by the hashes of the keys, and 0.1 where not given
    delimiter = ";"                 # between a CSV file's cells; "," where not given, a tab in .tsv

    [modalities.photo]
    kind = "image"
    column = "file"                 # of all kinds, where it is not the modality's name: paths as seen from the table,
                                    # or the bytes of files
    # extensions = ["jpg", "png"]   # of all kinds, for a folder: KEY.jpg is the photo; otherwise KEY.photo.* is
    size = [64, 64]                 # height and width
    fit = "crop"                    # the middle of the picture; or "stretch"
    channels = 3                    # colours; 1: grey
    codec = "png"                   # how it is stored: png, jpg or npy

    [modalities.species]
    kind = "label"
    classes = ["cat", "dog"]        # in the order of their numbers; where not given, all that are in the data, sorted

    [modalities.traits]
    kind = "attributes"
    columns = ["tame", "striped"]   # with 1, true, yes or 0, false, no; instead of a column with names: "tame|striped"
    # separator = "|"               # between those names; a cell that holds this alone says that none applies
    # names = ["tame", "striped"]   # where not given, all that are in the data, sorted

    [modalities.caption]
    kind = "sentences"              # or "text", which is short
    vocabulary = 8000               # tokens at most
    length = 70                     # tokens of the longest text that is kept whole, its end among them
    tokenizer = "unigram"           # or word, bpe, char; for text it is char where not given

    [modalities.shape]
    kind = "features"
    columns = ["x", "y"]            # a number each; or of one column: lists, "0.5 1.5", or paths of .npy files
    # count = 2                     # numbers of a vector; where not given, as many as the first one has

Any other setting of the modality (hidden, network, likelihood, …) may stand there too.

An empty cell, or a file that is not there, is a modality that a sample lacks. A cell that cannot be used (a picture
that is none, a label of no class, a text that is no UTF-8, …) is no lack: its sample is left out, and counted with the
reason, and so is a row with nothing at all. Where the file itself is at fault, nothing is written.

Tokenizers are stored as NAME.model, the names of classes and attributes as NAME.names.json, beside the shards. A key
that does not fit a shard is changed: '-' stands for what it cannot hold, and a hash of the whole follows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from infra.errors import Unusable, UserError
from modalities import AnyModality
from pipeline.corpora.corpus import Corpus, Entry, Values, by_hash
from pipeline.corpora.files.cells import Cells, Reader, missing
from pipeline.corpora.files.found import find
from pipeline.corpora.files.settings import FILE, Data, read
from pipeline.corpora.files.sources import Listed, Source, open_source
from pipeline.corpora.files.tables import cursor
from pipeline.shards import KEY, NAME_BYTES

HELD_OUT = 0.1
"""Share of the training samples that is held out, for `val` and for `test`, where nobody says otherwise."""


@dataclass(frozen=True)
class Load:
    """Makes the values of a sample; what `prepare` sends to other processes."""

    source: Source
    columns: tuple[str, ...]
    """All that are read."""
    readers: Mapping[str, tuple[tuple[str, ...], Reader]]
    """Columns and reader of each modality."""

    def __call__(self, entry: Entry) -> Values:
        """Raises Unusable with the reason where a sample cannot be used whole."""
        if isinstance(entry.source, str):
            raise Unusable(entry.source)
        record = self.source.record(entry.source, self.columns)
        if record.broken:
            raise Unusable(f"{record.place}: {record.broken}")
        values = {}
        for name, (columns, reader) in self.readers.items():
            cells = [record.cells[column] for column in columns]
            gone = [column for column, cell in zip(columns, cells, strict=True) if missing(cell)]
            if len(gone) == len(columns):
                continue
            if gone:
                raise Unusable(f"{record.place}, column {gone[0]}: empty, and other columns of {name} are not")
            try:
                values[name] = reader(cells)
            except Unusable as error:
                raise Unusable(f"{record.at(columns, name)}: {error}") from None
        if not values:
            raise Unusable(f"{record.place}: nothing is there")
        return values


def opened(source: Path) -> Corpus:
    """The corpus that DIR/pairstream.toml describes. Raises UserError where it or the files are not right."""
    cursor.cache_clear()  # another call's files may have had the same names
    settings = read(source)
    # Also refuses settings that fit no modality, before the files are read.
    endings = [f".{name}.{asked.modality().extension}" for name, asked in settings.modalities.items()]
    samples = open_source(source, settings)
    notes = list(samples.notes)
    where = f"{settings.file}: [data]"
    entries = list(_entries(samples.listed, NAME_BYTES - max(map(len, endings)), where, notes))
    entries = _divided(entries, settings.data, where, notes)

    modalities, files = dict[str, AnyModality](), dict[str, bytes]()
    readers = dict[str, tuple[tuple[str, ...], Reader]]()
    for name, asked in settings.modalities.items():

        def rows(training: bool, columns: tuple[str, ...] = asked.columns) -> Iterator[Cells]:
            return _cells(samples.source, entries, columns, training)

        found = find(name, asked, samples.source.folder, rows, samples.source.classes(asked.columns[0]))
        modalities[name], readers[name] = found.modality, (asked.columns, found.reader)
        files |= found.files
        notes.append(f"{name}: {found.note}")
    columns = tuple(dict.fromkeys(column for columns, _ in readers.values() for column in columns))
    return replace(
        FILES,
        modalities=modalities,
        entries=lambda _: entries,
        load=Load(samples.source, columns, readers),
        notes=lambda _: notes,
        files=files,
    )


def _cells(source: Source, entries: Sequence[Entry], columns: tuple[str, ...], training: bool) -> Iterator[Cells]:
    """These cells of all samples, or of those for training, that have them."""
    for entry in entries:
        if not isinstance(entry.source, str) and (entry.split == "train" or not training):
            record = source.record(entry.source, columns)
            cells = [] if record.broken else [record.cells[column] for column in columns]
            if cells and not any(map(missing, cells)):
                yield cells


def _entries(listed: Iterable[Listed], room: int, where: str, notes: list[str]) -> Iterator[Entry]:
    """The samples, with keys of at most `room` letters that fit a shard. Raises UserError where two have the same."""
    keys, changed, example = set[str](), 0, ""
    for one in listed:
        key = one.key
        if not KEY.fullmatch(key) or len(key) > room:
            digest = xxhash.xxh3_64_hexdigest(key.encode("utf-8", "surrogateescape"))
            key = re.sub("[^A-Za-z0-9]+", "-", key)[: room - len(digest) - 1] + f"-{digest}"
            changed, example = changed + 1, example or f"{one.key!r} is {key}"
        if key in keys:
            hint = "keys have to differ; leave key away, and the rows' numbers are taken"
            raise UserError(f"{where} key: two samples have the key {one.key!r}: {hint}")
        keys.add(key)
        yield Entry(key, one.split, one.where)
    if changed:
        notes.append(f"{changed:,} keys do not fit a shard and were changed: {example}")


def _divided(entries: list[Entry], data: Data, where: str, notes: list[str]) -> list[Entry]:
    """The samples with a split each: what the data say, and shares of the training samples for what they do not say.

    Raises UserError where a share is asked for that the data have themselves.
    """
    own = {entry.split for entry in entries}
    order = by_hash((entry.key for entry in entries if entry.split in ("", "train")), seed=0)
    split, first = dict.fromkeys(order, "train"), 0
    for name, share in (("val", data.val), ("test", data.test)):
        if name in own:
            if share is not None:
                raise UserError(f"{where} {name}: the data have a split {name} of their own: leave this share away")
            continue
        count = int(len(order) * (HELD_OUT if share is None else share))
        split |= dict.fromkeys(order[first : first + count], name)
        first += count
        notes.append(f"{name}: {count:,} of {len(order):,} training samples, by the hashes of their keys")
    return [entry._replace(split=split.get(entry.key, entry.split)) for entry in entries]


def entries(source: Path | None) -> Sequence[Entry]:
    """All samples; whoever needs the modalities too calls `opened`."""
    assert source is not None, "prepare gives it"
    return opened(source).entries(source)


def load(entry: Entry) -> Values:
    raise AssertionError("opened() says how")


FILES = Corpus("files", "your own files", {}, entries, load, needs=FILE, opened=opened)
