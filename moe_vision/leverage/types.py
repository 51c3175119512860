"""Plain values that describe a config's compute. FLOPs and buffers are per image."""

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Block:
    """One block of the network."""

    name: str
    params: int
    params_active: int  # with k of the experts
    params_twin: int  # at the same place of the same_width twin
    flops_twin: int  # at the same place of the same_width twin
    flops: int  # with k active experts
    flops_executed: int  # with padded buffers
    flops_router: int  # part of `flops` and `flops_executed`
    flops_dispatch: int  # products that mix tokens into slots and back; part of both
    flops_experts: int  # k active experts; part of `flops`
    flops_experts_executed: int  # all slots; part of `flops_executed`
    bytes: int  # all parameters
    bytes_active: int
    bytes_experts: int  # all experts; part of `bytes`
    bytes_buffers: int  # inputs and outputs of all expert slots, including empty ones
    bytes_token: int  # one token that is routed here
    routed: bool


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Static sizes of one routed layer."""

    tokens_per_image: int
    group_size: int
    capacity: int  # in training; 0 for soft routing
    effective_factor: float  # C·E/(k·T) with C = `capacity`
    eval_capacity: int
    eval_effective_factor: float  # the same with `eval_capacity`
    choices: float  # experts that a token takes if choices are balanced
    can_drop: bool = True  # whether a choice can find no slot
    flops: tuple[int, ...] = ()  # of each expert on a token, by id, where experts differ

    def mean_passes(self, load: Sequence[float]) -> float:
        """What an expert pass costs, in passes of the mean expert, if experts have these shares of
        the choices; 1 where all experts are alike."""
        cost = sum(share * n for share, n in zip(load, self.flops, strict=bool(self.flops)))
        return cost * len(self.flops) / sum(self.flops) if sum(self.flops) else 1.0


@dataclasses.dataclass(frozen=True)
class Twin:
    """What a dense twin costs; `refused` says why the config has no twin of this kind."""

    name: str
    flops: int = 0
    params: int = 0
    refused: str = ''


@dataclasses.dataclass(frozen=True, repr=False)
class Leverage:
    """Compute and parameters of a config, with the leverages that follow."""

    blocks: tuple[Block, ...]
    capacities: dict[str, Capacity]

    def __repr__(self) -> str:
        routed = [b.name for b in self.blocks if b.routed]
        return (
            f'<Leverage: rho_place {self.rho_place:.4f}, rho_active {self.rho_active:.4f}, '
            f'rho_executed {self.rho_executed:.4f}; {self.flops / 1e6:,.4g} M FLOPs per image, '
            f'{self.flops_executed / 1e6:,.4g} M executed; {self.params_total:,} parameters, '
            f'{self.params_active:,} active; routed: {", ".join(routed) or "nothing"}>'
        )

    def sum(self, field: str) -> int:
        """Sums a field over the blocks."""
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
    def padding(self) -> float:
        """Share of the executed FLOPs that runs on empty expert slots."""
        return max(0.0, 1 - self.flops / self.flops_executed)

    def share(self, rho: str) -> tuple[int, int]:
        """The part and the whole of a leverage: 'rho_place', 'rho_active' or 'rho_executed'."""
        if rho == 'rho_place':
            return sum(b.flops_twin for b in self.blocks if b.routed), self.sum('flops_twin')
        if rho == 'rho_active':
            return self.sum('flops_experts'), self.flops
        return self.sum('flops_experts_executed'), self.flops_executed

    @property
    def rho_place(self) -> float:
        """Share of the same_width twin's FLOPs at routed places. Does not depend on k."""
        part, whole = self.share('rho_place')
        return part / whole

    @property
    def rho_active(self) -> float:
        """Share of the FLOPs that k active experts need."""
        part, whole = self.share('rho_active')
        return part / whole

    @property
    def rho_executed(self) -> float:
        """Share of the executed FLOPs that runs in experts, padding included."""
        part, whole = self.share('rho_executed')
        return part / whole

    def rho_active_at(
        self,
        choices_per_token: Mapping[str, float],
        load: Mapping[str, Sequence[float]] | None = None,
    ) -> float:
        """rho_active if tokens took as many experts as given, on average, instead of k.

        Args:
          choices_per_token: by routed layer.
          load: by routed layer, each expert's share of the choices, read where experts differ;
            None stands for equal shares.
        """

        def passes(name: str) -> float:
            taken, capacity = choices_per_token[name], self.capacities[name]
            cost = capacity.mean_passes(load[name]) if load and taken else 1.0
            return taken * cost / capacity.choices

        measured = sum(b.flops_experts * passes(b.name) for b in self.blocks if b.flops_experts)
        return measured / (self.flops - self.sum('flops_experts') + measured)


@dataclasses.dataclass(frozen=True)
class TrainingStep:
    """FLOPs of a training step per image as executed: forward and backward pass."""

    flops: int
    flops_experts: int  # in experts, padding included; part of `flops`

    @property
    def rho_train(self) -> float:
        """Share of a training step's FLOPs that runs in experts, padding included."""
        return self.flops_experts / self.flops
