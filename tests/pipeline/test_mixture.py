"""Data directories mixed into one stream: monolingual text beside pairs, with keys that mean another thing there."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.checkpoint import Checkpoints
from infra.distributed import World
from infra.errors import UserError
from modalities import Image, Label
from pipeline.collate import Collator
from pipeline.config import Run, from_dict, override, to_dict
from pipeline.corpora.corpus import Entry
from pipeline.course import last_checkpoint
from pipeline.data import training_stream
from pipeline.manifest import BLOCK, Manifest, open_manifest
from pipeline.pairing import mixture, view
from pipeline.settings import Engine, Model, Pairing, Tracking, Training
from pipeline.stream import Refs, Share, Stream
from pipeline.train import train
from pipeline.writing import write
from tests.pipeline.tiny import LABEL, MODALITIES, NAMES, bare, fits, held, make, one
from tests.pipeline.tiny import given as corpus_of

HERE, THERE = 40, 30
"""Training samples of the two directories; the first of both have the same keys."""


def elsewhere(key: str, name: str) -> list[np.ndarray] | np.ndarray:
    """What the other directory has of a modality under this key: never what is here."""
    number = int(key.split("/")[1])
    if name == "tag":
        return [np.asarray(500 + 4 * number + instance) for instance in range(1 + number % 3)]
    return np.asarray((number + 5) % 10)


def found_there(number: int) -> list[str]:
    """The other directory's samples have a label, a tag, or both."""
    return [["label"], ["tag"], ["tag", "label"]][number % 3]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make(tmp_path_factory.mktemp("mixture") / "here", HERE, shard_bytes=16_000)


def make_there(out: Path) -> Manifest:
    """No image, and the two modalities in another order than here."""
    keys = [f"train/{number:04d}" for number in range(THERE)]
    rows = [Entry(key, "train", {name: elsewhere(key, name) for name in found_there(i)}) for i, key in enumerate(keys)]
    write(out, corpus_of("there", {name: MODALITIES[name] for name in ("label", "tag")}, rows), 16_000, 1)
    return open_manifest(out)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_there(tmp_path_factory.mktemp("mixture") / "there")


def mixed(manifests: list[Manifest], shares: list[float], batch: int, pairing: Pairing | None = None) -> Stream:
    return Stream(mixture(manifests, shares, NAMES, pairing or Pairing(), 0, batch), MODALITIES, 0)


def rows_among(refs: Refs, manifest: Manifest, *before: Manifest) -> Counter[tuple[int, ...]]:
    """How often each (sample, *members) of a manifest comes, numbered as in it; others may be numbered before it."""
    sample, member = (sum(len(part) for part in parts) for parts in (before, [one.size for one in before]))
    mine = np.isin(refs.sample_B, range(sample, sample + len(manifest)))
    members = refs.member_BM[mine]
    rows = np.column_stack([refs.sample_B[mine] - sample, np.where(members >= 0, members - member, -1)])
    return Counter(map(tuple, rows.tolist()))


def first(stream: Stream, steps: int) -> Refs:
    """The rows of so many steps."""
    return stream.rows(np.arange(steps * stream.batch))


