"""The 68 landmarks of a face, by dlib (King, 2009), and the mask that OpenCV draws of them (MVAE section 6).

Which parts are filled and which drawn as a line is not in the paper. It is here as in the authors' published code:
mouth, brows, eyes and nose as the convex hulls of their landmarks, the jaw as an open line, all white on black.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from infra.errors import UserError
from pipeline.corpora.official import needed

EXTRA = "landmarks"
SHORT = 178
"""Pixels of the short side to which a picture is scaled before dlib sees it: that of CelebA's aligned pictures. dlib
looks for faces of 80 pixels and more, and finds next to none in pictures of half the size."""
JAW = slice(0, 17)
PARTS = (slice(17, 22), slice(22, 27), slice(27, 36), slice(36, 42), slice(42, 48), slice(48, 68))
"""Brows, nose, eyes and mouth, by the numbers of their landmarks (Sagonas et al., 2013, from 0)."""
SHIFT = 4
"""Bits of a pixel's fraction in the coordinates that OpenCV takes."""


def find(picture: np.ndarray) -> np.ndarray | None:
    """The landmarks (68, 2) of the face of which dlib is surest, or None where it finds no face.

    `picture` is (height, width, 3), red first. A landmark is (across, down) in its pixels, (0, 0) the middle of the
    first. Raises UserError where dlib or its model is not installed.
    """
    import cv2

    detector, predictor = _dlib()
    height, width = picture.shape[:2]
    scale = SHORT / min(height, width)
    size = (round(width * scale), round(height * scale))
    grey = cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_CUBIC)
    faces = detector(grey, 0) or detector(grey, 1)  # at twice the size takes four times as long: only where it has to
    if not faces:
        return None
    points = [(point.x, point.y) for point in predictor(grey, faces[0]).parts()]
    return (np.array(points) + 0.5) * (width, height) / size - 0.5


def drawn(landmarks: np.ndarray, side: int) -> np.ndarray:
    """The mask (side, side), 0 or 1, of landmarks (68, 2) in its own pixels."""
    import cv2

    mask = np.zeros((side, side), np.uint8)
    points = np.round(landmarks * 2**SHIFT).astype(np.int32)
    cv2.polylines(mask, [points[JAW]], isClosed=False, color=1, shift=SHIFT)
    for part in PARTS:
        cv2.fillConvexPoly(mask, cv2.convexHull(points[part]), color=1, shift=SHIFT)
    return mask


@lru_cache
def _dlib() -> tuple[Any, Any]:
    """The detector of faces and the predictor of their landmarks."""
    dlib = needed("dlib", EXTRA)
    package = find_spec("face_recognition_models")  # not imported: that takes pkg_resources, which may be missing
    if package is None or package.origin is None:
        raise UserError(f"this corpus needs face_recognition_models: pip install 'pairstream[{EXTRA}]'")
    model = Path(package.origin).parent / "models" / "shape_predictor_68_face_landmarks.dat"
    return dlib.get_frontal_face_detector(), dlib.shape_predictor(str(model))
