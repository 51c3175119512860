"""Expand: more experts, of which the first are those of the source.

New experts are copies of the old ones in turn, with noise, or begin anew. What a router has for
each expert follows: with copies, its columns are copied; else they are its initial values.

The network computes what the source does if it has m times as many experts and each token takes m
times as many: the m copies of an expert share its probability. With the same k it begins elsewhere.

With `frozen` the config of the result keeps the old experts as they are (transform
`freeze_experts`); routers learn on.

Axes: E experts.
"""

import dataclasses
import zlib
from typing import Any

import numpy as np

from moe_vision.common.errors import UserError
from moe_vision.config import registry
from moe_vision.config.schema import Config
from moe_vision.surgery.kind import Kind, axis_of_experts, block_of, cut_layers, experts_of
from moe_vision.surgery.state import State


class Expand(Kind):
    def configured(self, source: Any, source_config: Config | None, config: Config) -> Config:
        config = super().configured(source, source_config, config)
        if not self.args.frozen:
            return config
        numbers = set(experts_of(source.params).values())
        if len(numbers) != 1:
            raise UserError(
                f'the layers there have {sorted(numbers)} experts; frozen needs one number for '
                'all, so set train.transforms yourself.'
            )
        args = registry.TRANSFORMS['freeze_experts'].args(experts=tuple(range(*numbers)))
        transforms = config.train.transforms | {'freeze_experts': args}
        train = dataclasses.replace(config.train, transforms=transforms)
        return dataclasses.replace(config, train=train)

    def __call__(
        self, source: State, source_config: Config | None, fresh: State, config: Config
    ) -> State:
        before, after = experts_of(source.params), experts_of(fresh.params)

        fewer = [b for b in before if after.get(b, 0) < before[b]]
        if fewer:
            raise UserError(
                f"'{fewer[0]}' has {before[fewer[0]]} experts there and fewer here; expand makes "
                'more, prune fewer.'
            )

        def more(path: str, x: np.ndarray, own: np.ndarray) -> np.ndarray:
            block, _, _ = block_of(path)
            return self._more(path, x, own, before[block], after[block])

        result = cut_layers('expand', source, fresh, before.keys() & after.keys(), more)
        told = [f'{b}: {n} experts, {after[b] - n} more' for b, n in before.items()]
        return dataclasses.replace(result, told=(*result.told, *told))

    def _more(
        self, path: str, x: np.ndarray, own: np.ndarray, before: int, after: int
    ) -> np.ndarray:
        """An array with what it has for each expert also for the new ones.

        Args:
          x: of the source.
          own: the initial value here, which has one axis that is longer.
        """
        axis = axis_of_experts(x, own, before, after)
        if axis is None:
            return x
        new = np.take(own, np.arange(before, after), axis)
        if self.args.new == 'copy':
            new = np.take(x, np.arange(before, after) % before, axis)
            if block_of(path)[1] == 'experts' and self.args.noise:
                rng = np.random.default_rng([self.args.seed, zlib.crc32(path.encode())])
                new = new + rng.normal(size=new.shape) * (self.args.noise * x.std())
        return np.concatenate([x, new], axis)

    def for_moments(self) -> Kind:
        return Expand(dataclasses.replace(self.args, noise=0.0))
