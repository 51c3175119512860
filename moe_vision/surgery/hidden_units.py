"""Hidden units of experts: which are alike, within a block or between two experts.

A hidden unit is a column of the first matrix and a row of the last one. An expert computes the same
in whatever order they stand.

Axes: F hidden units, M weights of one, P parts.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

from moe_vision.common.errors import UserError
from moe_vision.config import registry
from moe_vision.config.schema import Config
from moe_vision.layers.experts import Expert
from moe_vision.surgery.state import Arrays

_ROUNDS = 20  # of clustering, at most


def expert_of(config: Config, what: str) -> type[Expert]:
    """The class of a config's experts, which can be cut between hidden units.

    Raises:
      UserError: it cannot be, or experts differ.
    """
    moe = config.model.moe
    entry = registry.entry('expert', registry.EXPERTS, moe.expert)
    found: type[Expert] = registry.load(entry.path)
    if found.hidden_axes is None or moe.kinds:
        able = [n for n, e in registry.EXPERTS.items() if registry.load(e.path).hidden_axes]
        which = 'of several kinds' if moe.kinds else f"'{moe.expert}', which names no hidden_axes"
        raise UserError(f'{what}: experts are {which}; allowed: {", ".join(able)}.')
    return found


def weights(expert: type[Expert], arrays: Arrays, prefix: str) -> np.ndarray:
    """All weights of each hidden unit of one block, [F, M].

    Args:
      prefix: 'block_3/', before the names of parameters.
    """
    rows = []
    for name, axis in (expert.hidden_axes or {}).items():
        units = np.moveaxis(np.asarray(arrays[f'{prefix}{name}'], np.float32), axis, 0)
        rows.append(units.reshape(len(units), -1))
    return np.concatenate(rows, 1)


def clusters(
    points: np.ndarray, parts: int, seed: int, first: np.ndarray | None = None
) -> np.ndarray:
    """Parts of equal size whose points lie close together, by balanced k-means: [P, F / P].

    In each round points go to centres by an assignment of least squared distance, in which each
    centre gets F / P points, and centres move to the means. MoEfication (Zhang et al. 2022, arXiv
    2110.01786) takes the first matrix alone; here a point has all weights of a hidden unit.

    Args:
      points: [F, M], with F divisible by `parts`.
      seed: of the points that are centres at first.
      first: these points, [P]; None draws them.
    """
    size = len(points) // parts
    if first is None:
        first = np.random.default_rng(seed).choice(len(points), parts, replace=False)
    centres = points[first]
    chosen = np.zeros(len(points), int)
    for n in range(_ROUNDS):
        # |p - c|^2 without |p|^2, which is the same for all centres
        cost = np.square(centres).sum(1) - 2 * points @ centres.T
        seats = linear_sum_assignment(np.repeat(cost, size, 1))[1] // size
        if n and (seats == chosen).all():
            break
        chosen = seats
        centres = np.stack([points[chosen == p].mean(0) for p in range(parts)])
    return np.stack([np.flatnonzero(chosen == p) for p in range(parts)])


def matched(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Which unit there is most like each one here, one for one: [F], indices into `theirs`.

    The sum of inner products is as large as it can be (weight matching: Ainsworth et al. 2023,
    arXiv 2209.04836).

    Args:
      ours, theirs: [F, M].
    """
    return linear_sum_assignment(ours @ theirs.T, maximize=True)[1]
