"""Modalities: what one kind of observation is. Knows torch and itself only.

A new kind is a file with a frozen dataclass that fills in `spec.Modality`, and a name in `AnyModality`.
"""

from modalities.attributes import Attributes
from modalities.features import Features
from modalities.image import Image
from modalities.label import Label
from modalities.sentences import Sentences
from modalities.spec import Modality
from modalities.text import Text

AnyModality = Image | Label | Attributes | Text | Sentences | Features

__all__ = ["AnyModality", "Attributes", "Features", "Image", "Label", "Modality", "Sentences", "Text"]
