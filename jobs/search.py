"""pairstream search RUN --index FILE.parquet --given caption="a red bird" [-k 10] [--data DIR] [--json]

The samples nearest to what is given, by the means of their posteriors, in a file that `pairstream embed RUN` wrote: a
caption finds pictures. --given is that of `pairstream generate`. With --data, the directory that was embedded, the
samples that were found are drawn, the nearest at the left.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jobs.arguments import closing_json, open_model, parse, split_name
from jobs.generate import Given
from pipeline.settings import check


@dataclass(frozen=True)
class Options:
    index: Path
    """The Parquet file that `pairstream embed RUN` wrote."""
    given: Given = ()
    """What is looked for, each as NAME=VALUE: image=photo.png label=3 caption="a red bird" (or caption=@FILE)."""
    neighbours: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """How many of the nearest."""
    metric: Literal["cosine", "euclidean"] = "cosine"
    """Distance of two means: 1 - the cosine of their angle, or Euclid's. Little information draws a mean to the origin,
    which changes no angle."""
    data: str | None = None
    """The data directory that the index is of: the samples that are found are drawn."""
    sheet: Path = Path("found.png")
    """With --data: the picture (.png, .pdf or .svg)."""
    json: bool = False
    """Print one JSON object as the last line."""

    def __post_init__(self) -> None:
        check(self.neighbours >= 1, f"-k {self.neighbours}: choose 1 or more")


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        parse("search RUN", Options, arguments, about=__doc__)
    name, rest = split_name("search", "run", arguments, ["a directory", "a name under runs/", "RUN/model"])
    options = parse("search RUN", Options, rest, about=__doc__)
    from pipeline import sheet
    from pipeline.asking import asked
    from pipeline.manifest import open_manifest
    from pipeline.searching import draw, nearest, open_index, vector

    if options.data is not None:
        sheet.check(options.sheet, options.neighbours)
    packaged = open_model(name)
    given, notes = asked([word for some in options.given for word in some], packaged)
    for note in notes:
        print(note)
    check(bool(given), "nothing is looked for: give --given NAME=VALUE")
    index = open_index(options.index, packaged)
    (found,) = nearest(index, vector(packaged.model, given)[None], options.neighbours, options.metric)
    wide = max(len(one.key) for one in found)
    for place, one in enumerate(found, 1):
        print(f"{place:>3}  {one.key:<{wide}}  {one.split:<5}  {one.distance:.4f}")
    if options.data is not None:
        draw(packaged, index, open_manifest(options.data), found, options.sheet)
        print(f"drawn: {options.sheet}")
    if options.json:
        drawn = options.sheet if options.data is not None else None
        closing_json({"found": found, "metric": options.metric, "converted": notes, "sheet": drawn})
    return 0