# Rows per step


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=3).filter(lambda percent: sum(percent) < 100), st.integers(1, 300))
def test_rows_of_a_step_are_the_shares_by_largest_remainder(
    tmp_path_factory: pytest.TempPathFactory, percent: list[int], batch: int
) -> None:
    """In every step exactly. Refused is what comes to no row, and only that."""
    percent = [100 - sum(percent), *percent]
    exact = [divmod(one * batch, 100) for one in percent]  # in whole numbers: rows, and hundredths
    left = batch - sum(rows for rows, _ in exact)
    base = tmp_path_factory.getbasetemp() / "shares"
    manifests = [bare(base / str(number), np.ones((5 + number, 1), int)) for number in range(len(percent))]
    try:
        views = mixture(manifests, [one / 100 for one in percent], ["m0"], Pairing(), 0, batch)
    except UserError as error:
        said = re.fullmatch(
            r"mix: a share of (\S+) for .*shares/(\d) is not one row of train.batch = (\d+): .*", str(error)
        )
        assert said
        number = int(said[2])
        assert (said[1], said[3]) == (f"{percent[number] / 100:g}", str(batch))
        rows, rest = exact[number]
        assert rows == 0
        assert sum(other >= rest for _, other in exact) > left
        return
    stream, ends = Stream(views, {"m0": Label(2)}, 0), np.cumsum([len(manifest) for manifest in manifests])
    counts = [one.rows for one in views]
    assert sum(counts) == stream.batch == batch
    assert min(counts) >= 1
    up = [rest for count, (rows, rest) in zip(counts, exact, strict=True) if count == rows + 1]
    down = [rest for count, (rows, rest) in zip(counts, exact, strict=True) if count == rows]
    assert len(up) + len(down) == len(counts)
    assert not up or not down or min(up) >= max(down)
    for step in (0, 1, 10**6):
        source = np.searchsorted(ends, stream.global_batch(step).sample_B, side="right")
        assert np.bincount(source, minlength=len(counts)).tolist() == counts


@pytest.mark.parametrize(
    ("shares", "batch", "counts"),
    [
        ([0.8, 0.2], 100, [80, 20]),
        ([1 - 0.2 - 0.1, 0.2, 0.1], 10, [7, 2, 1]),
        ([0.7, 0.3], 8, [6, 2]),  # 5.6 and 2.4
        ([0.5, 0.25, 0.25], 7, [3, 2, 2]),  # 3.5, 1.75 and 1.75
    ],
)
def test_rows_of_a_step_by_hand(
    here: Manifest, there: Manifest, shares: list[float], batch: int, counts: list[int]
) -> None:
    assert [
        one.rows for one in mixture([here, there, there][: len(shares)], shares, NAMES, Pairing(), 0, batch)
    ] == counts


# Order


def test_the_order_of_a_directory_does_not_hang_on_what_is_mixed_with_it(here: Manifest, there: Manifest) -> None:
    """Only how many of its rows a step takes: step by step alike beside other data, and the same rows in the same
    order where a step takes fewer. What is mixed in comes as it would come alone."""
    pairing = Pairing(view="split", fraction=0.3)
    alone = Stream([view(here, "train", NAMES, pairing, 0, 18)], MODALITIES, 0)
    for shares, batch in (([0.75, 0.25], 24), ([0.6, 0.2, 0.2], 30)):
        stream = mixed([here, there, there][: len(shares)], shares, batch, pairing)
        for step in (0, 1, 2, 50):
            assert rows_among(stream.global_batch(step), here) == rows_among(alone.global_batch(step), here)
    fewer = mixed([here, there], [0.25, 0.75], 24, pairing)  # six rows a step
    for steps in (1, 2, 10):
        assert rows_among(first(fewer, 3 * steps), here) == rows_among(first(alone, steps), here)
    monolingual = Stream([view(there, "train", NAMES, Pairing(), 0, 18, partly=True)], MODALITIES, 0)
    for step in (0, 1, 20):
        beside = rows_among(fewer.global_batch(step), there, here)
        assert sum(beside.values()) == 18
        assert beside == rows_among(monolingual.global_batch(step), there)


def test_each_source_s_samples_come_once_per_its_own_pass(here: Manifest, there: Manifest) -> None:
    """35 samples here by seven a step, 30 there by five: passes end at steps of their own."""
    stream = mixed([here, there], [0.6, 0.4], 12)
    assert [one.rows for one in stream.views] == [7, 5]
    samples = first(stream, 90).sample_B
    for steps, passes, source in ((5, 1, 0), (6, 1, 1), (30, 6, 0), (30, 5, 1)):
        own = range(HERE) if source == 0 else range(len(here), len(here) + THERE)
        counts = Counter(one for one in samples[: steps * 12].tolist() if one in own)
        shows = [sample for sample in own if source == 1 or held(sample)]
        assert counts == dict.fromkeys(shows, passes)


