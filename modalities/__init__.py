"""Modalities: what one kind of observation is. Knows torch and itself only.

A new kind is a file with a frozen dataclass that fills in `spec.Modality`, and a name in `AnyModality`.
"""

from modalities.attributes import Attributes
from modalities.image import Image
from modalities.label import Label
from modalities.spec import Modality
from modalities.text import Text

AnyModality = Image | Label | Attributes | Text

__all__ = ["AnyModality", "Attributes", "Image", "Label", "Modality", "Text"]
