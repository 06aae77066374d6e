"""A user's own files in all forms that they may have, and what is read back of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.corpora.files import FILES
from pipeline.description import described
from pipeline.manifest import Manifest, open_manifest
from pipeline.shards import Reader
from pipeline.tokenizers import Tokenizer
from pipeline.writing import Written, write
from pipeline.writing.merging import SKIPPED
from tests.pipeline.tiny import read

ALONE = '[data]\ntable = "t.csv"\nval = 0\ntest = 0\n[modalities.label]\nkind = "label"\n'
TEXTS = ["a cat sleeps", "the dog runs home", "Ein Hund, größer als die Katze", "two cats and two dogs", "a dog"]
TABLE = """
[data]
table = "{table}"
key = "id"
val = 0.25
test = 0.25

[modalities.photo]
kind = "image"
size = [4, 4]

[modalities.caption]
kind = "sentences"
vocabulary = 400
length = 40

[modalities.label]
kind = "label"
"""


def grey(number: int) -> np.ndarray:
    """A picture of one level, which tells its number."""
    return np.full((8, 8, 3), 3 * number, np.uint8)


def picture(pixels: np.ndarray, form: str = "png", **options: Any) -> bytes:
    """The bytes of a file of these pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


PNG, JPEG = picture(grey(3)), picture(grey(3), "jpeg")
NPY = io.BytesIO()
np.save(NPY, np.arange(3.0))


def rows(count: int = 24) -> list[dict[str, Any]]:
    """Samples of which row n has its photo, caption and label where bits 0, 1 and 2 of n + 1 are set."""
    return [
        {
            "id": f"s/{number}",
            "photo": picture(grey(number)) if (number + 1) & 1 else None,
            "caption": TEXTS[number % len(TEXTS)] if (number + 1) & 2 else None,
            "label": ("dog", "cat", "eel")[number % 3] if (number + 1) & 4 else None,
        }
        for number in range(count)
    ]


def expected(samples: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What is to be read back of them."""
    result = {}
    for number, row in enumerate(samples):
        values: dict[str, Any] = {}
        if row["photo"]:
            values["photo"] = np.full((3, 4, 4), 3 * number / 255, np.float32).tolist()
        if row["caption"]:
            values["caption"] = row["caption"]
        if row["label"]:
            values["label"] = ["cat", "dog", "eel"].index(row["label"])
        if values:
            result[row["id"]] = values
    return result


def write_csv(path: Path, samples: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(samples[0]))
        writer.writeheader()
        writer.writerows(samples)


def with_paths(folder: Path, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their photos as files."""
    (folder / "photos").mkdir()
    result = []
    for number, row in enumerate(samples):
        if row["photo"]:
            (folder / "photos" / f"{number}.png").write_bytes(row["photo"])
        result.append({**row, "photo": f"photos/{number}.png" if row["photo"] else ""})
    return result


def make_csv(folder: Path, samples: list[dict[str, Any]]) -> str:
    write_csv(folder / "train.csv", with_paths(folder, samples))
    return TABLE.format(table="train.csv")


def make_parquet(folder: Path, samples: list[dict[str, Any]]) -> str:
    """Two files, several row groups, pictures within."""
    for part, some in enumerate((samples[:7], samples[7:])):
        pq.write_table(pa.Table.from_pylist(some), folder / f"part-{part}.parquet", row_group_size=5)
    return TABLE.format(table="part-*.parquet")


def save_to_disk(folder: Path, samples: list[dict[str, Any]], classes: list[str], files: int = 2) -> None:
    """What `datasets.Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    for name, start in zip(names, range(0, len(samples), -(-len(samples) // files)), strict=True):
        mine = [
            {
                **row,
                "photo": {"bytes": row["photo"], "path": None},
                "label": -1 if row["label"] is None else classes.index(row["label"]),
            }
            for row in samples[start : start - (-len(samples) // files)]
        ]
        schema = pa.schema(
            {"id": pa.string(), "photo": pa.struct({"bytes": pa.binary(), "path": pa.string()})}
            | {"caption": pa.string(), "label": pa.int64()}
        )
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
            stream.write_table(pa.Table.from_pylist(mine, schema), max_chunksize=3)
    features = {
        "id": {"dtype": "string", "_type": "Value"}, "photo": {"_type": "Image"},
        "caption": {"dtype": "string", "_type": "Value"}, "label": {"names": classes, "_type": "ClassLabel"},
    }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    state = {"_data_files": [{"filename": name} for name in names], "_format_columns": None, "_split": None}
    (folder / "state.json").write_text(json.dumps(state))


def make_dataset(folder: Path, samples: list[dict[str, Any]]) -> str:
    save_to_disk(folder / "saved", samples, ["cat", "dog", "eel"])
    return TABLE.replace('table = "{table}"', 'dataset = "saved"')


def make_folder(folder: Path, samples: list[dict[str, Any]]) -> str:
    for row in samples:
        place = folder / "raw" / row["id"]
        place.parent.mkdir(parents=True, exist_ok=True)
        for name, ending, value in (
            ("photo", "png", row["photo"]),
            ("caption", "txt", row["caption"] and row["caption"].encode()),
            ("label", "cls", row["label"] and row["label"].encode()),
        ):
            if value:
                place.with_name(f"{place.name}.{name}.{ending}").write_bytes(value)
    return TABLE.replace('table = "{table}"\nkey = "id"', 'folder = "raw"')


def prepare(folder: Path, toml: str, out: Path | None = None, workers: int = 1, shard: int = 2**26) -> Written:
    """Prepare what lies in a folder, as `toml` says."""
    (folder / "pairstream.toml").write_text(toml)
    assert FILES.opened
    corpus = FILES.opened(folder)
    written = write(out or folder / "out", corpus, shard, workers, source=folder)
    return replace(written, notes=tuple(corpus.notes(folder)))


def skipped(out: Path) -> dict[str, str]:
    """Reasons by key."""
    lines = (out / SKIPPED).read_text().splitlines() if (out / SKIPPED).exists() else []
    return {entry["key"]: entry["reason"] for entry in map(json.loads, lines)}


def held(out: Path) -> dict[str, dict[str, Any]]:
    """All values by key; sentences as texts."""
    manifest = open_manifest(out)
    modalities, reader = described(manifest), Reader([manifest])
    names = list(manifest.modalities)
    models = {name: Tokenizer(manifest.file(f"{name}.model")) for name in names if f"{name}.model" in manifest.files}
    result: dict[str, dict[str, Any]] = {}
    for row in range(len(manifest)):
        values = result[manifest.key(row)] = {}
        for member in range(int(manifest.first[row]), int(manifest.first[row + 1])):
            name = names[int(manifest.modality[member])]
            value = modalities[name].decode([read(reader, member)])
            values[name] = models[name].decode(value)[0] if name in models else value[0].tolist()
    return result


def splits(manifest: Manifest) -> dict[str, list[str]]:
    return {name: manifest.keys(rows) for name, rows in manifest.splits.items()}