def test_instances_take_turns_by_the_passes_of_their_own_source(here: Manifest, there: Manifest) -> None:
    stream = mixed([here, there], [0.6, 0.4], 12)
    tags = first(stream, 6 * 6).member_BM[:, NAMES.index("tag")] - len(here.size)  # six passes there
    counts = Counter(tags[tags >= 0].tolist())
    tag = list(there.modalities).index("tag")
    for sample in range(THERE):
        mine = [m for m in range(there.first[sample], there.first[sample + 1]) if there.modality[m] == tag]
        assert [counts[member] for member in mine] == [6 // len(mine)] * len(mine) if mine else True
    assert sum(counts.values()) == 6 * 20


def test_ranks_get_the_like_of_each_source(here: Manifest, there: Manifest) -> None:
    half = Share(mixed([here, there], [0.5, 0.5], 40), 0, 2)
    first_half = [int((half(step).sample_B < len(here)).sum()) for step in range(200)]
    assert 9.5 < np.mean(first_half) < 10.5
    assert 3 < min(first_half) < max(first_half) < 17


# Values and damage


def test_values_are_those_of_the_directory_they_are_from(here: Manifest, there: Manifest) -> None:
    """Keys and members are numbered through: equal keys are told apart, and no value is the other directory's."""
    stream = mixed([here, there], [0.5, 0.5], 24)
    collate, seen = Collator(stream.manifests, MODALITIES), Counter[tuple[int, str, str]]()
    for step in range(12):
        refs = stream.global_batch(step)
        batch = collate(refs)
        assert batch.weight_B.tolist() == [1.0] * 24
        source = (refs.sample_B >= len(here)).astype(int)
        for place, key in enumerate(batch.keys):
            number = int(key.split("/")[1])
            assert number == refs.sample_B[place] - source[place] * len(here)
            expected = held(number) if source[place] == 0 else found_there(number)
            assert {n for n, p in zip(NAMES, batch.present_BM[place], strict=True) if p} == set(expected)
        for name in NAMES:
            for place, found in zip(batch.rows_of[name].tolist(), batch.values[name].numpy(), strict=True):
                key = batch.keys[place]
                if source[place] == 0:
                    assert fits(key, name, found)
                else:
                    assert found in np.array(elsewhere(key, name))
                seen[int(source[place]), key, name] += 1
    assert len(seen) == sum(len(held(i)) for i in range(HERE)) + sum(len(found_there(i)) for i in range(THERE))


def ruin(manifest: Manifest, member: int) -> dict[str, str | int]:
    """Damage one member; returns what the quarantine file has to say of it."""
    shard, start = manifest.shards[int(manifest.shard[member])].name, int(manifest.block[member]) * BLOCK
    path = Path(manifest.directory) / shard
    data = bytearray(path.read_bytes())
    data[start] ^= 1
    path.write_bytes(data)
    owner = int(np.searchsorted(manifest.first, member, side="right")) - 1
    kind = list(manifest.modalities)[int(manifest.modality[member])]
    return {"shard": shard, "key": manifest.key(owner), "modality": kind, "offset": start}


def test_damage_is_quarantined_under_the_path_of_its_directory(tmp_path: Path) -> None:
    """The row weighs nothing; the row of the same key in the other directory is whole."""
    here, there = make(tmp_path / "here", HERE), make_there(tmp_path / "there")
    entries = [ruin(here, 0), ruin(there, int(there.first[2]))]
    entries[1]["shard"] = f"{tmp_path}/there/{entries[1]['shard']}"
    stream, file = mixed([here, there], [0.5, 0.5], 24), tmp_path / "quarantine.jsonl"
    collate, hurt = Collator(stream.manifests, MODALITIES, file, budget=1.0), Counter[tuple[int, str, float]]()
    for step in range(10):
        refs = stream.global_batch(step)
        batch = collate(refs)
        for sample, key, weight in zip(refs.sample_B.tolist(), batch.keys, batch.weight_B.tolist(), strict=True):
            if key in ("train/0000", "train/0002"):
                hurt[int(sample >= len(here)), key, weight] += 1
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    found = sorted(({name: line[name] for name in entries[0]} for line in lines), key=str)
    assert found == sorted(entries, key=str)
    assert {line["reason"] for line in lines} == {"checksum differs"}
    assert set(hurt) == {(0, "train/0000", 0.0), (1, "train/0000", 1.0), (0, "train/0002", 1.0), (1, "train/0002", 0.0)}


def test_the_sentence_over_the_budget_names_the_directory_that_is_damaged(here: Manifest, tmp_path: Path) -> None:
    hurt = make_there(tmp_path / "hurt")
    ruin(hurt, 0)
    stream = mixed([here, hurt], [0.5, 0.5], 24)
    place = re.escape(hurt.directory)
    with pytest.raises(UserError, match=rf"^{place}: \d+ damaged .*`pairstream inspect {place} --verify`"):
        list(map(Collator(stream.manifests, MODALITIES), map(stream.global_batch, range(10))))


# Configuration


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        (["there"], "'there' is not DIRECTORY=SHARE with a share between 0 and 1, as in"),
        (["=0.5"], "'=0.5' is not DIRECTORY=SHARE"),
        (["there="], "'there=' is not"),
        (["there=0.2", "more=all"], "'more=all' is not"),
        (["there=0"], "'there=0' is not"),
        (["there=1"], "'there=1' is not"),
        (["there=-0.1"], "'there=-0.1' is not"),
        (["there=1.5"], "'there=1.5' is not"),
        (["there=nan"], "'there=nan' is not"),
        (["there=0.2 "], "'there=0.2 ' is not"),
        (["there=20%"], "'there=20%' is not"),
        (["there=0.5", "more=0.5"], "mix: shares of 1 in all leave nothing for some/where"),
        (["there=0.75", "more=0.5"], "mix: shares of 1.25 in all"),
        ([f"there{number}=0.1" for number in range(10)], "mix: shares of 1 in all leave nothing"),
    ],
)
def test_a_malformed_mix_is_one_sentence(mix: list[str], words: str) -> None:
    values = {"recipe": "toy", "data": "some/where", "modalities": {"label": {"kind": "label", "classes": 3}}}
    for make_one in (
        lambda: from_dict({**values, "mix": mix}),
        lambda: override(from_dict(values), {"mix": mix}),
        lambda: Run("toy", "some/where", {"label": Label(3)}, tuple(mix)),
    ):
        with pytest.raises(UserError) as said:
            make_one()
        assert str(said.value).startswith("mix: ")
        assert words in str(said.value)
        assert "\n" not in str(said.value)


