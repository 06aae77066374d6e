"""How large the gradients of a model's networks are: which modality moves the model, and which has fallen silent."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipeline.model import MultimodalVAE


def gradient_norms(model: MultimodalVAE) -> dict[str, Tensor]:
    """`gradient/encoder.EXPERT` and `gradient/decoder.MODALITY`: the norm of each network's gradient.

    Scalars in fp32 that stay on the device. The gradients must be whole on this rank: after the backward of a step's
    last micro-batch, at ZeRO stage 0.
    """
    norms = {f"gradient/encoder.{name}": _norm(network.parameters()) for name, network in model.encoders.items()}
    return norms | {f"gradient/decoder.{name}": _norm(network.parameters()) for name, network in model.decoders.items()}


def _norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    parts = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    return torch.linalg.vector_norm(torch.stack(parts))
