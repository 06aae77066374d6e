"""Accelerate in front, DeepSpeed behind: with `zero.py` the only file that knows either of them.

Accelerate holds process state, device and precision; DeepSpeed, through its plugin, is the optimizer and ZeRO back
end. Whole parameters and optimizer moments go in and out, so a run may continue on other ranks and ZeRO stages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from infra.distributed import World
from infra.errors import UserError
from pipeline.batch import empty_batch
from pipeline.config import Run
from pipeline.gradients import gradient_norms
from pipeline.model import MultimodalVAE
from pipeline.objectives.plan import joint_plan
from pipeline.objectives.systems import SYSTEMS, switch_step
from pipeline.zero import State, backend_of, deepspeed_config, import_deepspeed, set_weights

MOMENTS = ("exp_avg", "exp_avg_sq")
BUCKETS = 8
"""Row numbers up to a micro-batch's that compiled networks tell apart."""


class Engine:
    """A model under DeepSpeed: forward, backward, step, and whole state in and out.

    `module` is called like the model; under ZeRO 3 only through it are the parameters whole.
    """

    def __init__(self, model: MultimodalVAE, run: Run, world: World, state: State | None = None) -> None:
        """Collective. With `state`, weights and optimizer continue from there bit for bit."""
        deepspeed = import_deepspeed(world.device)
        from accelerate import Accelerator, DeepSpeedPlugin, InitProcessGroupKwargs
        from accelerate.state import AcceleratorState, DistributedType

        class Plugin(DeepSpeedPlugin):
            def set_deepspeed_weakref(self) -> None:
                """Accelerate imports transformers here, for models of its own; ours need none."""

        self.world, self.run = world, run
        if state is not None:  # before DeepSpeed copies them
            set_weights(model, state)
        if run.engine.compile:
            _check_compiler()
            model.compile_networks(max(1, run.train.batch // (world.size * run.engine.accumulate * BUCKETS)))
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(
            cpu=False,  # True would silently train with DDP instead of DeepSpeed
            gradient_accumulation_steps=run.engine.accumulate,
            mixed_precision="bf16" if run.engine.precision == "bf16" else "no",
            deepspeed_plugin=Plugin(hf_ds_config=deepspeed_config(run, world)),
            kwargs_handlers=[InitProcessGroupKwargs(backend=backend_of(world))],
        )
        optimizer = torch.optim.Adam(_groups(model, run), lr=run.optim.lr, betas=run.optim.betas, fused=True)
        self._frozen = False
        self._watched = False
        self._norms: dict[str, Tensor] = {}
        for parameter in (p for group in optimizer.param_groups[1:] for p in group["params"]):
            parameter.register_hook(self._unless_frozen)
        self.module, _ = self.accelerator.prepare(model, optimizer)
        self._adam = optimizer
        if world.size == 1 and self.stage == 0:  # a copy of all gradients to nobody: a tenth of a step
            self.module.enable_backward_allreduce = False
        if run.engine.zero_stage == 0 and run.engine.precision == "fp32":  # elsewhere DeepSpeed lays parameters out
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions: a quarter faster
        if self.accelerator.state.distributed_type != DistributedType.DEEPSPEED or not isinstance(
            self.module, deepspeed.DeepSpeedEngine
        ):
            raise RuntimeError(f"DeepSpeed is not in charge: {self.accelerator.state.distributed_type}")
        if self.accelerator.num_processes != world.size or self.module.world_size != world.size:
            raise RuntimeError(f"{self.accelerator.num_processes} processes under Accelerate, {world.size} ranks")
        # DeepSpeed may take a step of zero gradients to make the optimizer's state; Adam must not count it.
        for entry in optimizer.state.values():
            entry["step"] = torch.zeros_like(torch.as_tensor(entry["step"]))
        if state is not None and "step" in state:
            self._restore_optimizer(state)

    @property
    def stage(self) -> int:
        """DeepSpeed's ZeRO stage as it really runs."""
        return int(self.module.zero_optimization_stage())

    def enter(self, step: int) -> None:
        """Set the learning rates of a step, and whether its gradients are measured: those of a point of the curves.

        Rates differ in a system of two stages only. In the second, all but the experts of single modalities have a
        rate of zero, and a gradient of zero, which counts in no norm. The experts begin: Adam has counted the steps in
        which they had nothing to learn, and what it would correct its moments by is put right.
        """
        self._watched = self.stage == 0 and (step + 1) % self.run.train.log_every == 0
        rate, (b1, b2) = self.run.optim.rate(step, self.run.train.steps), self.run.optim.betas
        group, *others = self._adam.param_groups
        if others:
            first = switch_step(self.run)
            self._frozen = step >= first
            others[0]["lr"] = 0.0 if self._frozen else rate
            if self._frozen:
                taken, counted = step - first + 1, step + 1
                rate *= math.sqrt(1 - b2**taken) / (1 - b1**taken) * (1 - b1**counted) / math.sqrt(1 - b2**counted)
        group["lr"] = rate

    def _unless_frozen(self, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient) if self._frozen else gradient

    def step(self, loss: Tensor) -> None:
        """Backward through a micro-batch's loss; after a step's last one the optimizer moves and gradients are zeroed.

        A micro-batch's forward comes after the backward of the one before: so memory holds one, and ZeRO 3, which
        loses gradients where forwards are nested, is right.
        """
        self.module.backward(loss)
        if self._watched and self.module.is_gradient_accumulation_boundary():
            self._norms = gradient_norms(self.module.module)
        self.module.step()

    def gradient_norms(self) -> dict[str, float]:
        """`gradient/…` of the last step that was measured, before clipping (`pipeline/gradients.py`); waits for it.

        Empty at ZeRO stages 1 to 3: there a rank has a part of the gradients only, and to put them together for a
        curve would be a second all-reduce of all of them.
        """
        return {name: float(norm) for name, norm in self._norms.items()}

    def gradient_norm(self) -> float:
        """The last step's gradient norm before clipping; NaN where DeepSpeed did not compute it."""
        norm = self.module.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.module.module.named_parameters())

    def _masters(self) -> dict[str, nn.Parameter]:
        """At stage 0: the fp32 parameter that the optimizer updates, by name."""
        named = dict(self._named())
        if self.run.engine.precision == "fp32":
            return named
        halves = [p for group in self.module.optimizer.fp16_groups for p in group]
        singles = [p for group in self.module.optimizer.fp32_groups for p in group]
        found = {id(half): single for half, single in zip(halves, singles, strict=True)}
        return {name: found[id(parameter)] for name, parameter in named.items()}

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters and moments, whole, one after the other; before a first step, the parameters alone. What is
        given may be the tensor that training goes on with. Collective: every rank must take them all."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        self._link_moments()
        masters = self._masters() if self.stage == 0 else {}
        moments = MOMENTS if self.module.global_steps else ()
        for name, parameter in self._named():
            if self.stage == 0:
                master = masters[name]
                yield f"model.{name}", master
                for moment in moments:
                    yield f"{moment}.{name}", self._adam.state[master][moment]
            else:
                yield f"model.{name}", safe_get_full_fp32_param(parameter)
                for moment in moments:
                    yield f"{moment}.{name}", safe_get_full_optimizer_state(parameter, moment)
        if moments:
            step = next(entry["step"] for entry in self._adam.state.values() if "step" in entry)
            yield "step", torch.as_tensor(step).reshape(1)

    def _link_moments(self) -> None:
        """ZeRO 1 and 2 link parameters to their moments once the first group has taken its first step, when the other
        groups have none yet; link them again."""
        optimizer = self.module.optimizer
        if self.stage in (1, 2) and len(self._adam.param_groups) > 1 and optimizer._hp_optimizer_states_linked:
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()

    def _restore_optimizer(self, state: State) -> None:
        """Give Adam its moments back. The optimizer has no state before a first step, so one of size 0 is taken."""
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        rates = [group["lr"] for group in self._adam.param_groups]
        for group in self._adam.param_groups:
            group["lr"] = 0.0
        for _ in range(self.run.engine.accumulate):
            self.step(self._rehearsal())
        for group, rate in zip(self._adam.param_groups, rates, strict=True):
            group["lr"] = rate
        self._link_moments()
        masters = self._masters() if self.stage == 0 else {}
        for name, parameter in self._named():
            tensors = [state[f"{kind}.{name}"].to(self.world.device) for kind in ("model", *MOMENTS)]
            if self.stage == 0:
                with torch.no_grad():
                    masters[name].copy_(tensors[0])
                    for moment, tensor in zip(MOMENTS, tensors[1:], strict=True):
                        self._adam.state[masters[name]][moment].copy_(tensor)
            elif self.stage == 3:  # what takes whole ones there fails where ranks do not divide their size
                part, *parts = (self._part(tensor) for tensor in tensors)
                safe_set_local_fp32_param(parameter, part)
                for moment, part in zip(MOMENTS, parts, strict=True):
                    safe_set_local_optimizer_state(parameter, part, moment)
            else:
                safe_set_full_fp32_param(parameter, tensors[0])
                for moment, tensor in zip(MOMENTS, tensors[1:], strict=True):
                    safe_set_full_optimizer_state(parameter, tensor, moment)
        for entry in self._adam.state.values():
            if "step" in entry:
                # a clone for each parameter: Adam counts in place
                entry["step"] = state["step"].reshape(()).to(torch.as_tensor(entry["step"]).device, copy=True)

    def _part(self, tensor: Tensor) -> Tensor:
        """This rank's, at ZeRO 3: the ranks' are equally long, the last one padded."""
        padded = nn.functional.pad(tensor.flatten(), (0, -tensor.numel() % self.world.size))
        return padded.chunk(self.world.size)[self.world.rank]

    def _rehearsal(self) -> Tensor:
        """A loss of zero that leads to every parameter: the model on a batch in which nothing is present."""
        model = self.module.module
        batch = empty_batch(model.modalities, self.world.device)
        noise = torch.zeros((1, 1, model.latent), device=self.world.device)
        anchor: Tensor = self.module(batch, joint_plan(batch.present_BM, model.family), noise).anchor
        return anchor


def _check_compiler() -> None:
    """Raise UserError where torch.compile has no C++ compiler to turn to."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise UserError(
            "engine.compile needs a C++ compiler, and none is found: install g++, set CXX, or leave engine.compile out"
        ) from None


def _groups(model: MultimodalVAE, run: Run) -> list[dict[str, list[nn.Parameter]]]:
    """What the optimizer moves; in a system of two stages the experts of single modalities apart from all else.

    A gradient of zero would not do for a frozen parameter: Adam's momentum would move it on. A rate of zero does.
    """
    if SYSTEMS[run.model.system].later is None:
        return [{"params": list(model.parameters())}]
    first = {id(parameter) for parameter in model.single_experts()}
    return [
        {"params": [parameter for parameter in model.parameters() if (id(parameter) in first) == single]}
        for single in (True, False)
    ]