def test_a_mix_is_a_value_like_any_other() -> None:
    run = Run("toy", "some/where", {"label": Label(3)}, ("a=b/c=0.25", "s3://bucket/more=.5"))
    assert run.mixed() == [("a=b/c", 0.25), ("s3://bucket/more", 0.5)]
    assert from_dict(json.loads(json.dumps(to_dict(run)))) == run
    assert override(run, {"mix": ["x=0.1"]}).mixed() == [("x", 0.1)]


# Training


@pytest.fixture(scope="module")
def run(here: Manifest, there: Manifest) -> Run:
    return Run(
        "toy",
        str(here.directory),
        MODALITIES,
        (f"{there.directory}=0.25",),
        model=Model(2),
        train=Training(batch=24, steps=2, validate_every=0, checkpoint_every=0),
        engine=Engine(device="cpu", threads=1),
        tracking=Tracking(enabled=False),
    )


def test_a_run_s_stream_has_its_data_and_what_it_mixes_in(run: Run, here: Manifest, there: Manifest) -> None:
    stream = training_stream(run, here)
    assert [manifest.fingerprint for manifest in stream.manifests] == [here.fingerprint, there.fingerprint]
    expected = mixed([here, there], [0.75, 0.25], 24)
    assert np.array_equal(stream.global_batch(7).member_BM, expected.global_batch(7).member_BM)
    assert stream.describe() == {"declared": 35, "empty": 5, f"{there.directory}: declared": THERE}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modalities": {"image": MODALITIES["image"]}}, "there holds label, tag, none of image"),
        ({"modalities": {**MODALITIES, "label": Image(3, 1)}}, r"there: modality label is .cls of shape \(\)"),
        ({"train": Training(batch=1)}, "a share of 0.25 for .*there is not one row of train.batch = 1"),
        ({"mix": ("no/such/place=0.5",)}, "no/such/place is no directory"),
    ],
)
def test_data_that_cannot_be_mixed_in_is_refused(run: Run, here: Manifest, changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        training_stream(replace(run, **changes), here)


def test_the_same_data_twice_are_refused(run: Run, here: Manifest, tmp_path: Path) -> None:
    """Their orders would be one, and each step hold the same samples of both."""
    copy = make(tmp_path / "copy", HERE, shard_bytes=16_000)
    assert copy.fingerprint == here.fingerprint
    for twice in ([f"{copy.directory}=0.2"], [f"{here.directory}=0.2"]):
        with pytest.raises(UserError, match="holds the same data as another directory of the run"):
            training_stream(override(run, {"mix": twice}), here)


def test_data_without_training_rows_for_the_run_is_refused(run: Run, here: Manifest, tmp_path: Path) -> None:
    write(tmp_path / "val", corpus_of("val", LABEL, [one("a", "val")]))
    with pytest.raises(UserError, match=r"val: no split 'train'; it has val"):
        training_stream(replace(run, mix=(f"{tmp_path}/val=0.5",)), here)
    write(tmp_path / "none", corpus_of("none", LABEL, [Entry("a", "train", {}), one("b", "val")]))
    with pytest.raises(UserError, match=r"none: the view shows no row of image, tag, label"):
        training_stream(replace(run, mix=(f"{tmp_path}/none=0.5",)), here)


def test_a_run_is_not_resumed_with_another_mix(run: Run, here: Manifest, there: Manifest, tmp_path: Path) -> None:
    """Whatever was added, taken away, exchanged or put in another order; the same one is taken up."""
    result = train(run, tmp_path / "run")
    assert (result.status, result.step, result.rows[f"{there.directory}: declared"]) == ("finished", 2, THERE)
    more = make(tmp_path / "more", 9)
    mine, other = f"{there.directory}=0.25", f"{more.directory}=0.25"
    checkpoints, world = Checkpoints(tmp_path / "run" / "checkpoints"), World(0, 1, 0, torch.device("cpu"))

    assert last_checkpoint(checkpoints, training_stream(run, here), world)
    for data, mix, theirs, ours in [
        (here, (), there.fingerprint, "this run has nothing"),
        (here, (other,), there.fingerprint, f"{more.directory} has {more.fingerprint}"),
        (here, (mine, other), "nothing (no such mix)", f"{more.directory} has {more.fingerprint}"),
        (more, (mine,), here.fingerprint, f"{more.directory} has {more.fingerprint}"),
        (there, (f"{here.directory}=0.25",), here.fingerprint, f"{there.directory} has {there.fingerprint}"),
    ]:
        now = training_stream(replace(run, mix=mix, modalities=LABEL), data)
        with pytest.raises(UserError) as said:
            last_checkpoint(checkpoints, now, world)
        assert f"was trained on data with fingerprint {theirs}, {ours}: resume with the data" in str(said.value)
    with pytest.raises(UserError, match="was trained on data with fingerprint"):
        train(replace(run, mix=()), tmp_path / "run", resume=True)
