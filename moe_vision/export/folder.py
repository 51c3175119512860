"""Writes an exported folder: weights, programs, and what describes them, for people and as data."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import input_pipeline
from moe_vision.common import files
from moe_vision.common.errors import UserError
from moe_vision.common.json_values import as_dict, finite
from moe_vision.config import check as config_lib
from moe_vision.config.check import CARD
from moe_vision.config.places import can_drop
from moe_vision.export import program
from moe_vision.export.options import Request
from moe_vision.export.readme import readme
from moe_vision.run_folder import checkpoints, exported, record
from moe_vision.training import trained

_MEANINGS = {
    'evaluation': 'experts have the slots of the evaluation, so choices may be dropped',
    'unbounded': 'experts have room for every choice, so none is dropped',
}


def write(request: Request) -> dict[str, int]:
    """Writes the folder that a request asks for; returns the size of each file in bytes.

    Raises:
      UserError: there is no run, its weights cannot be read, do not fit its config or are too many
        for a program, or the network cannot be traced.
    """
    folder = request.workdir
    config, info = trained.described(folder)
    state = checkpoints.load_raw(folder, 'best' if request.best else 'latest')
    with trained.fitting(folder):
        network = trained.Trained(config, info, state)
    if request.platforms:
        program.check_size(network)
    card = _card(request, network)
    with files.new_folder(request.out) as out:
        for name, data in _contents(request, network):
            (out / name).write_bytes(data)
            card['files'][name] |= {'bytes': len(data), 'sha256': exported.digest(data)}
        (out / 'README.md').write_text(readme(card))
        files.write_json(out / CARD, card, UserError)  # the last one: it makes the folder whole
    return {name: file['bytes'] for name, file in card['files'].items()}


def _contents(request: Request, network: trained.Trained) -> Iterator[tuple[str, bytes]]:
    """The name and the bytes of each file that others can use."""
    yield exported.WEIGHTS, exported.packed(network.variables)
    for name, (platform, capacity) in _programs(request, network).items():
        yield name, bytes(program.make(network, platform, capacity).serialize())


def _programs(request: Request, network: trained.Trained) -> dict[str, tuple[str, str]]:
    """Platform and rule of capacity of each program. Both rules are one if nothing is dropped."""
    capacities = request.capacities
    if not can_drop(network.config.model):
        capacities = capacities[:1]
    return {f'{c}.{p}.jax_export': (p, c) for c in capacities for p in request.platforms}


def _card(request: Request, network: trained.Trained) -> dict[str, Any]:
    """What describes the folder, but for the sizes and digests of its files.

    'config' and 'dataset' are as in a run's config.json, without the folder of the data. What an
    exported folder says of its license, weights and metrics is said of its copy, too.
    """
    config, info, folder = network.config, network.info, request.workdir
    about = as_dict(files.read_json(config_lib.record_of(folder)))
    config = dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, data_dir=''))
    batch, shape = program.batch(network), list(info.image_shape)
    listed: dict[str, dict[str, Any]] = {exported.WEIGHTS: {'holds': 'weights'}}
    for name, (platform, capacity) in _programs(request, network).items():
        listed[name] = {'holds': 'program', 'platform': platform, 'capacity': capacity}
    return {
        'license': request.license or str(about.get('license') or ''),
        'network': config.model.name,
        'step': network.step,
        'seed_key': network.seed_key.tolist(),
        'weights': 'best on validation' if request.best else str(about.get('weights') or 'last'),
        'metrics': _metrics(folder) or about.get('metrics'),
        'classes': list(info.class_names),
        'preprocessing': input_pipeline.evaluation_steps(config.dataset, info.image_shape),
        'inputs': {
            'images': {'type': 'uint8', 'shape': [batch, *shape]},
            'valid': {'type': 'bool', 'shape': [batch]},
        },
        'outputs': {'logits': {'type': 'float32', 'shape': [batch, info.num_classes]}},
        'images_per_group': network.unit,
        'capacities': _MEANINGS
        if can_drop(config.model)
        else dict.fromkeys(_MEANINGS, 'nothing is dropped'),
        'files': listed,
        'versions': about.get('versions'),
        'git_commit': about.get('git_commit'),
        'exported_with': {'versions': record.versions(), 'git_commit': record.git_commit()},
        'dataset': dataclasses.asdict(info),
        'config': config_lib.to_dict(config),
    }


def _metrics(folder: str) -> dict[str, Any] | None:
    """What result.json of the run holds; None if it has not finished."""
    try:
        return as_dict(finite(files.read_json(f'{folder}/result.json')))
    except FileNotFoundError:
        return None
    except ValueError as e:
        raise UserError(
            f"'{folder}/result.json' cannot be read ({e}); restore it, or delete it to export "
            'without metrics.'
        ) from e
