"""Split: the hidden units of a block are dealt out to smaller experts, which add up to it.

By `order` these are slices (FactorLLM, arXiv 2408.11855); by `weights` units with like weights go
together, by `coactivation` those that fire together on samples of the source's data (both of
MoEfication, arXiv 2110.01786); or they are `random`. What is added to the output is divided among
the parts. Routers are drawn, or begin with the mean input for which the units of a part fire.

With N `copies`, E experts are E / N parts of each copy, and the router begins with one column for
all parts of a copy: k = E / N choices are then the parts of one copy (Dynamic-DINO, arXiv
2507.17436).

The network computes what the source does if a token takes all parts of a copy with equal gates that
sum to the number of parts: k = E / N, router_args gate='top_k_softmax' and gate_scale = E / N, and
for one copy `--router_scale=0`. With fewer choices, gate_scale = E / N keeps the branch's scale
(FactorLLM).

Axes: E experts, P parts of a copy, F hidden units of the block.
"""

import copy
import dataclasses
from typing import Any

import numpy as np

from moe_vision.common.errors import UserError
from moe_vision.config import registry
from moe_vision.config.schema import Config
from moe_vision.surgery import coactivation, hidden_units
from moe_vision.surgery.kind import Kind, block_of, cut, gate_sum, may_drop, needs_routed
from moe_vision.surgery.state import State, Table


class Split(Kind):
    """Parts are chosen once, by the first weights, and serve all others and moments."""

    _divided = True  # whether what is added to the output is divided among the parts

    def __init__(self, args: Any):
        super().__init__(args)
        self._parts: dict[str, np.ndarray] = {}
        self._seen: dict[str, dict[str, np.ndarray]] = {}  # what units of each block did on samples

    def __call__(
        self, source: State, source_config: Config | None, fresh: State, config: Config
    ) -> State:
        needs_routed('split', config)
        expert = hidden_units.expert_of(config, 'split')
        axes = expert.hidden_axes or {}
        if self.args.looks and not self._seen and source_config:
            self._seen = self._looked(source, source_config, fresh, config)

        def param(table: Table, path: str, own: np.ndarray) -> np.ndarray:
            block, part, name = block_of(path)
            if path in source.params or part not in ('experts', 'router') and block != 'router':
                return table.take(path, own)
            if part != 'experts':
                # a block's experts come before its router, so their parts are known by now
                return self._router(path, own, config)
            if f'{block}/{name}' not in source.params:
                return table.take(path, own, f'{block}/{name}', why='no block there can be split')
            if block not in self._parts:
                units = hidden_units.weights(expert, source.params, f'{block}/')
                self._parts[block] = self._chosen(block, units, len(own))
            ids = self._parts[block]

            def deal(x: np.ndarray) -> np.ndarray:
                if name in axes:
                    made = np.stack([np.take(x, i, axes[name]) for i in ids])
                else:
                    added = name in expert.added and self._divided
                    made = np.stack([x / len(ids) if added else x] * len(ids))
                return np.concatenate([made] * self.args.copies)

            return table.take(path, own, f'{block}/{name}', deal)

        result = cut('split', source, fresh, param)
        told = [
            f'{block}: {self.args.copies * len(ids)} experts of {ids.shape[1]} hidden units'
            for block, ids in self._parts.items()
        ]
        return dataclasses.replace(result, told=(*result.told, *told, *self._exactness(config)))

    def _looked(
        self, source: State, source_config: Config, fresh: State, config: Config
    ) -> dict[str, dict[str, np.ndarray]]:
        """What the hidden units of the blocks that are split did on samples."""
        paths = [block_of(p) for p in fresh.params if p not in source.params]
        blocks = {b for b, part, n in paths if part == 'experts' and f'{b}/{n}' in source.params}
        entry = registry.entry('router', registry.ROUTERS, config.model.moe.router)
        if self.args.router == 'inputs' and 'kernel' not in entry.supplies:
            raise UserError(
                f"router is 'inputs', but model.moe.router '{config.model.moe.router}' has no "
                "column for each expert that learns; take one such as 'top_k', or router='drawn'."
            )
        if not blocks:
            return {}  # the table says that there is nothing to split
        normalize = getattr(config.model.moe.router_args, 'normalize_inputs', True)
        return coactivation.seen(source, source_config, self.args, blocks, normalize)

    def _chosen(self, block: str, units: np.ndarray, experts: int) -> np.ndarray:
        """Which hidden units each part has, [P, F / P]."""
        hidden, copies = len(units), self.args.copies
        count = experts // copies
        if experts % copies or hidden % count:
            raise UserError(
                f"split: '{block}' has {hidden} hidden units for {experts} experts of {copies} "
                'copies; experts must be divisible by copies, and hidden units by experts / copies.'
            )
        if self.args.by == 'weights':
            return hidden_units.clusters(units, count, self.args.seed)
        if self.args.by == 'coactivation':
            together = self._seen[block]['together']
            return np.sort(coactivation.parts(together, count, self.args.seed), 1)
        order = np.arange(hidden)
        if self.args.by == 'random':
            order = np.random.default_rng(self.args.seed).permutation(hidden)
        return np.sort(order.reshape(count, -1), 1)

    def _router(self, path: str, own: np.ndarray, config: Config) -> np.ndarray:
        """A router's initial values; parts of a copy have the same column, null experts their own.

        Columns that are mean inputs are brought to the deviation of those that were drawn; that of
        moments is 0.
        """
        block, _, name = block_of(path)
        experts = config.model.moe.num_experts
        if block in self._parts:  # a layer may have a number of its own
            experts = len(self._parts[block]) * self.args.copies
        null = getattr(config.model.moe.router_args, 'null_experts', 0)
        of_each = own.ndim and own.shape[-1] == experts + null
        if self.args.router == 'inputs' and name == 'kernel' and block in self._parts:
            made = coactivation.columns(self._seen[block], self._parts[block])
            drawn, rest = np.split(own, [experts], -1)
            made = np.asarray(made * (drawn.std() / max(made.std(), 1e-12)), own.dtype)
            if not of_each or made.shape != drawn.shape:
                return made  # which does not fit, as `replaced` says
            own = np.concatenate([made, rest], -1)
        if self.args.copies > 1 and of_each:
            count = experts // self.args.copies
            first, rest = np.split(own, [experts], -1)
            own = np.concatenate([np.repeat(first[..., ::count], count, -1), rest], -1)
        return own * np.asarray(self.args.router_scale, own.dtype)

    def for_moments(self) -> Kind:
        other = copy.copy(self)  # with the same parts; each part has the whole gradient of a sum
        other._divided = False
        return other

    def _exactness(self, config: Config) -> list[str]:
        """What keeps the network from computing what the source does, for all that can be known."""
        moe, lines = config.model.moe, []
        count = moe.num_experts // self.args.copies
        if gate_sum(config) != count:
            lines.append(
                f'a token takes {count} parts as its block did if its gates sum to {count}: give '
                f"model.moe.router_args gate='top_k_softmax' and gate_scale={count}"
            )
        if moe.k != count:
            lines.append(f'a block has {count} parts, of which a token takes {moe.k}')
        elif self.args.copies == 1 and self.args.router_scale:
            lines.append('gates differ at first; with --router_scale=0 they are equal')
        return [*lines, *may_drop(config)]
