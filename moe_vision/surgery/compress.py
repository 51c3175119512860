"""Compress (MC-SMoE, Li et al. 2024, arXiv 2310.01334): experts become low-rank plus column-sparse.

Each matrix W of an MLP expert becomes U V + S (`layers.low_rank`). U V is its best approximation of
rank R: of the decomposition W = P diag(s) Q^T, U has the first R columns of P sqrt(s), and V those
of Q sqrt(s). S is W - U V for the hidden units that matter most, and 0 for all others.

How much a hidden unit matters is, over all entries w of W - U V that belong to it, the sum of

    sensitivity: I(w) = |w dL/dw|,  I <- b I + (1 - b) |w dL/dw| from batch to batch, b = 0.85,
    magnitude: w^2, which makes the error of the matrices as small as it can be,

with the loss L of the network that is compressed, on labelled samples. The authors measure the
sensitivity and cut S step by step while they train on (LoSparse, arXiv 2306.11222); here it is cut
once, before.

With `columns` = 1 or full rank, experts compute what they did. A shared expert becomes low-rank,
too, as a bank of one.

Axes: E experts, D width, F hidden units, R rank, Q hidden units that S keeps.
"""

import dataclasses
import re
from typing import Any

import numpy as np

from moe_vision.common.errors import UserError
from moe_vision.config.schema import Config
from moe_vision.layers.low_rank import LowRankMlp
from moe_vision.surgery import samples
from moe_vision.surgery.kind import Kind, cut, experts_of, needs_routed, with_fields
from moe_vision.surgery.state import Arrays, State, Table

SMOOTHING = 0.85  # b
_AXES = {'in': -1, 'out': -2}  # of hidden units, in the first and in the second matrix


@dataclasses.dataclass(frozen=True)
class _Bank:
    """What becomes of the experts of a layer, or of the shared expert beside it, whose E is 1.

    Attributes:
      expert: that they become.
      arrays: parameters by name, [E, ...], but for S.
      left: W - U V of 'in' [E, D, F] and of 'out' [E, F, D].
      norm: of all matrices together.
    """

    expert: LowRankMlp
    arrays: dict[str, np.ndarray]
    left: dict[str, np.ndarray]
    norm: float


class Compress(Kind):
    """Which hidden units S keeps is chosen once, by the first weights."""

    def __init__(self, args: Any):
        super().__init__(args)
        # of each bank [E, F], by its path: the hidden units that S keeps, then the others
        self._orders: dict[str, np.ndarray] = {}

    def configured(self, source: Any, source_config: Config | None, config: Config) -> Config:
        config = super().configured(source, source_config, config)
        if source_config is None or source_config.model.moe.expert != 'mlp':
            return config
        alike = {'activation': source_config.model.moe.expert_args.activation}
        moe = config.model.moe
        moe = dataclasses.replace(moe, expert_args=with_fields(moe.expert_args, alike))
        return dataclasses.replace(config, model=dataclasses.replace(config.model, moe=moe))

    def __call__(
        self, source: State, source_config: Config | None, fresh: State, config: Config
    ) -> State:
        needs_routed('compress', config)
        _check(source_config, config)
        paths = _banks(source.params)
        if not any(paths.values()):
            raise UserError('compress: there are no experts there to compress; give a routed run.')
        banks = {p: _low_rank(p, stacked, source.params, config) for p, stacked in paths.items()}
        if not self._orders:
            scores = self._scores(banks, source, source_config)
            self._orders = {
                name: _kept_first(score, banks[name].expert.kept) for name, score in scores.items()
            }
        made, told = {}, []
        for name, bank in banks.items():
            made[name], error = _in_order(bank, self._orders[name])
            what, whose = ('experts', 'their') if paths[name] else ('an expert', 'its')
            told.append(
                f'{name.removesuffix("/experts")}: {what} of rank {bank.expert.rank}, and '
                f'{bank.expert.kept} of {bank.expert.hidden} hidden units keep what that leaves '
                f'out; {whose} matrices are {error:.2%} away from what they were'
            )

        def param(table: Table, path: str, own: np.ndarray) -> np.ndarray:
            bank, _, name = path.rpartition('/')
            if bank not in made:
                return table.take(path, own)
            side, _, what = name.partition('_')
            there = name if what == 'bias' else f'{side}_kernel'
            one = () if paths[bank] else 0
            return table.take(path, own, f'{bank}/{there}', lambda _: made[bank][name][one])

        result = cut('compress', source, fresh, param)
        return dataclasses.replace(result, told=(*result.told, *told))

    def _scores(
        self, banks: dict[str, _Bank], source: State, config: Config | None
    ) -> dict[str, np.ndarray]:
        """How much each hidden unit matters, [E, F] of each bank."""
        entries = {
            (name, side): np.square(x)
            for name, bank in banks.items()
            for side, x in bank.left.items()
        }
        if self.args.importance == 'sensitivity' and config is not None:
            entries = {at: np.zeros_like(x) for at, x in entries.items()}
            for gradient in samples.gradients(source, config, self.args):
                for (name, side), smooth in entries.items():
                    now = banks[name].left[side] * gradient[f'{name}/{side}_kernel']
                    entries[name, side] = SMOOTHING * smooth + (1 - SMOOTHING) * np.abs(now)
        of_units = {'in': -2, 'out': -1}  # the axis that is summed
        return {
            name: sum(entries[name, side].sum(axis) for side, axis in of_units.items())
            for name in banks
        }


