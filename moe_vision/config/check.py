"""The one place where a ConfigDict becomes a `schema.Config`, and where its mistakes are reported.

    >>> config = check(get_config())       # checks every rule, as main.py does
    >>> config = from_dict(to_dict(config))  # there and back through JSON; checks types only

Nothing here imports jax, so that a misspelt key is reported at once.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from input_pipeline import DATASETS
from input_pipeline.registry import is_path
from input_pipeline.types import check as check_dataset
from moe_vision.common.errors import UserError, nearest, unknown
from moe_vision.common.files import exists, read_json
from moe_vision.common.json_values import plain
from moe_vision.common.paths import expanded, runs_near
from moe_vision.config import compare, registry, rules, schema, source, surgery, trust, typed
from moe_vision.config.kinds import SKIP, Kind
from moe_vision.config.rules import (
    check_with_data as check_with_data,  # the second half, after start
)

if TYPE_CHECKING:
    from ml_collections import ConfigDict

CARD = 'model.json'  # of a folder that `moe_vision.export` wrote


def check(config: 'ConfigDict') -> schema.Config:
    """The checked, typed config.

    Raises:
      UserError: the first thing that is wrong, in one line.
      input_pipeline.DataError: the same for a key under `dataset`.
    """
    try:
        values = config.to_dict()
    except TypeError as e:  # it sorts the keys
        raise UserError(f'the config has keys that are no strings: {e}.') from e
    checked = from_dict(_expanded(source.unescaped(values)))
    name = checked.dataset.name
    if name not in DATASETS and not is_path(name):
        raise unknown('data set', name, DATASETS)
    rules.check(checked, from_dict(schema.defaults()))
    check_dataset(checked.dataset)
    return checked


def _expanded(values: dict[str, Any]) -> dict[str, Any]:
    """The same values, with `~` replaced in the keys that name folders."""
    for key, _, limits in schema.keys(schema.Config()):
        *parents, last = key.split('.')
        section = compare.look_up(values, tuple(parents))
        if limits.get('path') and isinstance(section, dict) and type(section.get(last)) is str:
            section[last] = expanded(section[last])
    return values


def from_dict(values: Mapping[str, Any]) -> schema.Config:
    """The typed config of nested dictionaries, with each method's name and arguments resolved.

    This imports the user's own code where the values name it, so values that were read from a
    folder must pass `trust.check` first, as in `load`.

    Raises:
      UserError: a key or name is unknown, a key is missing, or a value has the wrong type.
    """
    config = typed.build(schema.Config, values, '', complete=True)
    model, moe, train = config.model, config.model.moe, config.train
    backbone = registry.entry('backbone', registry.BACKBONES, model.name)
    router = registry.entry('router', registry.ROUTERS, moe.router)
    optimizer = registry.entry('optimizer', registry.OPTIMIZERS, train.optimizer)
    name = moe.expert or registry.default_expert(backbone, moe.placement)
    expert = registry.entry('expert', registry.EXPERTS, name)
    losses = {name: registry.entry('loss', registry.LOSSES, name) for name in moe.losses}
    for loss in moe.loss_args:
        if loss not in losses:
            raise UserError(
                f"model.moe.loss_args names '{loss}', but model.moe.losses does not."
                f'{nearest(loss, losses)} It has {", ".join(losses) or "none"}.'
            )
    expert_args = _args(
        f"argument of expert '{name}'", expert, moe.expert_args, 'model.moe.expert_args'
    )
    moe = dataclasses.replace(
        moe,
        kinds=tuple(_kind(kind, n, name, expert_args) for n, kind in enumerate(moe.kinds)),
        loss_args={
            loss: _args(
                f"argument of loss '{loss}'", losses[loss], given, f'model.moe.loss_args.{loss}'
            )
            for loss, given in moe.loss_args.items()
        },
        expert=name,
        expert_args=expert_args,
        router_args=_args(
            f"argument of router '{moe.router}'", router, moe.router_args, 'model.moe.router_args'
        ),
    )
    model = dataclasses.replace(
        model,
        moe=moe,
        args=_args(f"argument of backbone '{model.name}'", backbone, model.args, 'model.args'),
    )
    train = dataclasses.replace(
        train,
        optimizer_args=_args(
            f"argument of optimizer '{train.optimizer}'",
            optimizer,
            train.optimizer_args,
            'train.optimizer_args',
        ),
        transforms={name: _transform(name, args) for name, args in train.transforms.items()},
    )
    return dataclasses.replace(config, model=model, train=train, init_args=_init_args(config))


def _init_args(config: schema.Config) -> Any:
    """The arguments of the kind of surgery; {} where there is none."""
    kind = config.init_kind
    if not kind:
        return config.init_args
    if kind not in surgery.SURGERY:
        raise unknown('kind of surgery (init_kind)', kind, surgery.SURGERY)
    what = f"argument of surgery '{kind}'"
    return _args(what, surgery.SURGERY[kind], config.init_args, 'init_args')


def _transform(name: str, given: Any) -> Any:
    entry = registry.entry('transform', registry.TRANSFORMS, name)
    return _args(f"argument of transform '{name}'", entry, given, f'train.transforms.{name}')


def _kind(kind: Kind, number: int, expert: str, expert_args: Any) -> Kind:
    """One of `model.moe.kinds`, with its expert and the arguments of that expert resolved."""
    where = f'model.moe.kinds[{number}].args'
    if not kind.expert and not kind.args:
        return dataclasses.replace(kind, expert=expert, args=expert_args)
    name = kind.expert or expert
    entry = registry.Entry(SKIP) if name == SKIP else None
    entry = entry or registry.entry('expert', registry.EXPERTS, name)
    args = _args(f"argument of expert '{name}'", entry, kind.args, where)
    return dataclasses.replace(kind, expert=name, args=args)


def _args(what: str, entry: registry.Entry, given: Any, where: str) -> Any:
    try:
        return typed.build(entry.args, given, where, what)
    except UserError as e:
        known = {f.name for f in dataclasses.fields(entry.args)}
        if isinstance(given, Mapping) and set(given) - known:  # left from another method, perhaps
            raise UserError(f'{e} (--config.{where}={{}} drops those of the config file.)') from e
        raise


def to_dict(config: schema.Config) -> dict[str, Any]:
    """The config as strict JSON can hold it: infinity is the string 'inf'."""
    return plain(dataclasses.asdict(config))


def record_of(workdir: str) -> str:
    """The file that describes the run in a folder: config.json, or the card of an exported one."""
    run, card = (f'{expanded(workdir).rstrip("/")}/{name}' for name in ('config.json', CARD))
    return card if exists(card) and not exists(run) else run


def load(workdir: str, trusted: Iterable[str] = ()) -> schema.Config:
    """The config that the run in `workdir`, or in an exported folder, was started with.

    Args:
      trusted: modules that the config may import, besides those that --trust named.

    Raises:
      UserError: there is no run, its config.json cannot be read, or it names code that is not
        trusted.
    """
    path = record_of(workdir)
    try:
        values = _completed(read_json(path)['config'])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        if isinstance(e, FileNotFoundError) or os.path.isfile(workdir):
            raise UserError(
                f"no run to read in workdir '{workdir}', which has no config.json; "
                f'{runs_near(workdir)}.'
            ) from e
        todo = 'restore it, or start the same training again: it writes the file anew'
        if path.endswith(f'/{CARD}'):
            todo = 'copy the whole exported folder again'
        raise UserError(f"'{path}' cannot be read ({type(e).__name__}: {e}); {todo}.") from e
    trust.check(values, workdir, trusted)
    return from_dict(values)


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """The same values, with the default of each key that was added after the run was started."""
    for key, default, _ in schema.keys(schema.Config()):
        *parents, last = key.split('.')
        section = values
        for parent in parents:
            section = section[parent]
        section.setdefault(last, default)
    return values
