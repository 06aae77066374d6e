"""Caltech-UCSD Birds 200-2011: pictures of birds, ten captions each, and what is typical of their species.

    pairstream prepare cub --source DIR
    pairstream prepare cub-features --source DIR    takes pip install 'pairstream[features]'
    pairstream prepare cub-resnet --source DIR      DIR holds also resnet101*.pth

`cub_files` says what DIR holds. All 11,788 images are samples. A sample has

    image       where there is a picture: 64x64 of the bird. Its bounding box, grown to a square about its middle, moved
                into the picture, and no larger than its short side, which cuts a fifth of the birds at their ends. (The
                papers model no pixels, but features.)
    features    where there is a picture: of the whole of it, as in the papers (MMVAE section 4.3). In cub-features they
                are EfficientNet-Lite0's, in cub-resnet the papers' ResNet-101's (`extractors`); cub has none
    caption     where it has some, all of them: words and signs in small letters, the 1,587 most frequent ones of the
                split train; at most 31 of them and the end
    attributes  always: 312 shares, 0 to 1, in which the annotators of its class's pictures saw an attribute

In a tar whose name ends in _160px.tar pictures were scaled to a long side of 160 pixels, where it was longer; bounding
boxes are taken to be of pictures with a long side of 500. So all but 2 of 2,889 lie in their pictures; yet some of
those were smaller, and about 3 crops in 100 miss the bird.

Each class is divided 80 : 10 : 10 by the hashes of its keys: MMVAE's published code splits by class, which leaves whole
species untrained.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from infra.errors import UserError
from modalities import AnyModality, Features, Image, Sentences
from pipeline.corpora.corpus import Corpus, Entry, of_listing
from pipeline.corpora.cub_files import ATTRIBUTES, Bird, read
from pipeline.corpora.extractors import EXTRACTORS, extract
from pipeline.corpora.official import Picture, divided, pixels
from pipeline.description import model_file

SIDE = 64
WORDS, LENGTH = 1590, 32
"""Tokens of the vocabulary, three special ones among them (MMVAE table 6 d), and of the longest caption (its code)."""
MODALITIES: dict[str, AnyModality] = {
    "image": Image(height=SIDE, width=SIDE, channels=3, codec="jpg", quality=95, network="conv", hidden=(512,)),
    "caption": Sentences(vocabulary=WORDS, length=LENGTH, network="cnn", embedding=256),
    "attributes": Features(count=ATTRIBUTES),
}
LONG = 500
"""Pixels of an official picture's long side."""
SCALED = re.compile(r"_(\d+)px\.tar$")
WORD = re.compile(r"\w+(?:[-']\w+)*|[^\w\s]")


class Raw(NamedTuple):
    """What one sample is made of."""

    picture: Picture | None
    box: tuple[float, ...]
    captions: np.ndarray
    """(captions, 32) tokens."""
    attributes: np.ndarray
    """(312,), the same array for all of a class."""


class Listing(NamedTuple):
    """What the official files hold."""

    entries: list[Entry]
    notes: list[str]
    model: bytes
    """The captions' tokenizer."""


@dataclass(frozen=True)
class Loader:
    """From an entry to its values."""

    extractor: str = ""
    """Whose features are among them; empty for none."""
    weights: str = ""
    """The file of its weights, where they come with no package."""

    def __call__(self, entry: Entry) -> dict[str, np.ndarray | list[np.ndarray]]:
        raw: Raw = entry.source
        values: dict[str, np.ndarray | list[np.ndarray]] = {"attributes": raw.attributes}
        if len(raw.captions):
            values["caption"] = list(raw.captions)
        if raw.picture:
            picture = pixels(raw.picture, entry.key)
            values["image"] = crop(picture, raw.box, _scale(raw.picture, picture))
            if self.extractor:
                values["features"] = extract(self.extractor, self.weights, picture)
        return values


def words(caption: str) -> str:
    """A caption in small letters, its words and signs apart."""
    return " ".join(WORD.findall(caption.lower()))


