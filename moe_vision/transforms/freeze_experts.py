"""Freezes some experts of each bank, by their numbers, for the whole of training.

Their weights keep their bits. They still take tokens, and routers still learn to choose them. It
serves networks that were made from others: experts that were copied stay, and new ones learn.

Axes: E experts.
"""

import re

import numpy as np

from moe_vision.common.errors import UserError
from moe_vision.transforms.types import Transform, bank_of, by_path, require


class FreezeExperts(Transform):
    routed = True

    def init(self, params):
        require(self._acts_on, f"layers '{self.args.layers}'", params)
        by_path(self._check, params)
        return {}

    def moves(self, path, param, *, step, state):
        if not self._acts_on(path):
            return True
        still = np.isin(np.arange(param.shape[0]), self.args.experts)
        return ~still.reshape(-1, *[1] * (param.ndim - 1))

    def _acts_on(self, path):
        layer = bank_of(path)
        return layer is not None and bool(re.search(self.args.layers, layer))

    def _check(self, path, param):
        count = param.shape[0] if self._acts_on(path) else max(self.args.experts) + 1
        if max(self.args.experts) >= count:
            raise UserError(
                f'experts names {max(self.args.experts)}, but {bank_of(path)} has {count} experts; '
                f'allowed: 0 to {count - 1}.'
            )
