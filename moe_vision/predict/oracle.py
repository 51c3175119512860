r"""What the best routes of a trained network would be worth, and what they cost (Duo-LLM, 2024).

    python -m moe_vision.predict.oracle --workdir=W --images=500 --budgets=0.25,0.5,1

Each image of the split is run along every path through the routed layers: one expert in each, or
none where there are null experts. The cost of a path is its experts' FLOPs, as a share of those of
the costliest path. At each budget the table shows the mean loss and the accuracy

  of the oracle, which takes for each image the path of least loss within the budget, and how much
  that saves on the cheapest path (how difficult the images are);
  of the best single path within the budget, the same for all images;

and in the last line those of the network's own routes, at what they cost on average. Their regret
is their loss less that of the oracle at the same cost. All patches of an image take the same path.
L layers of N ids have N^L paths, of which at most 60,000 are run. Where experts choose tokens there
are none.

The oracle reads labels: it says what routes could be worth, not what a router can learn.

Source: Alizadeh et al. 2024. The classes of a split are known, so this is a bound from above, and
all the more optimistic the more paths there are.

Axes: P paths, B images, L routed layers.
"""

import argparse
import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_vision.common.command_line import Parser
from moe_vision.common.errors import UserError
from moe_vision.common.paths import expanded
from moe_vision.config import check as config_lib
from moe_vision.config import registry, rules, trust
from moe_vision.config.command_line import add_weights, exit_code
from moe_vision.config.places import moe_at, place_at, routed_layers
from moe_vision.predict import flags

if TYPE_CHECKING:
    from moe_vision.config.schema import Config
    from moe_vision.predict.model import Model

MOST_PATHS = 60_000  # 3^10 = 59,049
_TOGETHER = 32  # paths that one program runs
_BUDGETS = (0.25, 0.5, 1.0)
_ROUNDED = 1e-9  # costs this close are equal


@dataclasses.dataclass(frozen=True)
class Paths:
    """What every path, and the network's own routes, give for each image.

    Attributes:
      ids: [P, L] int32, the id that a path takes in each layer.
      cost: [P], share of the FLOPs of the costliest path.
      loss, right: [P, B], cross-entropy, and whether the class is the likeliest.
      own_loss, own_right, own_cost: [B], those of the network's own routes.
    """

    ids: np.ndarray
    cost: np.ndarray
    loss: np.ndarray
    right: np.ndarray
    own_loss: np.ndarray
    own_right: np.ndarray
    own_cost: np.ndarray

    def oracle(self, budget: float) -> np.ndarray:
        """The path of least loss for each image among those within the budget, [B].

        Raises:
          UserError: no path is within the budget.
        """
        allowed = self._within(budget)
        return allowed[self.loss[allowed].argmin(0)]

    def fixed(self, budget: float) -> int:
        """The path of least mean loss among those within the budget, the same for all images.

        Raises:
          UserError: no path is within the budget.
        """
        allowed = self._within(budget)
        return int(allowed[self.loss[allowed].mean(1).argmin()])

    def difficulty(self, budget: float) -> np.ndarray:
        """How much loss the oracle at this budget saves each image against the cheapest path, [B].

        Among equally cheap paths it is the one of least mean loss.
        """
        return self.loss[self.fixed(float(self.cost.min()))] - self._of(self.loss, budget)

    def regret(self) -> float:
        """Mean loss of the network's own routes less that of the oracle at their mean cost, or at
        that of the cheapest path if they cost less."""
        cost = max(float(self.own_cost.mean()), float(self.cost.min()))
        return float(self.own_loss.mean() - self._of(self.loss, cost).mean())

    def rows(self, budgets: Sequence[float]) -> list[dict[str, Any]]:
        """A row for each budget, as the command prints it."""
        found = []
        for budget in budgets:
            path = self.fixed(budget)
            found.append(
                {
                    'budget': budget,
                    'oracle_loss': float(self._of(self.loss, budget).mean()),
                    'oracle_accuracy': float(self._of(self.right, budget).mean()),
                    'oracle_cost': float(self.cost[self.oracle(budget)].mean()),
                    'difficulty': float(self.difficulty(budget).mean()),
                    'fixed_path': self.ids[path].tolist(),
                    'fixed_loss': float(self.loss[path].mean()),
                    'fixed_accuracy': float(self.right[path].mean()),
                }
            )
        return found

    def _of(self, values: np.ndarray, budget: float) -> np.ndarray:
        """values [P, B] on the oracle's paths, [B]."""
        return values[self.oracle(budget), range(values.shape[1])]

    def _within(self, budget: float) -> np.ndarray:
        _check_budget(budget, self.cost)
        return (self.cost <= budget + _ROUNDED).nonzero()[0]


