"""pairstream generate RUN [--given image=photo.png label=3] [--want attributes,edges] [-n 8] [--sample] [--json]

Asks a trained model: any of its modalities in, any others out; with nothing given, samples of the prior. RUN is a run's
directory or its name under runs/, whose best checkpoint answers, or a packaged model's folder (RUN/model). A picture is
a file of any size and mode, a text stands as it is or in @FILE, a class is a number or a name, attributes are names or
0,1,1, features a .npy file. Leaves grid.png (where pictures were made), samples.txt (what texts, classes and attributes
read like) and samples.jsonl (every value, in the cells of the model in MLflow) in --out.

Each of the -n is made of a z of its own. The same seed makes the same, and of 8 the first 4 are those of 4.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from infra.errors import UserError
from jobs.arguments import RUNS, closing_json, open_model, parse, split_list, split_name
from pipeline.settings import check

if TYPE_CHECKING:
    import numpy as np

    from pipeline.packaging import Packaged

MOST, SHOWN = 10_000, 20
"""That are made at once, and lines that are printed; samples.txt has them all."""
Given = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True)
class Options:
    given: Given = ()
    """What is there, each as NAME=VALUE: image=photo.png label=3 caption="a red bird" (or caption=@FILE)."""
    want: str = ""
    """What is to be made, as in attributes,edges; all that is not given where not said."""
    number: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 8
    """How many, each of another z; at most 10,000."""
    sample: bool = False
    """Samples of p(x | z), each pixel and each word drawn; otherwise its means, the likeliest class and words."""
    temperature: float = 1.0
    """Multiplies the standard deviation of q(z | what is given), or of the prior: z = μ + temperature σ ε; 0 takes the
    mean. Of a mixture it is that of the component, which is drawn as ever. What --sample draws it does not change."""
    seed: int = 0
    """Of z, and of --sample."""
    out: Path | None = None
    """Directory for what is made; runs/generated-DATE-TIME where not given."""
    json: bool = False
    """Print one JSON object as the last line."""

    def __post_init__(self) -> None:
        check(1 <= self.number <= MOST, f"-n {self.number}: choose 1 to {MOST:,}")
        good = math.isfinite(self.temperature) and self.temperature >= 0
        check(good, f"--temperature {self.temperature}: choose 0 (the mean of z) or more; 1 is the model's own")


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        parse("generate RUN", Options, arguments, about=__doc__)
    name, rest = split_name("generate", "run", arguments, ["a directory", "a name under runs/", "RUN/model"])
    options = parse("generate RUN", Options, rest, about=__doc__)
    from pipeline.asking import asked, check_names
    from pipeline.generating import generate
    from pipeline.pictures.generated import lines, sheet

    packaged = open_model(name)
    given, notes = asked([word for some in options.given for word in some], packaged)
    for note in notes:
        print(note)
    names = list(packaged.run.modalities)
    wanted = split_list(options.want) or [one for one in names if one not in given]
    check(bool(wanted), "everything is given: name with --want what the model shall make of it")
    check_names(wanted, names, "--want")
    made = generate(
        packaged.model, given, wanted, options.number,
        sample=options.sample, temperature=options.temperature, seed=options.seed,
    )  # fmt: skip
    page, texts = sheet(packaged, given, made), lines(packaged, made)
    out = options.out or RUNS / f"generated-{datetime.now():%Y%m%d-%H%M%S}"
    files = {"samples.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _cells(packaged, made))}
    if texts:
        files["samples.txt"] = "".join(f"{text}\n" for text in texts)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (out / file).write_text(content, encoding="utf-8")
        if page:
            page.save(out / "grid.png")
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another --out") from None
    for number, text in enumerate(texts[:SHOWN], 1):
        print(f"{number}  {text}")
    if len(texts) > SHOWN:
        print(f"… {len(texts):,} in all")
    written = [out / file for file in [*files, *(["grid.png"] if page else [])]]
    print("written: " + ", ".join(map(str, written)))
    if options.json:
        told = {"given": sorted(given), "want": wanted, "number": options.number, "converted": notes, "out": out}
        closing_json(told | {"files": written, "texts": texts})
    return 0


def _cells(packaged: Packaged, made: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """What was made, in the forms of `pipeline/forms.py`."""
    cells = {name: [packaged.forms[name].write(value) for value in values] for name, values in made.items()}
    return [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
