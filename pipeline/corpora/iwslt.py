"""English and Vietnamese sentences of IWSLT 2015, as two modalities (MVAE section 7).

    pairstream prepare iwslt-en-vi --source DIR

DIR holds pairs of files with the same name before .en and .vi: a sentence a line, and line n of the one is line n of
the other. Each may be packed (.gz, .xz). They are Stanford's train.en, tst2012.en and tst2013.en, IWSLT's own
train.tags.en-vi.en, of which the lines with tags are left out, and IWSLT15.TED.tst2012.en-vi.en.xml, or any others
(vocab.en is none). A file without its other language gives samples that lack it, for training only.

Where tst2012 and tst2013 are there, the earlier is the split `val` and the later `test`. Where one of them is, it is
`test`; then `val` are 1,500 of the training pairs (at most a tenth), those whose keys have the smallest hashes. All
else is for training. A key is a file's name without its language, with '-' for dots, and the sentence's number from 0:
tst2012/000123.

A pair with an empty line, or one that is no UTF-8, is left out and counted. Texts stay as they are, their case too;
their tokenizers (`pipeline.tokenizers`: NFKC, one space between words), one of each language with 8,000 tokens, learn
from the training data alone and lie beside the shards as en.model and vi.model. Sentences of more than 69 tokens are
cut there ("a maximum sequence length of 70 tokens", here with the end among them).
"""

from __future__ import annotations

import codecs
import gzip
import html
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from infra.errors import UserError
from modalities import Sentences
from pipeline.corpora.corpus import Corpus, Entry, Values, by_hash
from pipeline.description import model_file

if TYPE_CHECKING:
    from pipeline.tokenizers import Tokenizer

MODALITIES = {language: Sentences(vocabulary=8000, length=70) for language in ("en", "vi")}
TESTS = ("tst2012", "tst2013")
"""The official ones, the later last."""
HELD_OUT = 1500
"""Training pairs to validate on where no official file is for that."""
TAG = re.compile(rb"</?(doc|url|keywords|speaker|talkid|title|description|reviewer|translator)\b")
"""How those lines of train.tags.* begin that are no sentences."""
SEGMENT = re.compile(rb"<seg\b[^>]*>(.*)</seg>")
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}


class Part(NamedTuple):
    """Files of one name, of both languages or of one."""

    name: str
    files: dict[str, Path]
    """By language."""

    @property
    def folder(self) -> str:
        """What its keys begin with."""
        return re.sub("[^A-Za-z0-9_-]", "-", self.name)

    @property
    def paired(self) -> bool:
        return len(self.files) == len(MODALITIES)

    def is_of(self, test: str) -> bool:
        """Whether it is this official test set."""
        return test in re.findall("[A-Za-z0-9]+", self.name)


class Line(NamedTuple):
    """A sentence of one language."""

    number: int
    """From 1, as editors count."""
    text: str
    problem: str = ""
    """Which lines these are that cannot be used."""


def opened(source: Path) -> Corpus:
    """The corpus of these files, its tokenizers trained and its sentences tokenized.

    Raises UserError where files are missing, cut off, or not as long as those of the other language.
    """
    from pipeline.tokenizers import Tokenizer, train

    parts = _parts(source)
    official = _official(source, parts)
    notes: list[str] = []
    split = _splits(parts, official, {part.name: _usable(part, notes) for part in parts})
    for part in parts:
        if part.name in official and official[part.name] not in split.values():
            raise UserError(f"{source}: {part.name} has no sentences that can be used: fetch both of its files again")
    models = dict[str, bytes]()
    for language, modality in MODALITIES.items():
        try:
            models[language] = train(_training_texts(parts, split, language), modality.vocabulary)
        except UserError as error:
            raise UserError(f"{source}, sentences in {language} to train on: {error}") from None
    tokenizers = {language: Tokenizer(model) for language, model in models.items()}
    cut = Counter[str]()
    entries = list(_tokenized(parts, split, tokenizers, cut))
    for language, modality in MODALITIES.items():
        notes.append(f"{language}: {cut[language]:,} sentences of more than {modality.length - 1} tokens are cut")
    files = {model_file(language): model for language, model in models.items()}
    said = [*_divided(parts, official, split), *notes]
    return replace(IWSLT, entries=lambda _: entries, notes=lambda _: said, files=files)


def entries(source: Path | None) -> Sequence[Entry]:
    """All samples; whoever needs the models too calls `opened`."""
    assert source is not None, "prepare gives it"
    return opened(source).entries(source)


def load(entry: Entry) -> Values:
    """The tokens (70,) of each language that the sample has."""
    return cast(Values, entry.source)


# Files


def _parts(source: Path) -> list[Part]:
    """All files, by name. Raises UserError where one is there twice, or none is there."""
    parts: dict[str, Part] = {}
    for path in sorted(source.iterdir()):
        stem, _, language = re.sub(r"(\.xml)?(\.gz|\.xz)?$", "", path.name).rpartition(".")
        if language not in MODALITIES or stem in ("", "vocab") or path.is_dir():
            continue
        files = parts.setdefault(stem, Part(stem, {})).files
        if language in files:
            raise UserError(f"{source} holds {files[language].name} and {path.name}: take one of them away")
        files[language] = path
    if not parts:
        raise UserError(f"{source} holds no sentences: expected are {NEEDS}")
    return list(parts.values())