def _check_budget(budget: float, cost: np.ndarray) -> None:
    """Raises UserError if no path [P] is within the budget."""
    if cost.min() > budget + _ROUNDED:
        raise UserError(
            f'no path costs at most {budget:g}; the cheapest costs {cost.min():.4g} of the '
            'costliest.'
        )


def count(config: 'Config') -> int:
    """How many paths lead through the network of a config.

    Raises:
      UserError: it routes nothing, its experts choose tokens, or there are more paths than can be
        run.
    """
    model = config.model
    if model.moe.placement == 'none' or model.twin != 'none':
        raise UserError('this run routes nothing, so there are no paths; give a routed run.')
    if registry.keeps_capacity(model.moe.router):
        raise UserError(
            f"experts of router '{model.moe.router}' choose tokens and have no room for all of an "
            'image, so no path leads through one of them; give a run whose tokens choose experts.'
        )
    ids = _ids(config)
    paths = math.prod(ids)
    if paths > MOST_PATHS:
        raise UserError(
            f'{len(ids)} routed layers of {max(ids)} ids have {paths:,} paths; at most '
            f'{MOST_PATHS:,} are run: route fewer layers, or to fewer experts.'
        )
    return paths


def _ids(config: 'Config') -> list[int]:
    """How many ids there are in each routed layer, null experts included."""
    from moe_vision.layers.moe import make_router

    model = config.model
    places = [place_at(model, n) for n in range(routed_layers(model))]
    return [make_router(model.moe.router, model.moe.router_args, p).num_ids for p in places]


