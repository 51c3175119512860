"""Reads what surgery begins with, and writes the folder of its result."""

import dataclasses
from typing import Any

import jax
from etils import epath

from moe_vision.common.errors import NotWritten
from moe_vision.common.files import write_json
from moe_vision.config import registry, schema
from moe_vision.config.schema import Config
from moe_vision.run_folder import checkpoints, record
from moe_vision.surgery.state import COLLECTIONS, Kind, State, leaves, replaced
from moe_vision.surgery.weights import files
from moe_vision.training import continuing
from moe_vision.training.setup import Setup
from moe_vision.training.step import TrainState


def make(request: Any) -> list[str]:
    """Does what a checked command line asks for (`__main__.Request`).

    Returns:
      What became of the arrays, in lines.

    Raises:
      UserError: arrays do not fit, or the folder cannot be written.
    """
    kind: Kind = registry.load(registry.SURGERY[request.kind].path)(request.args)
    source, source_config = _from_file(request.sources)
    config = kind.configured(source, source_config, request.config)
    setup = _setup(config)
    state = setup.fresh_state()
    fresh = _state_of(state, setup)
    result = kind(source, source_config, fresh, config)
    state = _with(state, result)
    about = {
        'kind': request.kind,
        'from': request.sources,
        'args': dataclasses.asdict(request.args),
        'told': result.told,
    }
    _write(request.workdir, setup, config, request.config_file, state, about)
    return [*result.told, f"wrote '{request.workdir}', a run before its first step"]


def _from_file(path: str) -> tuple[State, None]:
    arrays, names = files.read(path)
    return State(arrays, about={'names': names}), None


def _setup(config: Config) -> Setup:
    """All that makes a state of this config, on one device and without its data."""
    alone = dataclasses.replace(config, mesh=schema.Mesh(), init_from='')
    return Setup(alone, for_training=False, devices=jax.devices()[:1])


def _state_of(state: TrainState, setup: Setup) -> State:
    params, statistics, router_state = (
        leaves(jax.device_get(getattr(state, n))) for n in COLLECTIONS
    )
    return State(params, statistics, router_state, tuple(setup.info.class_names))


def _with(state: TrainState, result: State) -> TrainState:
    """The state with the arrays of a result, in its moving average, too, if it has one."""
    new = {n: replaced(getattr(state, n), getattr(result, n)) for n in COLLECTIONS}
    if jax.tree.leaves(state.ema):
        new['ema'] = replaced(state.ema, result.params)
    return dataclasses.replace(state, **new)


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
