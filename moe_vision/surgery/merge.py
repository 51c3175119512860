"""Merge (M-SMoE, Li et al. 2024, arXiv 2310.01334): fewer experts, each the mean of like ones.

In each layer hidden units of all experts are first put into the order of those of expert 0, which
changes no output. The M experts with the largest load stay for themselves; each other one joins
that of them that is most like it: by the cosine of `weights`, of `router` columns, or of
`router_logits` over samples of the source's data, which also give the loads then. A group becomes
the mean of its experts weighted by load, and so do its router columns and state.

The config gives M, or one `budget` does for all layers (`surgery.budget`).

Identical experts merge to themselves, and with M = E nothing changes but the order of hidden units.

The authors compare experts by router logits over 256 samples and have a budget. They keep the
router of E columns behind a table of groups, which makes the merged expert as likely as its group.

Axes: E experts there, M here, F hidden units.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_vision.common.errors import UserError
from moe_vision.config.schema import Config
from moe_vision.layers.experts import Expert
from moe_vision.routing.types import Context, SoftRouting
from moe_vision.surgery import budget, hidden_units, samples
from moe_vision.surgery.kind import Kind, axis_of_experts, block_of, cut_layers, experts_of
from moe_vision.surgery.prune import loads
from moe_vision.surgery.state import Arrays, State


@dataclasses.dataclass(frozen=True)
class _Groups:
    """What becomes of the experts of a layer.

    Attributes:
      orders: [E, F], for each expert its hidden units in the order of those of expert 0.
      shares: [M, E]; rows sum to 1.
    """

    orders: np.ndarray
    shares: np.ndarray


class Merge(Kind):
    """Groups are formed once, by the first weights, and serve all others and moments."""

    def __init__(self, args: Any):
        super().__init__(args)
        self._groups: dict[str, _Groups] = {}
        self._seen: samples.Sums | None = None  # of the routes of samples, by layer

    def configured(self, source: Any, source_config: Config | None, config: Config) -> Config:
        config = super().configured(source, source_config, config)
        if not self.args.budget:
            return config
        before = experts_of(source.params)
        usage = {b: self._loads(b, n, source, source_config) for b, n in before.items()}
        return budget.configured(self.args, source.params, usage, config)

    def __call__(
        self, source: State, source_config: Config | None, fresh: State, config: Config
    ) -> State:
        expert = hidden_units.expert_of(config, 'merge')
        axes = expert.hidden_axes or {}
        before, after = experts_of(source.params), experts_of(fresh.params)
        for block in before:
            if after.get(block, 0) > before[block]:
                raise UserError(
                    f"'{block}' has {before[block]} experts there and {after[block]} here; merge "
                    'makes fewer, expand more.'
                )
            if block in after and block not in self._groups:
                load = self._loads(block, before[block], source, source_config)
                self._groups[block] = self._formed(block, expert, source, load, after[block])

        def mean(path: str, x: np.ndarray, own: np.ndarray) -> np.ndarray:
            block, part, name = block_of(path)
            groups = self._groups[block]
            if part != 'experts':
                axis = axis_of_experts(x, own, *groups.shares.shape[::-1])
                if axis is None:
                    return x
                return np.moveaxis(np.tensordot(groups.shares, x, (1, axis)), 0, axis)
            if name in axes:
                order = zip(x, groups.orders, strict=True)
                x = np.stack([np.take(e, ids, axes[name]) for e, ids in order])
            return np.tensordot(groups.shares, x, 1)

        result = cut_layers('merge', source, fresh, self._groups, mean)
        told = [f'{block}: {_text(groups.shares)}' for block, groups in self._groups.items()]
        return dataclasses.replace(result, told=(*result.told, *told))

    def _loads(self, block: str, experts: int, source: State, config: Config | None) -> np.ndarray:
        """The share of the choices that each expert of a layer gets, [E]."""
        if self.args.by != 'router_logits' or config is None:
            return np.asarray(loads('merge', block, experts, source.about))
        if self._seen is None:
            self._seen = samples.of_routes(source, config, self.args, _routes)
        if block not in self._seen:
            raise UserError(
                f"merge: the experts of '{block}' are those of several layers, whose logits cannot "
                'be compared; take --by=weights.'
            )
        chosen = self._seen[block]['chosen'][:experts]
        return chosen / max(chosen.sum(), 1.0)

    def _formed(
        self, block: str, expert: type[Expert], source: State, load: np.ndarray, count: int
    ) -> _Groups:
        """The groups of a layer's experts, of which `count` stay."""
        bank = {
            path.removeprefix(f'{block}/experts/'): x
            for path, x in source.params.items()
            if path.startswith(f'{block}/experts/')
        }
        experts = len(next(iter(bank.values())))
        units = [
            hidden_units.weights(expert, {n: x[e] for n, x in bank.items()}, '')
            for e in range(experts)
        ]
        orders = np.stack([hidden_units.matched(units[0], u) for u in units])
        ordered = np.stack([u[ids].ravel() for u, ids in zip(units, orders, strict=True)])
        alike = self._likeness(block, ordered, source.params)
        stay = np.sort(np.argsort(-load, kind='stable')[:count])
        group = stay[np.argmax(alike[:, stay], 1)]
        group[stay] = stay
        members = group == stay[:, None]
        weight = members * load
        alone = weight.sum(1, keepdims=True) == 0  # nobody chose any of them: all count alike
        weight = np.where(alone, members, weight)
        return _Groups(orders, weight / weight.sum(1, keepdims=True))

    def _likeness(self, block: str, ordered: np.ndarray, params: Arrays) -> np.ndarray:
        """How much experts are alike, [E, E]."""
        if self.args.by == 'random':
            rng = np.random.default_rng(self.args.seed)
            return rng.random((len(ordered), len(ordered)))
        if self.args.by == 'router_logits' and self._seen is not None:
            return _cosines(self._seen[block]['products'][: len(ordered), : len(ordered)])
        vectors = ordered
        if self.args.by == 'router':
            kernel = params.get(f'{block}/router/kernel')
            if kernel is None or np.shape(kernel)[-1] != len(ordered):
                raise UserError(
                    f"merge: the router of '{block}' has no kernel with a column for each expert; "
                    'take --by=weights.'
                )
            vectors = np.asarray(kernel, np.float32).T
        return _cosines(vectors @ vectors.T)


def _routes(routing: Any, context: Context) -> dict[str, Any]:
    """Of a routed layer: 'products' of logits [N, N] and choices 'chosen' [N], sums over tokens."""
    if isinstance(routing, SoftRouting):
        raise UserError('merge: soft routing makes no choices to compare; take --by=weights.')
    logits = jnp.where(context.valid[..., None], routing.logits, 0.0)
    ids = jax.nn.one_hot(routing.expert_of_choice, logits.shape[-1])
    return {
        'products': jnp.einsum('gte,gtf->ef', logits, logits, precision='highest'),
        'chosen': (ids * routing.active[..., None]).sum((0, 1, 2)),
    }


def _cosines(products: np.ndarray) -> np.ndarray:
    """Cosines of vectors whose inner products are given, [E, E]."""
    length = np.maximum(np.sqrt(np.diag(products)), 1e-12)
    return products / np.outer(length, length)


def _text(shares: np.ndarray) -> str:
    groups = ['+'.join(map(str, np.flatnonzero(row))) for row in shares]
    return f'{shares.shape[0]} experts of {", ".join(groups)}'
