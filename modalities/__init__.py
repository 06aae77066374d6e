"""Modalities: what one kind of observation is. Knows torch and itself only.

A new kind is a file with a frozen dataclass that fills in `spec.Modality`, and a name in `AnyModality`.
"""

from modalities.attributes import Attributes
from modalities.image import Image
from modalities.label import Label
from modalities.spec import Modality

AnyModality = Image | Label | Attributes

__all__ = ["AnyModality", "Attributes", "Image", "Label", "Modality"]
