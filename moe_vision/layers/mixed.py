"""Experts that differ, as one expert to the layer that runs them.

`config.kinds` says how ids are dealt out: in blocks, each with its share of every kind.

Axes: E experts, N tokens or slots, D width, `*` payload of a token.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from moe_vision.common.errors import UserError
from moe_vision.config.kinds import blocks_of
from moe_vision.layers.experts import Array, BankShapes, Expert


class Mixed(Expert):
    """Several kinds of experts; a bank holds those of kind n in arrays `kind_{n}_{name}`.

    Args:
      kinds: each expert, and how many of it there are.

    Raises:
      UserError: one kind runs something around the experts and another does not.
    """

    def __init__(self, kinds: Sequence[tuple[Expert, int]]):
        first = kinds[0][0]
        super().__init__(first.args, first.width, first.hidden)
        self.kinds = tuple(kinds)
        self.before, self.after = first.before, first.after
        for expert, _ in kinds:
            if (type(expert.before), type(expert.after)) != (type(self.before), type(self.after)):
                one, other = type(first).__name__, type(expert).__name__
                raise UserError(
                    f'model.moe.kinds mixes {one} and {other}, but only one of them has parts that '
                    'stand before and after all experts of a layer; take experts of one such class.'
                )
        blocks = blocks_of([count for _, count in kinds])
        self._shares = [count // blocks for _, count in kinds]  # of each kind in a block

    @property
    def reference(self) -> Expert:
        return self.kinds[0][0]

    def parts(self, count: int) -> list[tuple[Expert, int]]:
        del count
        return list(self.kinds)

    def bank_shapes(self, count: int) -> BankShapes:
        del count
        return {
            f'kind_{n}_{name}': value
            for n, (expert, count) in enumerate(self.kinds)
            for name, value in expert.bank_shapes(count).items()
        }

    def _lacks(self, name):
        return UserError(
            f'experts of model.moe.kinds differ, so they have no {name} in common; leave kinds '
            'out, or do without what reads it.'
        )

    def run_stacked(self, params, x):
        """All experts of this device on x [E, N, *, D]; their ids are consecutive."""
        in_blocks = x.reshape(-1, sum(self._shares), *x.shape[1:])
        results, first = [], 0
        for n, ((expert, _), share) in enumerate(zip(self.kinds, self._shares, strict=True)):
            mine = in_blocks[:, first : first + share].reshape(-1, *x.shape[1:])
            y = expert.run_stacked(self._own(params, n), mine)
            results.append(y.reshape(-1, share, *x.shape[1:]))
            first += share
        return jnp.concatenate(results, 1).reshape(x.shape)

    def run_one(self, params, number, x):
        kind_of = np.repeat(np.arange(len(self.kinds)), self._shares)  # of the ids of a block
        place = np.concatenate([np.arange(share) for share in self._shares])
        block, at = jnp.divmod(number, len(kind_of))
        kind = jnp.asarray(kind_of)[at]
        own = block * jnp.asarray(self._shares)[kind] + jnp.asarray(place)[at]
        run = [
            functools.partial(expert.run_one, self._own(params, n))
            for n, (expert, _) in enumerate(self.kinds)
        ]
        return jax.lax.switch(kind, run, own, x)

    def _own(self, params: dict[str, Array], n: int) -> dict[str, Array]:
        """The arrays of kind n under the names that its expert gives them."""
        prefix = f'kind_{n}_'
        return {
            name.removeprefix(prefix): w for name, w in params.items() if name.startswith(prefix)
        }
