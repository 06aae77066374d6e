"""ZeRO, DeepSpeed's sharding: its settings, and models in parts (stage 3), of which no rank ever holds the whole."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from infra.distributed import World
from pipeline.config import Run

State = Mapping[str, Tensor]
"""Whole fp32 tensors by name: `model.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`, and `step`."""


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed without its start-up noise and without compiling anything."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("LOCAL_RANK", "0")  # a process without a launcher; DeepSpeed asks for it
    warnings.filterwarnings("ignore", message=".*is deprecated. Please use.*", category=FutureWarning)
    warnings.filterwarnings("ignore", module="deepspeed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    # On CPU DeepSpeed would compile a shared-memory all-reduce at start (a minute, and a compiler); gloo serves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def building(run: Run, world: World) -> AbstractContextManager[None]:
    """Within it a run's model is built for its engine: at ZeRO 3 in parts, a layer is whole while it is made only.
    Collective."""
    if run.engine.zero_stage < 3:
        return nullcontext()
    deepspeed = import_deepspeed(world.device)
    deepspeed.init_distributed(dist_backend=backend_of(world), verbose=False)

    class Init(deepspeed.zero.Init):  # type: ignore[name-defined]
        def _zero_init_param(self, parameter: nn.Parameter) -> None:
            parameter.data = parameter.data.to(self.dtype)
            super()._zero_init_param(parameter)

    init: AbstractContextManager[None] = Init(
        config_dict_or_path=deepspeed_config(run, world),
        tensor_overrides=[],  # drawn in fp32 and in main memory, initial weights are the same at every stage
    )
    return init


def set_weights(model: nn.Module, state: State) -> None:
    """`model.NAME` of a state into a model, one after the other; where that is in parts, collective.

    Raises ValueError where they do not fit, before any is changed.
    """
    shapes = {f"model.{name}": getattr(p, "ds_shape", p.shape) for name, p in model.named_parameters()}
    odd = sorted(shapes.keys() ^ {name for name in state if name.startswith("model.")})
    if odd:
        what = "missing" if odd[0] in shapes else "none of its parameters"
        raise ValueError(f"{odd[0].removeprefix('model.')} is {what}")
    for name, shape in shapes.items():
        if state[name].shape != shape:
            theirs, ours = tuple(state[name].shape), tuple(shape)
            raise ValueError(f"{name.removeprefix('model.')} has the shape {theirs}, the model's {ours}")
    for name, parameter in model.named_parameters():
        with torch.no_grad(), _whole(parameter):
            parameter.copy_(state[f"model.{name}"])


def _whole(parameter: nn.Parameter) -> AbstractContextManager[None]:
    """Within it a parameter is whole on every rank; after it each has its part of what rank 0 has made of it."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    gathered: AbstractContextManager[None] = GatheredParameters([parameter], modifier_rank=0)
    return gathered


def backend_of(world: World) -> str:
    return "nccl" if world.device.type == "cuda" else "gloo"


def deepspeed_config(run: Run, world: World) -> dict[str, Any]:
    micro = run.train.batch // (world.size * run.engine.accumulate)
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": run.engine.accumulate,
        "gradient_clipping": run.optim.clip,
        "zero_optimization": {"stage": run.engine.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": run.engine.precision == "bf16"},
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }
