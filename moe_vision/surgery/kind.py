"""The base class of kinds of surgery, and what those between runs have in common.

To add a kind, write a file with its class here, and a line in `surgery.SURGERY`. Its arguments are
a dataclass in `config.surgery`.
"""

import dataclasses
import re
from collections.abc import Callable, Container
from typing import Any

import numpy as np

from moe_vision.common.errors import UserError
from moe_vision.config import registry
from moe_vision.config.places import key_at, moe_at, routed_layers
from moe_vision.config.schema import Config
from moe_vision.surgery.state import Arrays, State, Table, in_head

# What a network computes with the same arrays: fields of `model.args` that no array shows.
ALIKE = ('activation', 'norm', 'norm_groups', 'norm_epsilon', 'exact_variance', 'padding')


class Kind:
    """Base class of the kinds of surgery.

    A kind is called once for each set of weights, first for those that the source was scored with.
    What it chooses by them, such as which experts go together, serves the other calls, too.
    """

    def __init__(self, args: Any):
        self.args = args

    def configured(self, source: Any, source_config: Config | None, config: Config) -> Config:
        """The config of the result, from the one that was asked for; arguments as in the call."""
        del source
        return config if source_config is None else computes_alike(source_config, config)

    def __call__(
        self, source: Any, source_config: Config | None, fresh: State, config: Config
    ) -> State:
        """The state of the result. The arguments stay as they are.

        Args:
          source: the state that is cut; a tuple of them for a kind that reads several runs.
          source_config: of the run, or of the first one; None for a file.
          fresh: the initial values of the network of `config`.
          config: of the result.

        Raises:
          Misfit: arrays do not fit; UserError: the networks are not what this kind needs.
        """
        raise NotImplementedError

    def for_moments(self) -> 'Kind':
        """The kind that cuts moments of the optimizer in the same way: nothing is drawn."""
        return self


def computes_alike(source_config: Config, config: Config) -> Config:
    """The config, whose network computes gelu, norms and padding as that of the source does."""
    before, model = source_config.model, config.model
    if before.name != model.name:
        return config
    alike = {n: getattr(before.args, n) for n in ALIKE if hasattr(before.args, n)}
    args = with_fields(model.args, alike)
    moe = model.moe
    if moe.placement != 'none':
        entry = registry.entry('expert', registry.EXPERTS, moe.expert)
        if before.moe.placement != 'none' and before.moe.expert == moe.expert:
            moe = dataclasses.replace(moe, expert_args=before.moe.expert_args)
        elif moe.expert_args == entry.args():
            moe = dataclasses.replace(moe, expert_args=with_fields(moe.expert_args, alike))
    return dataclasses.replace(config, model=dataclasses.replace(model, args=args, moe=moe))


def with_fields(args: Any, values: dict[str, Any]) -> Any:
    """The arguments with these values, of the fields that they have."""
    own = {f.name for f in dataclasses.fields(args)}
    return dataclasses.replace(args, **{n: v for n, v in values.items() if n in own})


def cut(
    what: str,
    source: State,
    fresh: State,
    param: Callable[[Table, str, np.ndarray], np.ndarray],
    state: Callable[[str, np.ndarray, Arrays], np.ndarray | None] | None = None,
) -> State:
    """The state of a network whose parameters come from a source.

    The classifier is new if the classes have other names. Batch statistics are those there. Router
    state is, too, where it has this form; what the other network lacks begins anew.

    Args:
      what: is done, for the message of a misfit.
      param: (table, path, initial value) -> parameter, which `table.take` gives.
      state: (path, initial value, router state there) -> router state; None takes what has the same
        form.
    """
    new_head = source.class_names != fresh.class_names
    params, statistics = Table(source.params), Table(source.batch_stats)
    if new_head:
        params.leave(*filter(in_head, source.params))
    made = {
        path: own if new_head and in_head(path) else param(params, path, own)
        for path, own in fresh.params.items()
    }
    norms = {path: statistics.take(path, own) for path, own in fresh.batch_stats.items()}
    params.finish(what, [statistics])
    router_state = {}
    for path, own in fresh.router_state.items():
        there = source.router_state.get(path)
        same = there is not None and there.shape == own.shape
        kept = state(path, own, source.router_state) if state else there if same else None
        router_state[path] = own if kept is None else np.asarray(kept, own.dtype)
    told = ('the classifier is new: the classes there have other names',) if new_head else ()
    return State(made, norms, router_state, fresh.class_names, told)


def cut_layers(
    what: str,
    source: State,
    fresh: State,
    blocks: Container[str],
    change: Callable[[str, np.ndarray, np.ndarray], np.ndarray],
) -> State:
    """`cut`, where the experts and routers of some layers are changed.

    Args:
      blocks: names of the layers.
      change: (path, array there, initial value here) -> array, of parameters and router state.
    """

    def param(table: Table, path: str, own: np.ndarray) -> np.ndarray:
        block, part, _ = block_of(path)
        if part not in ('experts', 'router') or block not in blocks:
            return table.take(path, own)
        return table.take(path, own, None, lambda x: change(path, x, own))

    def state(path: str, own: np.ndarray, theirs: Arrays) -> np.ndarray | None:
        if path not in theirs:
            return None
        made = np.asarray(theirs[path])
        made = change(path, made, own) if block_of(path)[0] in blocks else made
        return made if made.shape == own.shape else None

    return cut(what, source, fresh, param, state)


def axis_of_experts(x: np.ndarray, own: np.ndarray, before: int, after: int) -> int | None:
    """The one axis of `before` entries there and `after` here; None if there is none to change."""
    if x.ndim != own.ndim or x.shape == own.shape:
        return None
    axes = [i for i in range(x.ndim) if x.shape[i] == before and own.shape[i] == after]
    return axes[0] if len(axes) == 1 else None


def experts_of(params: Arrays) -> dict[str, int]:
    """E of each routed layer, by the name of its block."""
    found = (re.fullmatch('(.*)/experts/[^/]*', path) for path in params)
    return {m[1]: len(params[m[0]]) for m in found if m}


def needs_routed(what: str, config: Config) -> None:
    """Raises UserError if the config of a result that must be routed is of a dense network."""
    if config.model.twin != 'none' or config.model.moe.placement == 'none':
        raise UserError(
            f'{what} makes a routed network, but the config is of a dense one; give '
            'model.moe.placement, and model.twin=none.'
        )


def gate_sum(config: Config) -> float | None:
    """What the gates of a token sum to, as the router's arguments say; None: it depends."""
    args = config.model.moe.router_args
    if getattr(args, 'renormalize', False) or getattr(args, 'gate', '') == 'top_k_softmax':
        return float(getattr(args, 'gate_scale', 1.0))
    return None


def may_drop(config: Config) -> list[str]:
    """A line if a routed layer may drop choices, in training or in evaluation, where load is
    uneven."""
    model = config.model
    for layer in range(routed_layers(model)):
        moe = moe_at(model, layer)
        for key in ('capacity_factor', 'eval_capacity_factor'):
            read = key not in registry.entry('router', registry.ROUTERS, moe.router).ignores
            if read and getattr(moe, key) < moe.num_experts / moe.k:
                return [f'choices may be dropped, as {key_at(model, layer, key)} says']
    return []


def block_of(path: str) -> tuple[str, str, str]:
    """('block_3', 'experts', 'in_kernel') of 'block_3/experts/in_kernel'; '' for what it lacks."""
    block, _, rest = path.partition('/')
    part, _, name = rest.partition('/')
    return block, part, name