def _official(source: Path, parts: list[Part]) -> dict[str, str]:
    """The split of each part that is an official test set. Raises UserError where none is there, or not whole."""
    found = []
    for test in TESTS:
        mine = [part for part in parts if part.is_of(test)]
        if len(mine) > 1:
            raise UserError(f"{source} holds {test} as {mine[0].name} and as {mine[1].name}: take one of them away")
        for part in mine:
            if not part.paired:
                (path,) = part.files.values()
                raise UserError(f"{path} has no file of the other language beside it, and {test} needs both")
            found.append(part.name)
    if not found:
        raise UserError(f"{source} holds no {' and no '.join(TESTS)}, to test on: expected are {NEEDS}")
    return dict(zip(reversed(found), ("test", "val"), strict=False))


def _rows(part: Part) -> Iterator[tuple[str, dict[str, Line]]]:
    """Key and lines by language. Raises UserError where the languages have not equally many."""
    files = [_lines(path) for path in part.files.values()]
    for number, row in enumerate(zip_longest(*files)):
        if None in row:
            counts = [number + (line is not None) + sum(1 for _ in rest) for line, rest in zip(row, files, strict=True)]
            said = ", ".join(f"{path} has {n:,}" for path, n in zip(part.files.values(), counts, strict=True))
            raise UserError(f"sentences are paired by their places, but {said} of them: fetch both files again")
        yield f"{part.folder}/{number:06d}", dict(zip(part.files, row, strict=True))


def _lines(path: Path) -> Iterator[Line]:
    """The sentences of a file. Raises UserError where it is cut off."""
    kind = re.sub(r"\.(gz|xz)$", "", path.name)
    try:
        with OPENERS.get(path.suffix, open)(path, "rb") as file:
            for number, data in enumerate(file, start=1):
                if kind.endswith(".xml"):
                    if b"<seg" not in data:
                        continue
                    found = SEGMENT.search(data)
                    if not found:
                        raise UserError(f"{path}, line {number}: a <seg> without its end: fetch the file again")
                    data = found[1]
                elif kind.startswith("train.tags.") and TAG.match(data):
                    continue
                yield _line(number, data.removeprefix(codecs.BOM_UTF8), escaped=kind.endswith(".xml"))
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{path} cannot be unpacked ({error}): it was cut off or damaged, fetch it again") from None


def _line(number: int, data: bytes, escaped: bool) -> Line:
    try:
        text = data.decode().strip()
    except UnicodeDecodeError:
        return Line(number, "", "lines that are no UTF-8")
    return Line(number, html.unescape(text) if escaped else text, "" if text else "empty lines")


# Samples


def _usable(part: Part, notes: list[str]) -> list[str]:
    """The keys of what can be used; what cannot is noted."""
    keys, count, first = [], Counter[tuple[str, str]](), dict[tuple[str, str], int]()
    for key, lines in _rows(part):
        for language, line in lines.items():
            if line.problem:
                count[language, line.problem] += 1
                first.setdefault((language, line.problem), line.number)
        if not any(line.problem for line in lines.values()):
            keys.append(key)
    for (language, problem), n in count.items():
        what = f"{n:,} {problem}, the first is line {first[language, problem]:,}"
        notes.append(f"{part.files[language].name}: {what}: left out in both languages")
    return keys


def _splits(parts: list[Part], official: Mapping[str, str], usable: Mapping[str, list[str]]) -> dict[str, str]:
    """The split of each key that can be used."""
    split = {key: official.get(part.name, "train") for part in parts for key in usable[part.name]}
    if "val" not in official.values():
        training = [part for part in parts if part.paired and part.name not in official]
        pairs = [key for part in training for key in usable[part.name]]
        split |= dict.fromkeys(by_hash(pairs, seed=2015)[: min(HELD_OUT, len(pairs) // 10)], "val")
    return split


def _training_texts(parts: list[Part], split: Mapping[str, str], language: str) -> Iterator[str]:
    for part in parts:
        for key, lines in _rows(part) if language in part.files else ():
            if split.get(key) == "train":
                yield lines[language].text


def _tokenized(
    parts: list[Part], split: Mapping[str, str], tokenizers: Mapping[str, Tokenizer], cut: Counter[str]
) -> Iterator[Entry]:
    """All samples with their tokens, two bytes each; `cut` counts the sentences that are too long."""
    for part in parts:
        for key, lines in _rows(part):
            if key not in split:
                continue
            values = {}
            for language, line in lines.items():
                tokens, lost = tokenizers[language].encode([line.text], MODALITIES[language].length)
                values[language] = tokens[0].astype(np.uint16)
                cut[language] += bool(lost[0])
            yield Entry(key, split[key], values)


def _divided(parts: list[Part], official: Mapping[str, str], split: Mapping[str, str]) -> Iterator[str]:
    """What each split is made of."""
    count = Counter((key.partition("/")[0], where) for key, where in split.items())

    def pairs(where: str, among: list[Part]) -> str:
        total = sum(count[part.folder, where] for part in among)
        return f"{where}: {total:,} pairs of {', '.join(part.name for part in among) or 'no file'}"

    training = [part for part in parts if part.paired and part.name not in official]
    theirs = any("train" in part.name for part in training)
    yield pairs("train", training) + ("" if theirs else "; IWSLT's own 133k training pairs are not among them")
    for part in parts:
        if not part.paired:
            yield f"train: {count[part.folder, 'train']:,} sentences of {part.name} in {', '.join(part.files)} alone"
    for where in ("val", "test"):
        yield pairs(where, [part for part in parts if official.get(part.name) == where] or training)


NEEDS = (
    "aligned sentences as train.en and train.vi, tst2012.en and tst2012.vi, tst2013.en and tst2013.vi, or others (each "
    "also as .xml, .gz, .xz)"
)
IWSLT = Corpus("iwslt-en-vi", "English and Vietnamese sentences", MODALITIES, entries, load, needs=NEEDS, opened=opened)
