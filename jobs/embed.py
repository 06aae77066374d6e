"""pairstream embed RUN --data DIR --out FILE.parquet [--given image,caption] [--split test] [--json]

The latent vectors of a whole data set, one row a sample, as Parquet: key, split, the modalities that were used, mu and
sigma (mean and standard deviation of q(z | these) in each dimension). RUN is a run's directory or its name under runs/,
whose best checkpoint is taken, or a packaged model's folder (RUN/model). Samples are read and written in batches, so
memory does not grow with the data. The file is whole or not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobs.arguments import closing_json, open_model, parse, split_list, split_name
from jobs.progress import writing_progress


@dataclass(frozen=True)
class Options:
    data: str
    """Directory of prepared shards and their manifest: a path, or a URL (s3://…, https://…)."""
    out: Path
    """The Parquet file."""
    given: str = ""
    """The modalities that the vectors are made of, as in image,caption, where a sample has them; all where not said."""
    split: str = ""
    """The splits to read, as in train,test; all where not said."""
    json: bool = False
    """Print one JSON object as the last line."""


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        parse("embed RUN", Options, arguments, about=__doc__)
    name, rest = split_name("embed", "run", arguments, ["a directory", "a name under runs/", "RUN/model"])
    options = parse("embed RUN", Options, rest, about=__doc__)
    from pipeline.asking import check_names
    from pipeline.embedding import embed
    from pipeline.manifest import open_manifest

    packaged = open_model(name)
    given, splits = split_list(options.given), split_list(options.split)
    check_names(given, list(packaged.run.modalities), "--given")
    with writing_progress(options.out.name) as progress:
        done = embed(packaged, open_manifest(options.data), options.out, given, splits, progress)
    print(f"{done.rows:,} vectors of {packaged.model.latent} dimensions: {options.out}")
    if done.left_out:
        print(f"{done.left_out:,} samples are left out: they have nothing that the model makes a vector of")
    if done.damaged:
        print(f"{done.damaged:,} samples are damaged and left out: pairstream inspect {options.data} names them")
    if options.json:
        told = {"out": options.out, "rows": done.rows, "left_out": done.left_out, "damaged": done.damaged}
        closing_json(told | {"latent": packaged.model.latent, "weights": packaged.weights})
    return 0
