"""Modalities: what one kind of observation is. Knows torch and itself only.

A new kind is a file with a frozen dataclass that fills in `spec.Modality`, and a name in `AnyModality`.
"""

from modalities.image import Image
from modalities.label import Label
from modalities.spec import Modality

AnyModality = Image | Label

__all__ = ["AnyModality", "Image", "Label", "Modality"]
