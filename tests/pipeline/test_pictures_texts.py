"""Sentences that a model writes, as Markdown: what stands beside what, greedy and drawn words, nearest features."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from modalities import Sentences
from pipeline.noise import normal
from pipeline.pictures import texts
from pipeline.pictures.looks import Words
from pipeline.pictures.made import decoded, lacking, mean_of, rows, samples_of
from pipeline.stream import in_order
from tests.pipeline.drawn import KINDS, ROWS, has, make, subject, value


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("texts") / "d")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def table(lines: list[str], heading: str) -> list[list[str]]:
    """The rows of the table below a heading."""
    start = lines.index(heading) + 4
    return [cells(line) for line in lines[start : lines.index("", start)]]


def test_translations_show_the_real_ones_beside_those_made(data: Path) -> None:
    model = subject(data, "says", "caption", "label")
    lines = texts.translations(model)
    assert [line for line in lines if line.startswith("#")] == [
        "# Translations (val)",
        "## says and caption of one z ~ p(z)",
        "## says and caption of one z ~ q(z | says, caption)",
        "## says → caption, at the mean of q(z | says)",
        "## caption → says, at the mean of q(z | caption)",
    ]
    batch = rows(model, texts.TRANSLATED, ["says", "caption"])
    z, said = mean_of(model, batch, ["says"]), Words.of(model)
    likeliest = decoded(model, ["caption"], z, batch)["caption"]
    drawn = texts.drawn(model, "caption", z, batch)
    translated = table(lines, "## says → caption, at the mean of q(z | says)")
    there = np.flatnonzero(~lacking(batch, ["says"]))
    assert len(translated) == 4 * len(there)
    for place, row in enumerate(there):
        number = int(batch.keys[row].split("/")[1])
        real = said.value("caption", value("caption", number)) if has("caption", number) else ""
        assert translated[4 * place : 4 * place + 4] == [
            [f"`{batch.keys[row]}`", "**says**", said.value("says", value("says", number))],
            ["", "caption, real", real],
            ["", "caption, likeliest", said.value("caption", likeliest[row])],
            ["", "caption, drawn", said.value("caption", drawn[row])],
        ]


def test_pairs_are_decoded_of_one_sample(data: Path) -> None:
    model = subject(data, "says", "caption")
    lines = table(texts.translations(model), "## says and caption of one z ~ q(z | says, caption)")
    batch = rows(model, texts.TRANSLATED, ["says", "caption"])
    z = samples_of(model, batch, ["says", "caption"], 1, "translations")[0]
    made = decoded(model, ["says", "caption"], z, batch)
    said = Words.of(model)
    assert [what for _, what, _ in lines[:6]] == [
        "**says**", "**caption**", "says, likeliest", "caption, likeliest", "says, drawn", "caption, drawn"
    ]  # fmt: skip
    assert lines[2][2] == said.value("says", made["says"][0])
    assert lines[3][2] == said.value("caption", made["caption"][0])


def test_pairs_of_the_prior_are_decoded_of_one_sample_too(data: Path) -> None:
    """No row of the data has anything to do with them."""
    model = subject(data, "says", "caption")
    lines = table(texts.translations(model), "## says and caption of one z ~ p(z)")
    row_B = torch.arange(texts.TRANSLATED)
    z, batch, said = normal(0, "pictures prior", row_B, 1, 4)[0], rows(model, texts.TRANSLATED), Words.of(model)
    made = decoded(model, ["says", "caption"], z, batch)
    drawn = {name: texts.drawn(model, name, z, replace(batch, row_B=row_B)) for name in made}
    assert len(lines) == 4 * texts.TRANSLATED
    for row in range(texts.TRANSLATED):
        assert lines[4 * row : 4 * row + 4] == [
            [f"`{row + 1}`", "says, likeliest", said.value("says", made["says"][row])],
            ["", "caption, likeliest", said.value("caption", made["caption"][row])],
            ["", "says, drawn", said.value("says", drawn["says"][row])],
            ["", "caption, drawn", said.value("caption", drawn["caption"][row])],
        ]
    on_test = texts.translations(subject(data, "says", "caption", split="test"))
    assert table(on_test, "## says and caption of one z ~ p(z)") == lines


CONVOLVED = Sentences(vocabulary=9, length=8, embedding=32, hidden=8, network="cnn")
"""What `caption` holds, by a decoder that writes all words at once."""


@pytest.mark.parametrize("name", ["says", "caption"])
def test_words_are_drawn_as_likely_as_they_are(data: Path, name: str) -> None:
    """Of many rows with one z, the first word's frequencies are its probabilities."""
    model = subject(data, "says") if name == "says" else subject(data, caption=CONVOLVED)
    if name == "caption":
        with torch.no_grad():
            model.model.decoders[name][-1].bias[:] = torch.linspace(0, 2, 9)  # type: ignore[index, union-attr]
    count = 500
    batch = replace(rows(model, 1), row_B=torch.arange(count), keys=["k"] * count)
    z = torch.full((count, 4), 0.3)
    with torch.no_grad():
        if name == "says":
            first = torch.arange(9)[:, None].expand(9, 5)
            probability = model.model.decoders[name](z[:9], first)[:, 0].exp()
        else:
            probability = model.model.decode(name, z[:1], batch)[0, 0].softmax(0)
    words = texts.drawn(model, name, z, batch)
    assert words.shape == (count, KINDS[name].shape[0])
    share = np.bincount(words[:, 0], minlength=9) / count
    assert np.abs(share - probability.numpy()).max() < 4 * 0.5 / count**0.5
    assert np.array_equal(words, texts.drawn(model, name, z, batch)), "of the row, not of the moment"
    other = replace(model, run=replace(model.run, seed=1))
    assert not np.array_equal(words, texts.drawn(other, name, z, batch))


