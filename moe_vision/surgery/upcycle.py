"""Upcycle (Komatsuzaki et al. 2023, arXiv 2212.05055): experts begin as copies of a dense block.

A block of the source, dense or of a `same_width` twin, becomes E experts. All other arrays are
taken as they are. Routers begin anew, times `router_scale`.

If the gates of a token sum to 1 and no choice is dropped, the network computes what the source
does: sum_k g_k f(x) = f(x). Routers that renormalise their gates have that, and those whose softmax
is over the k chosen. Other gates scale the branch at first.

Noise of standard deviation s times that of each array makes the copies differ at the start. Without
it they differ as soon as they get other tokens.

Axes: E experts.
"""

import dataclasses
import zlib

import numpy as np

from moe_vision.config import registry
from moe_vision.config.schema import Config
from moe_vision.surgery.kind import Kind, block_of, cut, gate_sum, may_drop, needs_routed
from moe_vision.surgery.state import State, Table

_WHY = 'no block there can be copied'
_OTHER_NORMS = (
    'that block has other norms than experts (batch norm, as a rule); train it with '
    'model.twin=same_width, whose blocks are those of experts'
)
_KINDS = 'experts of several kinds are no copies of one block; leave model.moe.kinds out'
_SHARED = "layers share these experts; upcycle with model.moe.bank='own'"


class Upcycle(Kind):
    def __call__(
        self, source: State, source_config: Config | None, fresh: State, config: Config
    ) -> State:
        needs_routed('upcycle', config)
        copied: dict[str, int] = {}

        def param(table: Table, path: str, own: np.ndarray) -> np.ndarray:
            block, part, name = block_of(path)
            if path in source.params or part not in ('experts', 'router') and block != 'router':
                return table.take(path, own)
            if part != 'experts':
                return own * np.asarray(self.args.router_scale, own.dtype)
            copied[block] = len(own)
            return table.take(
                path,
                own,
                f'{block}/{name}',
                lambda x: self._copies(path, x, len(own)),
                _KINDS if name.startswith('kind_') else _why(block, source),
            )

        result = cut('upcycle', source, fresh, param)
        told = [f'{block}: {n} experts, copies of the block' for block, n in copied.items()]
        return dataclasses.replace(result, told=(*result.told, *told, *_exactness(config)))

    def _copies(self, path: str, x: np.ndarray, count: int) -> np.ndarray:
        """E copies of a block's array, with noise."""
        copies = np.repeat(x[None], count, 0)
        if not self.args.noise:
            return copies
        rng = np.random.default_rng([self.args.seed, zlib.crc32(path.encode())])
        noise = rng.normal(size=copies.shape) * (self.args.noise * x.std())
        return (copies + noise).astype(x.dtype)

    def for_moments(self) -> Kind:
        return Upcycle(dataclasses.replace(self.args, noise=0.0))


def _why(block: str, source: State) -> str:
    if block.startswith('bank_'):
        return _SHARED
    return _OTHER_NORMS if any(p.startswith(f'{block}/') for p in source.params) else _WHY


def _exactness(config: Config) -> list[str]:
    """What keeps the network from computing what the source does, for all that can be known."""
    moe, lines = config.model.moe, []
    chooses = 'k' not in registry.entry('router', registry.ROUTERS, moe.router).ignores
    if chooses and gate_sum(config) != 1:
        lines.append(
            f"the gates of router '{moe.router}' need not sum to 1 as it is set, and branches are "
            'scaled by their sum at first; with renormalize the network begins as the dense one'
        )
    return [*lines, *may_drop(config)]
