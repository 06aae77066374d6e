"""English and Vietnamese as a corpus: from tiny files in all official forms, from spoilt ones, and from real ones."""

from __future__ import annotations

import gzip
import lzma
import os
from collections.abc import Callable
from dataclasses import replace
from heapq import nsmallest
from pathlib import Path

import pytest
import sentencepiece
import xxhash

from infra.errors import UserError
from pipeline.corpora.iwslt import IWSLT
from pipeline.manifest import Manifest, open_manifest
from pipeline.tokenizers import Tokenizer
from pipeline.writing import Written, write
from tests.pipeline.userfiles import held, splits

EN, VI = ("one", "two", "three", "four", "five"), ("một", "hai", "ba", "bốn", "năm")


def sentence(language: str, number: int, part: str = "") -> str:
    """The sentence at a place, which tells it."""
    words = EN if language == "en" else VI
    return f"{part}{' ' if part else ''}{words[number % 5]} {words[number // 5 % 5]} & {words[number // 25]} {number}"


def write_part(place: Path, part: str, count: int, form: str = "", languages: tuple[str, ...] = ("en", "vi")) -> None:
    """Aligned files of so many sentences."""
    place.mkdir(exist_ok=True)
    for language in languages:
        data = "".join(sentence(language, n, part) + "\n" for n in range(count)).encode()
        path = place / f"{part}.{language}{form}"
        path.write_bytes(gzip.compress(data) if form == ".gz" else lzma.compress(data) if form == ".xz" else data)


def prepare(source: Path, out: Path) -> tuple[Written, Manifest]:
    assert IWSLT.opened
    corpus = IWSLT.opened(source)
    written = write(out, corpus, workers=1, source=source)
    return replace(written, notes=tuple(corpus.notes(source))), open_manifest(out)


def stanford(place: Path) -> Path:
    """Tiny files of Stanford's names."""
    for part, count in (("train", 40), ("tst2012", 6), ("tst2013", 5)):
        write_part(place, part, count)
    for language in ("en", "vi"):
        (place / f"vocab.{language}").write_text("<unk>\n" * (4 if language == "en" else 5))
    return place


def pairs(part: str, count: int) -> dict[str, dict[str, str]]:
    return {f"{part}/{n:06d}": {m: sentence(m, n, part) for m in ("en", "vi")} for n in range(count)}


def test_stanford_s_files(tmp_path: Path) -> None:
    written, manifest = prepare(stanford(tmp_path / "raw"), tmp_path / "out")
    assert splits(manifest) == {
        "train": list(pairs("train", 40)), "val": list(pairs("tst2012", 6)), "test": list(pairs("tst2013", 5))
    }  # fmt: skip
    assert held(tmp_path / "out") == pairs("train", 40) | pairs("tst2012", 6) | pairs("tst2013", 5)
    assert written.notes == (
        "train: 40 pairs of train",
        "val: 6 pairs of tst2012",
        "test: 5 pairs of tst2013",
        "en: 0 sentences of more than 69 tokens are cut",
        "vi: 0 sentences of more than 69 tokens are cut",
    )
    assert {name: modality.shape for name, modality in manifest.modalities.items()} == {"en": (70,), "vi": (70,)}


@pytest.mark.parametrize("form", ["", ".gz", ".xz"])
def test_files_of_other_names_validate_on_training_pairs(tmp_path: Path, form: str) -> None:
    """A tenth of few; whatever files are packed how, the same ones."""
    for part, count in (("evbnews", 80), ("iwslt15.dev2010", 20), ("iwslt15.tst2012", 5)):
        write_part(tmp_path / "raw", part, count, form)
    written, manifest = prepare(tmp_path / "raw", tmp_path / "out")
    found = splits(manifest)
    assert {split: len(keys) for split, keys in found.items()} == {"train": 90, "val": 10, "test": 5}
    assert found["test"] == [f"iwslt15-tst2012/{n:06d}" for n in range(5)]
    training = [*pairs("evbnews", 80), *(key.replace(".", "-") for key in pairs("iwslt15.dev2010", 20))]
    chosen = nsmallest(10, training, key=lambda key: xxhash.xxh3_64_intdigest(key.encode(), seed=2015))
    assert found["val"] == sorted(chosen)
    assert written.notes[:3] == (
        "train: 90 pairs of evbnews, iwslt15.dev2010; IWSLT's own 133k training pairs are not among them",
        "val: 10 pairs of evbnews, iwslt15.dev2010",
        "test: 5 pairs of iwslt15.tst2012",
    )


