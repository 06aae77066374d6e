"""Pictures as the bytes of a file and back, by OpenCV, which lets other threads run while it decodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from modalities.spec import Buffer

Codec = Literal["png", "jpg"]
BYTE = np.dtype(np.uint8)

FRAME: dict[Codec, tuple[bytes, bytes]] = {
    "png": (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"),
    "jpg": (b"\xff\xd8\xff", b"\xff\xd9"),
}
"""How a file begins and ends (PNG specification, sections 5.2 and 11.2.5; JPEG, ITU-T T.81 B.2.1)."""


def encode_picture(pixels: np.ndarray, codec: Codec, quality: int) -> bytes:
    """The file of one picture, uint8 of shape (height, width) or, red first, (height, width, 3).

    `quality` is JPEG's, 1 to 100. Raises ValueError for a picture that the format cannot hold.
    """
    import cv2

    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if codec == "jpg" else []
    try:
        done, data = cv2.imencode(f".{codec}", pixels if pixels.ndim == 2 else pixels[..., ::-1], options)
    except cv2.error as error:
        raise ValueError(f"cannot write this picture as {codec}: {error.err}") from None
    if not done:
        raise ValueError(f"cannot write this picture as {codec}")
    return data.tobytes()


def decode_pictures(members: Sequence[Buffer], shape: tuple[int, ...], codec: Codec) -> np.ndarray:
    """(len(members), *shape) in uint8 from as many files; `shape` is (height, width) or, red first, (height, width, 3).

    Pixels are taken as they are stored: an orientation noted beside them is not applied, and nothing is converted.
    Raises ValueError for bytes that are no whole file of this format, and for a picture of another size, number of
    channels or depth.
    """
    import cv2

    (begin, end), read, unchanged = FRAME[codec], cv2.imdecode, cv2.IMREAD_UNCHANGED
    batch = np.empty((len(members), *shape), BYTE)
    for number, member in enumerate(members):
        data = bytes(member)
        # OpenCV would read other formats too, and may fill up what a JPEG that was cut off lacks.
        if not (data.startswith(begin) and data.endswith(end)):
            raise ValueError(f"expected a whole {codec} file, got {len(data)} other bytes")
        try:
            picture: np.ndarray | None = read(np.frombuffer(data, BYTE), unchanged)
        except cv2.error as error:
            raise ValueError(f"not a readable {codec} file: {error.err}") from None
        if picture is None:
            raise ValueError(f"not a readable {codec} file of {len(data)} bytes")
        if picture.shape != shape or picture.dtype != BYTE:
            raise ValueError(f"expected {_words(shape)} of 8 bits, got {_words(picture.shape)} of {picture.dtype}")
        batch[number] = picture
    return batch if len(shape) == 2 else batch[..., ::-1]  # OpenCV has blue first


def _words(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]} pixels with {shape[2] if len(shape) == 3 else 1} channel(s)"
