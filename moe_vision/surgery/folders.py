"""Reads what surgery begins with, and writes the folder of its result."""

import dataclasses
from typing import Any

import jax
from etils import epath

from moe_vision.common.errors import NotWritten, UserError
from moe_vision.common.files import write_json
from moe_vision.common.json_values import differences, plain
from moe_vision.config import check as config_lib
from moe_vision.config import registry, rules, schema, surgery
from moe_vision.config.schema import Config
from moe_vision.run_folder import checkpoints, record
from moe_vision.surgery import runs
from moe_vision.surgery.kind import Kind
from moe_vision.surgery.moments import carried
from moe_vision.surgery.state import COLLECTIONS, State, cleaned, leaves, replaced
from moe_vision.surgery.weights import files
from moe_vision.training import continuing
from moe_vision.training.setup import Setup
from moe_vision.training.step import TrainState


def make(request: Any) -> list[str]:
    """Does what a checked command line asks for (`__main__.Request`).

    Returns:
      What became of the arrays, in lines.

    Raises:
      UserError: arrays do not fit, the kind makes a config that breaks a rule, or the folder
        cannot be written.
    """
    entry = surgery.SURGERY[request.kind]
    kind: Kind = registry.load(entry.path)(request.args)
    source = _source(request, entry.needs)
    if source.config is not None:
        there = runs.with_data_of(source.config, request.config)
        source = dataclasses.replace(source, config=there)
    config = kind.configured(source.scored, source.config, request.config)
    _check(config, request.kind)
    setup = _setup(config)
    state = setup.fresh_state()
    fresh = _state_of(state, setup)
    averages = bool(jax.tree.leaves(state.ema))
    scored = result = kind(source.scored, source.config, fresh, config)
    if averages and source.scored is not source.weights:
        result = kind(source.weights, source.config, fresh, config)
    new = {n: replaced(getattr(state, n), getattr(result, n)) for n in COLLECTIONS}
    if averages:
        new['ema'] = replaced(state.ema, scored.params)
    if getattr(request.args, 'optimizer', 'fresh') == 'carried':
        own = leaves(jax.device_get(state.opt_state))
        moved = carried(kind, source.weights, source.moments, source.config, fresh, own, config)
        new['opt_state'] = replaced(state.opt_state, moved)
    state = dataclasses.replace(state, **new)
    about = {
        'kind': request.kind,
        'from': request.sources,
        'args': dataclasses.asdict(request.args),
        'told': result.told,
    }
    _write(request.workdir, setup, config, request.config_file, state, about)
    return [*result.told, f"wrote '{request.workdir}', a run before its first step"]


def _check(config: Config, kind: str) -> None:
    """Checks every rule again: a kind may have set how many experts a layer has."""
    try:
        rules.check(config, config_lib.from_dict(schema.defaults()))
    except UserError as e:
        raise UserError(f'the config that {kind} makes breaks a rule: {e}') from e


@dataclasses.dataclass(frozen=True)
class _Source:
    """What a kind begins with: states, or tuples of them."""

    weights: Any
    scored: Any
    config: Any = None  # None of a file
    moments: Any = None


def _source(request: Any, needs: tuple[str, ...]) -> _Source:
    if 'file' in needs:
        arrays, names = files.read(request.sources)
        state = State(arrays, about={'names': names})
        return _Source(state, state)
    if 'runs' not in needs:
        run = runs.read(request.sources)
        return _Source(run.weights, run.scored, run.config, run.moments)
    found = [
        runs.read(folder, state)
        for folder in filter(None, request.sources.split(','))
        for state in checkpoints.load_several(folder, request.args.last)
    ]
    first, *others = (plain(dataclasses.asdict(run.config.model)) for run in found)
    for run, model in zip(found[1:], others, strict=True):
        if odd := next(differences(first, model, path=('model',)), ''):
            raise UserError(
                f"average takes networks that compute alike, but '{run.folder}' differs from "
                f"'{found[0].folder}': {odd}."
            )
    scored = tuple(run.scored for run in found)
    return _Source(tuple(run.weights for run in found), scored, found[0].config)


def _setup(config: Config) -> Setup:
    """All that makes a state of this config, on one device and without its data."""
    alone = dataclasses.replace(config, mesh=schema.Mesh(), init_from='')
    return Setup(alone, for_training=False, devices=jax.devices()[:1])


def _state_of(state: TrainState, setup: Setup) -> State:
    params, statistics, router_state = (
        leaves(jax.device_get(getattr(state, n))) for n in COLLECTIONS
    )
    return State(params, statistics, router_state, cleaned(setup.info.class_names))


def _write(
    workdir: str,
    setup: Setup,
    config: Config,
    config_file: str,
    state: TrainState,
    about: dict[str, Any],
) -> None:
    with continuing.opened(workdir, config, setup.info):
        record.write_config(workdir, config, config_file, setup.info, setup.cost, 0)
        with checkpoints.Checkpoints(workdir, 1) as saved:
            saved.save(0, state)
            if 0 not in saved.steps():
                raise NotWritten(
                    f"the result could not be written to '{workdir}'; make room, and start again."
                )
        write_json(epath.Path(workdir) / 'surgery.json', about)
