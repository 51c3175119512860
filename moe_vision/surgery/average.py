"""Average: the mean of the weights of several runs, or of the last checkpoints of one.

Runs that began from the same weights often lie in one valley, so that the mean is as good as each
of them or better (model soups, Wortsman et al. 2022, arXiv 2203.05482). Of runs that began
elsewhere the mean is of no use: experts and channels have other orders there. Batch statistics and
router state are averaged, too; those of batch norm are then only near what the averaged network
sees.
"""

import numpy as np

from moe_vision.common.errors import UserError
from moe_vision.config.schema import Config
from moe_vision.surgery.kind import Kind, cut
from moe_vision.surgery.state import COLLECTIONS, Arrays, Misfit, State, form


class Average(Kind):
    def __call__(
        self,
        source: tuple[State, ...],
        source_config: Config | None,
        fresh: State,
        config: Config,
    ) -> State:
        if len(source) < 2:
            raise UserError(
                'average takes several runs, --from=W1,W2, or several checkpoints of one, --last=2.'
            )
        first = source[0]
        if any(s.class_names != first.class_names for s in source):
            raise UserError('the runs have other classes or another order; average needs the same.')
        means = {n: _mean(n, [getattr(s, n) for s in source]) for n in COLLECTIONS}
        mean = State(
            means['params'], means['batch_stats'], means['router_state'], first.class_names
        )
        result = cut('average', mean, fresh, lambda table, path, own: table.take(path, own))
        told = (*result.told, f'the mean of {len(source)} networks')
        return State(
            result.params, result.batch_stats, result.router_state, result.class_names, told
        )


def _mean(collection: str, trees: list[Arrays]) -> dict[str, np.ndarray]:
    """The mean of each array, in float64; of whole numbers, which only count, the first."""
    first, *others = trees
    rows = []
    for path in {p: None for tree in trees for p in tree}:
        forms = {form(tree[path]) if path in tree else 'nothing' for tree in trees}
        if len(forms) > 1:
            rows.append(('-', f'{collection}/{path}', f'the runs have {", ".join(sorted(forms))}'))
    if rows:
        raise Misfit('average', rows)
    return {
        path: np.mean([tree[path] for tree in trees], 0, np.float64).astype(x.dtype)
        if np.issubdtype(x.dtype, np.floating)
        else x
        for path, x in first.items()
    }
