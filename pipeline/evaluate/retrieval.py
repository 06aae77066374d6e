"""Which known observation is nearest: a picture for generated features (MMVAE section 4.3, SVAE section 4)."""

from __future__ import annotations

import numpy as np
from sklearn.neighbors import NearestNeighbors


def nearest(features: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Which row of `training` (N, F) is nearest by Euclidean distance to each row of `features` (R, F): (R,)."""
    index: np.ndarray = NearestNeighbors(n_neighbors=1).fit(training).kneighbors(features, return_distance=False)[:, 0]
    return index