def measure(
    model: 'Model', images: np.ndarray, labels: np.ndarray, budgets: Sequence[float] = ()
) -> Paths:
    """Runs images uint8 [B, H, W, C] with labels [B] along every path, and along their own routes.

    Raises:
      UserError: as `count`, routing is soft, or no path is within one of the budgets.
    """
    import jax
    import jax.numpy as jnp

    from moe_vision.routing.interventions import Path

    count(model.config)
    price = _prices(model)
    ids = np.asarray(list(itertools.product(*(range(len(p)) for p in price))), np.int32)
    cost = np.sum([p[ids[:, n]] for n, p in enumerate(price)], 0)
    most = max(float(cost.max()), 1.0)
    for budget in budgets:
        _check_budget(budget, cost / most)

    def scored(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        of_label = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], -1)[:, 0]
        return -of_label, logits.argmax(-1) == labels

    @jax.jit
    def along(variables: Any, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        one = lambda ids: scored(model.apply(variables, images, 0, Path(ids))[0])  # noqa: E731
        return jax.vmap(one)(ids)

    @jax.jit
    def own(variables: Any) -> tuple[Any, list[dict[str, jax.Array]]]:
        logits, infos = model.apply(variables, images)
        return scored(logits), [i['choices'] for i in infos.values()]

    parts = []
    for first in range(0, len(ids), _TOGETHER):
        some = ids[first : first + _TOGETHER]
        filled = np.resize(some, (min(_TOGETHER, len(ids)), some.shape[1]))  # one program for all
        parts.append([x[: len(some)] for x in jax.device_get(along(model.variables, filled))])
    loss, right = (np.concatenate(x) for x in zip(*parts, strict=True))
    (own_loss, own_right), choices = jax.device_get(own(model.variables))
    own_cost = np.zeros(len(images))
    for each, chosen in zip(price, choices, strict=True):
        paid = each[chosen['expert']] * chosen['kept']  # null experts are never kept, and cost 0
        own_cost += paid.reshape(len(images), -1, paid.shape[-1]).sum(2).mean(1)
    return Paths(ids, cost / most, loss, right, own_loss, own_right, own_cost / most)


def _prices(model: 'Model') -> list[np.ndarray]:
    """FLOPs of each id in each routed layer, for an image; 1 where all experts are alike. Null
    experts, whose ids are the last, cost nothing."""
    from moe_vision import leverage

    found = []
    capacities = leverage.measure(model.config, model.info).capacities.values()
    for layer, (ids, cap) in enumerate(zip(_ids(model.config), capacities, strict=True)):
        experts = cap.flops or (1,) * moe_at(model.config.model, layer).num_experts
        each = np.zeros(ids)
        each[: len(experts)] = experts
        found.append(each * cap.tokens_per_image)
    return found


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    args = _parse(arguments)
    trust.allow(args.trust)
    config = config_lib.load(args.workdir)
    info = rules.check_data(config, reads=True, split=args.split)
    count(config)
    from moe_vision.predict.model import load
    from moe_vision.run_folder import abandoned

    abandoned.hide()

    model = load(args.workdir, args.best)
    batch = flags.first_images(config, info, args.split, args.images)
    size = len(batch['label'])
    paths = measure(model, batch['image'], batch['label'], args.budgets or ())
    usual = [b for b in _BUDGETS if b >= paths.cost.min()]
    rows = paths.rows(args.budgets or usual)
    own = {
        'cost': float(paths.own_cost.mean()),
        'loss': float(paths.own_loss.mean()),
        'accuracy': float(paths.own_right.mean()),
        'regret': paths.regret(),
    }
    if args.json:
        print(json.dumps({'images': size, 'paths': len(paths.cost), 'budgets': rows, 'own': own}))
        return 0
    print(f'{size} images of {args.split} along {len(paths.cost):,} paths')
    for r in rows:
        print(
            f'budget {r["budget"]:g}: oracle loss {r["oracle_loss"]:.4f}, accuracy '
            f'{r["oracle_accuracy"]:.4f}, at cost {r["oracle_cost"]:.3f}, saves '
            f'{r["difficulty"]:.4f} of the loss on the cheapest path; best single path '
            f'{r["fixed_path"]} loss {r["fixed_loss"]:.4f}, accuracy {r["fixed_accuracy"]:.4f}'
        )
    print(
        f'own routes: loss {own["loss"]:.4f}, accuracy {own["accuracy"]:.4f}, at cost '
        f'{own["cost"]:.3f}; regret {own["regret"]:.4f}'
    )
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser('moe_vision.predict.oracle', __doc__)
    parser.add_argument(
        '--workdir', type=expanded, required=True, metavar='W', help='folder of the run'
    )
    flags.add_images(parser, 500)
    parser.add_argument(
        '--budgets',
        metavar='B,B',
        help='costs that paths may have, as shares of that of the costliest (default: those of '
        '0.25, 0.5 and 1 that the cheapest path allows)',
    )
    add_weights(parser)
    parser.add_argument('--json', action='store_true', help='print JSON')
    args = parser.parse(arguments)
    if args.images < 1:
        raise UserError(f'--images is {args.images}; it must be positive.')
    try:
        args.budgets = args.budgets and [float(b) for b in args.budgets.split(',')]
    except ValueError as e:
        raise UserError(
            f"--budgets is '{args.budgets}'; write numbers and commas: --budgets=0.25,0.5,1."
        ) from e
    return args


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
