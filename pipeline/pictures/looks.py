"""How values look: image modalities as pictures, labels and texts as words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modalities import Attributes, Image, Label, Modality, Sentences, Text
from modalities.text import END, Tokens
from pipeline.config import Run
from pipeline.description import readers
from pipeline.evaluate.subject import Subject
from pipeline.pictures.made import Value, Values

PALE = np.array([0.90, 0.92, 0.93])
"""Where a part of a picture is missing."""


@dataclass(frozen=True, eq=False)
class Face:
    """Image modalities of a run that are shown as one picture, below each other."""

    images: Mapping[str, Image]

    @property
    def names(self) -> list[str]:
        return list(self.images)

    @property
    def title(self) -> str:
        """top + bottom"""
        return " + ".join(self.images)

    @property
    def longest(self) -> int:
        """Pixels of the longer side."""
        return max(sum(image.height for image in self.images.values()), *(i.width for i in self.images.values()))

    def pictures(self, values: Values) -> list[Value]:
        """(Y, X, 3) from 0 to 1 of each row, pale where a part of it is missing; None where all is."""
        return [self._picture(parts) for parts in zip(*(values[name] for name in self.images), strict=True)]

    def _picture(self, parts: Sequence[Value]) -> Value:
        if all(part is None for part in parts):
            return None
        drawn = [coloured(image, part) for image, part in zip(self.images.values(), parts, strict=True)]
        width = max(part.shape[1] for part in drawn)
        return np.concatenate([np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=1) for p in drawn])


def coloured(image: Image, value: Value) -> np.ndarray:
    """(Y, X, 3) of a grey (Y, X) or a coloured (3, Y, X) value; pale where there is none."""
    if value is None:
        return np.broadcast_to(PALE, (image.height, image.width, 3))
    return np.stack([value] * 3, axis=2) if value.ndim == 2 else np.moveaxis(value, 0, 2)


def faces(run: Run) -> list[Face]:
    """A run's pictures: the parts of one (`examine.parts`) together, every other image modality on its own."""
    images = {name: modality for name, modality in run.modalities.items() if isinstance(modality, Image)}
    together = [Face({name: images[name] for name in run.examine.parts})] if run.examine.parts else []
    return together + [Face({name: image}) for name, image in images.items() if name not in run.examine.parts]


def titled(subject: Subject, text: str, data: bool = False) -> str:
    """A sheet's title: which model it is of, what it shows and, if data are shown, of which split."""
    run = subject.run
    return f"{run.recipe}, {run.model.system}: {text}" + (f" ({subject.split})" if data else "")


@dataclass(frozen=True)
class Words:
    """What values read like, by the names and tokenizers beside the shards, or by their numbers."""

    modalities: Mapping[str, Modality]
    say: Mapping[str, Callable[[np.ndarray], str]]

    @classmethod
    def of(cls, subject: Subject) -> Words:
        """The words of a run's data."""
        return cls(subject.run.modalities, readers(subject.manifest, subject.run.modalities))

    def value(self, name: str, value: Value) -> str:
        """A class, a text, or the attributes that apply (of one its modality's name); "" of nothing."""
        modality = self.modalities[name]
        if value is None:
            return ""
        if isinstance(modality, Attributes):
            applies = value > 0.5
            if modality.count == 1:
                return name if applies.any() else ""
            return self.say[name](applies) if name in self.say else ", ".join(map(str, np.flatnonzero(applies)))
        if name in self.say:
            return self.say[name](value) or "“”"
        return " ".join(map(str, value[value != END])) or "“”" if isinstance(modality, Tokens) else str(value)

    def short(self, values: Values, row: int) -> str:
        """Of labels and short texts, for below a picture."""
        return " ".join(filter(None, (self.value(name, values[name][row]) for name in self._of(values, Label | Text))))

    def differs(self, values: Values, data: Values, row: int) -> bool:
        """Whether a label or short text is another one than the data's."""
        pairs = [(values[name][row], data[name][row]) for name in self._of(values, Label | Text)]
        return any(made is not None and real is not None and not np.array_equal(made, real) for made, real in pairs)

    def long(self, values: Values, row: int) -> str:
        """Of sentences and attributes, for a line of their own."""
        told = {name: self.value(name, values[name][row]) for name in self._of(values, Sentences | Attributes)}
        return "; ".join(text if text == name else f"{name}: {text}" for name, text in told.items() if text)

    def _of(self, values: Values, kind: object) -> list[str]:
        return [name for name in values if isinstance(self.modalities[name], kind)]  # type: ignore[arg-type]