@lru_cache(maxsize=1)
def _listing(source: Path) -> Listing:
    """All images by key, what the samples have, and what was left out.

    Raises UserError where files are missing, damaged or contradict each other.
    """
    from pipeline.tokenizers import Tokenizer, train

    files = read(source)
    of_class: dict[int, list[str]] = {}
    for bird in files.birds:
        of_class.setdefault(bird.number, []).append(bird.key)
    split = {key: name for keys in of_class.values() for key, name in divided(keys, seed=2011).items()}
    captions = [words(caption) for bird in files.birds for caption in bird.captions]
    model = train((words(c) for b in files.birds if split[b.key] == "train" for c in b.captions), WORDS, kind="word")
    tokens, lost = Tokenizer(model).encode(captions, LENGTH)
    attributes = list((files.attributes / 100).astype(np.float32))

    listed, first = [], 0
    for bird in files.birds:
        mine = tokens[first : first + len(bird.captions)].astype(np.uint16)
        first += len(bird.captions)
        raw = Raw(bird.picture, bird.box, mine, attributes[bird.number - 1])
        listed.append(Entry(bird.key, split[bird.key], raw))
    return Listing(listed, [*_held(files.birds), *files.notes, _cut(lost), SPLIT], model)


entries, notes = of_listing(_listing)


SPLIT = "splits: 80 % train, 10 % val, 10 % test of each class by the hash of the key"


def _held(birds: list[Bird]) -> list[str]:
    """How many samples have what."""
    captioned = sum(bool(bird.captions) for bird in birds)
    both = sum(bool(bird.captions and bird.picture) for bird in birds)
    seen = sum(bool(bird.picture) for bird in birds)
    return [
        f"{both:,} samples have a picture and captions, {seen - both:,} a picture only, {captioned - both:,} captions "
        f"only, {len(birds) - seen - captioned + both:,} neither; all have the attributes of their class"
    ]


def _cut(lost: np.ndarray) -> str:
    return f"{np.count_nonzero(lost):,} of {len(lost):,} captions have more than {LENGTH - 1} words: cut off there"


# Loading


def _scale(picture: Picture, held: np.ndarray) -> float:
    """What a bounding box has to be multiplied by."""
    long, scaled = max(held.shape[:2]), SCALED.search(picture.file)
    return long / LONG if scaled and int(scaled[1]) == long else 1.0


def crop(picture: np.ndarray, box: tuple[float, ...], scale: float = 1.0) -> np.ndarray:
    """The bird (64, 64, 3) in a picture (height, width, 3), by its box (left, top, width, height) times `scale`."""
    import cv2

    height, width = picture.shape[:2]
    left, top, across, down = (scale * length for length in box)
    side = max(1, round(min(max(across, down), height, width)))
    row = round(min(max(top + down / 2 - side / 2, 0), height - side))
    column = round(min(max(left + across / 2 - side / 2, 0), width - side))
    square = picture[row : row + side, column : column + side]
    return cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA if side > SIDE else cv2.INTER_CUBIC)


# The corpora


def _weights(source: Path, extractor: str) -> str:
    """The file of an extractor's weights, or "" where they come with a package."""
    pattern = EXTRACTORS[extractor].weights if extractor else ""
    if not pattern:
        return ""
    files = sorted(source.glob(pattern))
    if len(files) != 1:
        raise UserError(f"{source}: expected one {pattern}, the weights of {extractor}, but it has {len(files)}")
    return str(files[0])


def _opened(corpus: Corpus, extractor: str, source: Path) -> Corpus:
    loader = Loader(extractor, _weights(source, extractor))
    return replace(corpus, load=loader, files={model_file("caption"): _listing(source).model}, opened=None)


def _corpus(name: str, about: str, extractor: str = "") -> Corpus:
    modalities, needs = dict(MODALITIES), NEEDS
    if extractor:
        modalities["features"] = Features(count=EXTRACTORS[extractor].count)
        needs += f" and {EXTRACTORS[extractor].weights}" if EXTRACTORS[extractor].weights else ""
    corpus = Corpus(name, about, modalities, entries, Loader(extractor), needs, notes)
    return replace(corpus, opened=partial(_opened, corpus, extractor))


NEEDS = (
    "images/ or images*.tar, images*.txt, classes.txt, image_class_labels.txt, bounding_boxes.txt, "
    "class_attribute_labels_continuous.txt (each also as .txt.xz), text_c10/ or captions_by_image.json (or .json.xz)"
)
CUB = _corpus("cub", "11,788 birds: 64x64 pictures, captions, attributes of their species")
CUB_FEATURES = _corpus("cub-features", "cub, and EfficientNet-Lite0's features of the pictures", "efficientnet-lite0")
CUB_RESNET = _corpus("cub-resnet", "cub, and ResNet-101's features of the pictures", "resnet101")