def _check(source_config: Config | None, config: Config) -> None:
    there = source_config.model.moe if source_config else config.model.moe
    if there.expert != 'mlp' or there.kinds:
        what = 'of several kinds' if there.kinds else f"'{there.expert}'"
        raise UserError(f"compress: experts there are {what}; it takes those that are 'mlp'.")
    if config.model.moe.expert != 'low_rank_mlp' or config.model.moe.kinds:
        raise UserError(
            f"compress makes experts 'low_rank_mlp', but model.moe.expert is "
            f"'{config.model.moe.expert}'; set it, and leave model.moe.kinds out."
        )


def _banks(params: Arrays) -> dict[str, bool]:
    """The paths of what is compressed, and whether it is a bank: a shared expert has no axis E."""
    banks = {f'{block}/experts': True for block in experts_of(params)}
    shared = (re.fullmatch('(.*_shared)/in_kernel', path) for path in params)
    return banks | {m[1]: False for m in shared if m}


def _low_rank(name: str, stacked: bool, params: Arrays, config: Config) -> _Bank:
    """U V of all experts of a bank, and what that leaves.

    Args:
      name, stacked: as `_banks` gives them.
    """
    prefix = f'{name}/'
    whole = {
        path.removeprefix(prefix): np.asarray(x if stacked else x[None], np.float64)
        for path, x in params.items()
        if path.startswith(prefix)
    }
    _, width, hidden = whole['in_kernel'].shape
    moe = config.model.moe
    expert = LowRankMlp(moe.expert_args, width, hidden)
    arrays, left = {n: x for n, x in whole.items() if n.endswith('bias')}, {}
    for side in _AXES:
        p, s, q = np.linalg.svd(whole[f'{side}_kernel'], full_matrices=False)
        root = np.sqrt(s[:, : expert.rank])
        down, up = p[..., : expert.rank] * root[:, None], root[..., None] * q[:, : expert.rank]
        arrays |= {f'{side}_down': down, f'{side}_up': up}
        left[side] = whole[f'{side}_kernel'] - down @ up
    norm = np.sqrt(sum(np.square(whole[f'{side}_kernel']).sum() for side in _AXES))
    return _Bank(expert, arrays, left, float(norm))


def _kept_first(score: np.ndarray, kept: int) -> np.ndarray:
    """Hidden units by whether S keeps them, as they stood otherwise, [E, F].

    Args:
      score: [E, F].
    """
    order = np.argsort(-score, axis=-1, kind='stable')
    return np.concatenate([np.sort(order[:, :kept]), np.sort(order[:, kept:])], 1)


def _in_order(bank: _Bank, order: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """The bank's parameters with hidden units in this order, with S; and how far its matrices are
    from what they were, as a share of their norm."""

    def moved(x: np.ndarray, axis: int) -> np.ndarray:
        ids = order if x.ndim == 2 else np.expand_dims(order, -1 - (axis == -1))
        return np.take_along_axis(x, np.broadcast_to(ids, x.shape), axis)

    arrays, kept, lost = dict(bank.arrays), bank.expert.kept, 0.0
    for name, axis in (('in_up', -1), ('in_bias', -1), ('out_down', -2)):
        arrays[name] = moved(arrays[name], axis)
    for side, axis in _AXES.items():
        stay, go = np.split(moved(bank.left[side], axis), [kept], axis)
        arrays |= {f'{side}_sparse': stay} if kept else {}
        lost += float(np.square(go).sum())
    return arrays, np.sqrt(lost) / max(bank.norm, 1e-30)