def test_official_forms_of_iwslt(tmp_path: Path) -> None:
    """Segments of XML, and plain lines between tags, of which the two languages have different numbers."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for language in ("en", "vi"):
        head = "<url>http://x</url>\n<title>A < B</title>\n" + "<translator>me</translator>\n" * (language == "vi")
        body = [sentence(language, n) + "\n" for n in range(20)]
        text = head + "".join(body[:9]) + "</doc>\n" + head + "".join(body[9:])
        (raw / f"train.tags.en-vi.{language}").write_text(text)
        segments = [f'<seg id="{n}"> {sentence(language, n).replace("&", "&amp;")} </seg>\n' for n in range(4)]
        xml = (
            f'<?xml version="1.0"?>\n<mteval>\n<doc docid="7">\n<title>t</title>\n{"".join(segments)}</doc></mteval>\n'
        )
        (raw / f"IWSLT15.TED.tst2012.en-vi.{language}.xml").write_text(xml)
    prepare(raw, tmp_path / "out")
    found = held(tmp_path / "out")
    for part, count in (("train-tags-en-vi", 20), ("IWSLT15-TED-tst2012-en-vi", 4)):
        mine = [found.pop(f"{part}/{n:06d}") for n in range(count)]
        assert mine == [{language: sentence(language, n) for language in ("en", "vi")} for n in range(count)]
    assert not found


def test_sentences_of_one_language_are_samples_too(tmp_path: Path) -> None:
    write_part(stanford(tmp_path / "raw"), "more", 7, languages=("vi",))
    written, manifest = prepare(tmp_path / "raw", tmp_path / "out")
    found = held(tmp_path / "out")
    assert [found[f"more/{n:06d}"] for n in range(7)] == [{"vi": sentence("vi", n, "more")} for n in range(7)]
    assert set(splits(manifest)["train"]) == {*pairs("train", 40), *(f"more/{n:06d}" for n in range(7))}
    assert "train: 7 sentences of more in vi alone" in written.notes


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")


def test_lines_that_cannot_be_used_take_their_pairs_alone(tmp_path: Path) -> None:
    """Empty ones and such as are no UTF-8, on one side or both; the others keep their places."""
    raw = stanford(tmp_path / "raw")
    en, vi = lines(raw / "train.en"), lines(raw / "train.vi")
    en[3], vi[3], en[5], vi[8], vi[9] = b"", b" \t", b"\r", b"\xff", b"a\xc3"
    en[0] = b"\xef\xbb\xbf" + en[0]
    (raw / "train.en").write_bytes(b"\r\n".join(en))
    (raw / "train.vi").write_bytes(b"\n".join(vi))
    written, _ = prepare(raw, tmp_path / "out")
    truth = pairs("train", 40) | pairs("tst2012", 6) | pairs("tst2013", 5)
    for number in (3, 5, 8, 9):
        del truth[f"train/{number:06d}"]
    assert held(tmp_path / "out") == truth
    assert set(written.notes) >= {
        "train: 36 pairs of train",
        "train.en: 2 empty lines, the first is line 4: left out in both languages",
        "train.vi: 1 empty lines, the first is line 4: left out in both languages",
        "train.vi: 2 lines that are no UTF-8, the first is line 9: left out in both languages",
    }


def test_long_sentences_are_cut_and_counted(tmp_path: Path) -> None:
    raw = stanford(tmp_path / "raw")
    (raw / "tst2013.en").write_text("one " * 500 + "\n" + "two\n" * 4)
    written, _ = prepare(raw, tmp_path / "out")
    assert "en: 1 sentences of more than 69 tokens are cut" in written.notes
    found = held(tmp_path / "out")["tst2013/000000"]["en"]
    assert set(found.split()) <= {"one", "on", "o"}
    assert 10 < len(found) < 4 * 69


def test_tokenizers_learn_from_training_data_alone(tmp_path: Path) -> None:
    """A letter that is not in them has no piece of its own, in neither language, nor one of the other language."""
    raw = stanford(tmp_path / "raw")
    for name, letters in (("tst2012.en", "ж"), ("tst2013.en", "щ"), ("train.en", "ю")):
        (raw / name).write_text("\n".join(f"{line.decode()} {letters}" for line in lines(raw / name)[:-1]) + "\n")
    _, manifest = prepare(raw, tmp_path / "out")
    pieces = {}
    for language in ("en", "vi"):
        model = sentencepiece.SentencePieceProcessor(model_proto=manifest.file(f"{language}.model"))
        pieces[language] = "".join(model.id_to_piece(n) for n in range(model.get_piece_size()))
        assert Tokenizer(manifest.file(f"{language}.model")).size <= 8000
    assert "ю" in pieces["en"]
    assert not set("жщă") & set(pieces["en"])
    assert "ă" in pieces["vi"]
    assert "ю" not in pieces["vi"]


def test_the_same_files_give_the_same_data(tmp_path: Path) -> None:
    raw = stanford(tmp_path / "raw")
    found = [prepare(raw, tmp_path / str(turn))[1] for turn in range(2)]
    assert found[0].fingerprint == found[1].fingerprint
    assert found[0].files == found[1].files


def edited(name: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda raw: (raw / name).write_bytes(edit((raw / name).read_bytes()))


def packed_and_cut(raw: Path) -> None:
    data = lzma.compress((raw / "train.vi").read_bytes())
    (raw / "train.vi").unlink()
    (raw / "train.vi.xz").write_bytes(data[:-30])


def no_gzip(raw: Path) -> None:
    (raw / "train.vi").rename(raw / "train.vi.gz")


def moved(before: str, after: str) -> Callable[[Path], object]:
    return lambda raw: (raw / before).rename(raw / after)


def clashing(raw: Path) -> None:
    for part in ("a.b", "a-b"):
        write_part(raw, part, 3)


def without_tests(raw: Path) -> None:
    for path in raw.glob("tst*"):
        path.unlink()


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "a line less": (
        edited("train.vi", lambda data: data.partition(b"\n")[2]),
        r"train\.en has 40, .*train\.vi has 39 of them: fetch both",
    ),
    "lines more": (
        edited("train.vi", lambda data: data + b"a\nb\n"),
        r"train\.en has 40, .*train\.vi has 42 of them: fetch both",
    ),
    "cut xz": (packed_and_cut, r"train\.vi\.xz cannot be unpacked \(.*fetch it again"),
    "no gzip": (no_gzip, r"train\.vi\.gz cannot be unpacked \(.*fetch it again"),
    "half a test set": (moved("tst2013.vi", "x"), r"tst2013\.en has no file of the other language beside it"),
    "no test sets": (without_tests, "holds no tst2012 and no tst2013, to test on: expected are aligned sentences"),
    "a test set twice": (
        lambda raw: write_part(raw, "ted.tst2012", 3),
        r"holds tst2012 as ted\.tst2012 and as tst2012: take one of them away",
    ),
    "a file twice": (
        lambda raw: write_part(raw, "train", 40, ".gz"),
        r"holds train\.en and train\.en\.gz: take one of them away",
    ),
    "names that become one": (clashing, "two samples have the key"),
    "a cut segment": (
        lambda raw: [(raw / f"x.{m}.xml").write_text('<seg id="1">a</seg>\n<seg id="2">b') for m in ("en", "vi")],
        r"x\.en\.xml, line 2: a <seg> without its end",
    ),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_files_that_are_not_right(tmp_path: Path, spoilt: str) -> None:
    raw = stanford(tmp_path / "raw")
    spoil, said = SPOILT[spoilt]
    spoil(raw)
    with pytest.raises(UserError, match=said):
        prepare(raw, tmp_path / "out")
    assert os.listdir(tmp_path) == ["raw"]


def test_an_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no sentences: expected are aligned sentences as train"):
        IWSLT.entries(tmp_path)


@pytest.mark.slow
def test_the_real_sentences(tmp_path: Path) -> None:
    """EVBNews and TED talks; the first pair as it was read off the files."""
    if "PAIRSTREAM_DATA" not in os.environ:
        pytest.skip("PAIRSTREAM_DATA is not set: it has to name the directory with envi/")
    written, manifest = prepare(Path(os.environ["PAIRSTREAM_DATA"]) / "envi", tmp_path / "out")
    assert {split: len(rows) for split, rows in manifest.splits.items()} == {"train": 47353, "val": 1500, "test": 1553}
    assert written.notes[0].startswith("train: 47,353 pairs of evbnews, iwslt15.dev2010")
    assert set(manifest.patterns(range(len(manifest)))) == {3}
    for language in ("en", "vi"):
        assert Tokenizer(manifest.file(f"{language}.model")).size == 8000
    assert held(tmp_path / "out")["evbnews/000000"] == {"en": "What is a Fenqing ?", "vi": "Fenqing là gì ?"}


def test_a_test_set_without_sentences_is_named(tmp_path: Path) -> None:
    """What a server answers in place of a file."""
    stanford(tmp_path)
    for language in ("en", "vi"):
        (tmp_path / f"tst2013.{language}").write_text("\n\n")
    with pytest.raises(UserError, match="tst2013 has no sentences that can be used: fetch both of its files again"):
        IWSLT.entries(tmp_path)


def test_no_sentences_to_train_on(tmp_path: Path) -> None:
    write_part(tmp_path, "tst2012", 8)
    with pytest.raises(UserError, match="sentences in en to train on: there is no text") as said:
        IWSLT.entries(tmp_path)
    assert str(tmp_path) in str(said.value)


def test_a_file_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    from pipeline.corpora import prepare as prepare_corpus

    stanford(tmp_path / "raw")
    (tmp_path / "raw" / "mono.en").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"mono\.en cannot be read: No such file"):
        prepare_corpus("iwslt-en-vi", tmp_path / "out", source=tmp_path / "raw")
