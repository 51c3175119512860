"""What is known of a config's compute, as plain values. FLOPs and buffers are per image."""

import dataclasses
from fractions import Fraction


@dataclasses.dataclass(frozen=True)
class Block:
    """One block of the network."""

    name: str
    params: int
    params_active: int  # of k experts
    params_twin: int  # of the same place in the same_width twin
    flops_twin: int  # of the same place in the same_width twin
    flops: int  # with k active experts
    flops_executed: int  # with the padded buffers
    flops_router: int  # part of `flops` and `flops_executed`
    flops_dispatch: int  # products that mix tokens into slots and back, part of both
    flops_experts: int  # of k active experts, part of `flops`
    flops_experts_executed: int
    bytes: int  # of the parameters
    bytes_active: int
    bytes_experts: int  # of all experts, part of `bytes`
    bytes_buffers: int  # of the expert slots, empty ones too, in and out
    bytes_token: int  # of one token that is routed here
    routed: bool


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Static sizes of one routed layer."""

    tokens_per_image: int
    group_size: int
    capacity: int  # in training; 0 for soft routing
    effective_factor: float  # of `capacity`
    eval_capacity: int
    eval_effective_factor: float


@dataclasses.dataclass(frozen=True)
class Twin:
    """What a dense twin costs; `refused` says why a config has none of this kind."""

    name: str
    flops: int = 0
    params: int = 0
    refused: str = ''


@dataclasses.dataclass(frozen=True)
class Leverage:
    """Compute and parameters of a config, with the leverages that follow."""

    blocks: tuple[Block, ...]
    capacities: dict[str, Capacity]

    def sum(self, field: str) -> int:
        """Of a field of the blocks."""
        return sum(getattr(b, field) for b in self.blocks)

    @property
    def params_total(self) -> int:
        return self.sum('params')

    @property
    def params_active(self) -> int:
        return self.sum('params_active')

    @property
    def flops(self) -> int:
        return self.sum('flops')

    @property
    def flops_executed(self) -> int:
        return self.sum('flops_executed')

    @property
    def rho_place(self) -> float:
        """Share of the same_width twin's FLOPs that stands at routed places. Free of k."""
        return sum(b.flops_twin for b in self.blocks if b.routed) / self.sum('flops_twin')

    @property
    def rho_active(self) -> float:
        return self.sum('flops_experts') / self.flops

    @property
    def rho_executed(self) -> float:
        return self.sum('flops_experts_executed') / self.flops_executed

    def rho_active_at(self, choices_per_token: float, k: Fraction) -> float:
        """rho_active where tokens took this many experts on average instead of k."""
        experts = self.sum('flops_experts')
        measured = experts * choices_per_token / float(k)
        return measured / (self.flops - experts + measured)