def test_captions_are_made_of_every_other_modality(data: Path) -> None:
    model = subject(data, "numbers", "caption", "label")
    lines = texts.captions(model)
    assert lines[0] == "# caption (val)"
    assert cells(lines[2]) == [
        "key", "real", "made of numbers", "made of label",
        "of the training numbers nearest to those made of the real one",
    ]  # fmt: skip
    batch, said = rows(model, texts.CAPTIONED, ["caption", "numbers", "label"]), Words.of(model)
    made = decoded(model, ["caption"], mean_of(model, batch, ["numbers"]), batch)["caption"]
    assert len(lines) == 4 + texts.CAPTIONED + 1
    for row, line in enumerate(lines[4:-1]):
        key, real, of_numbers, of_label, near = cells(line)
        number = int(key.strip("`").split("/")[1])
        assert real == (said.value("caption", value("caption", number)) if has("caption", number) else "")
        assert of_numbers == (said.value("caption", made[row]) if has("numbers", number) else "")
        assert bool(of_label) == has("label", number)
        assert bool(near) == has("caption", number)


def test_the_nearest_training_sample_that_has_both(data: Path) -> None:
    model = subject(data, "numbers", "caption")
    both = [number for number in range(ROWS) if has("numbers", number) and has("caption", number)]
    made = [np.arange(5) + number + 0.2 for number in range(ROWS)]
    found = texts.nearest(model, "numbers", [*[one.astype(np.float32) for one in made], None], "caption")
    for number, caption in enumerate(found[:-1]):
        expected = min(both, key=lambda other: abs(other - number - 0.2))
        assert np.array_equal(caption, value("caption", expected))  # type: ignore[arg-type]
    assert found[-1] is None, "of nothing made nothing is near"


def test_no_more_training_rows_are_read_than_said(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counted(*arguments: object) -> object:
        for refs in in_order(*arguments):  # type: ignore[arg-type]
            read.append(len(refs.sample_B))
            yield refs

    monkeypatch.setattr(texts, "in_order", counted)
    monkeypatch.setattr(texts, "READ", 4)
    monkeypatch.setattr(texts, "TRAINING", 8)
    model = subject(data, "numbers", "caption")
    (found,) = texts.nearest(model, "numbers", [np.arange(5, dtype=np.float32) + ROWS], "caption")
    assert read == [4, 4]
    last = max(number for number in range(8) if has("numbers", number) and has("caption", number))
    assert np.array_equal(found, value("caption", last))  # type: ignore[arg-type]


def test_where_there_are_no_two_languages_or_nothing_to_caption(data: Path) -> None:
    assert texts.translations(subject(data, "caption", "numbers")) == []
    assert texts.captions(subject(data, "caption", "says")) == []
    assert texts.captions(subject(data, "grey", "label")) == []


def test_a_system_writes_what_it_can(data: Path) -> None:
    """Given its condition, and no sentence drawn by a decoder that sees the condition too."""
    model = subject(data, "caption", "says", system="cvae")
    headings = [line for line in texts.translations(model) if line.startswith("##")]
    assert headings == ["## says → caption, at the mean of q(z | says)"]
    written = table(texts.translations(model), headings[0])
    assert [what for _, what, _ in written[:3]] == ["**says**", "caption, real", "caption, likeliest"]
    with_features = texts.captions(subject(data, "numbers", "caption", system="cvae"))
    assert with_features == [], "features given captions, and not the other way round"


def test_what_markdown_would_take_for_its_own_is_escaped() -> None:
    assert cells(texts._line("a | b", "<i>x</i>", "two\nlines")) == ["a \\| b", "&lt;i>x&lt;/i>", "two lines"]
