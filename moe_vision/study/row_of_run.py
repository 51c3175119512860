"""Makes the row of a cell from the folder of its run."""

from pathlib import Path
from typing import Any

from input_pipeline import scored_split
from moe_vision.common.errors import UserError
from moe_vision.common.files import read_json
from moe_vision.study import fields, registration

_LAYER_KEYS = (
    'effective_experts',
    'dead_experts',
    'drop_rate',
    'orphan_rate',
    'gate_entropy',
    'temperature',
    'max_over_mean',
)
_APART = ('images_per_second', 'scored_split')  # of result.json, but not of a row's result
_PREFLIGHT_KEYS = (
    *('params_total', 'params_active', 'rho_place', 'rho_active', 'rho_executed'),
    *('flops', 'flops_executed'),
)


def collect(
    folder: str, study: str, arm: str, seed: int, digest: str, error: str | None = None
) -> dict[str, Any]:
    """The row of a run that ended, from the files of its folder alone.

    Args:
      folder: the run's folder.
      digest: hash of the pre-registration.
      error: for a diverged run, where its loss stopped being finite; else None.

    Raises:
      UserError: a file of the run cannot be read.
    """
    try:
        row = _collect(Path(folder), study, arm, seed, digest, error)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(
            f"a file of the run in '{folder}' is damaged ({type(e).__name__}: {e}); "
            'run again: that writes it anew.'
        ) from e
    if why := fields.wrong(row):  # it could not be read again, and the cell would be trained anew
        raise UserError(f'a row of this run could not be used: {why}.')
    return row


def _collect(
    run: Path, study: str, arm: str, seed: int, digest: str, error: str | None
) -> dict[str, Any]:
    from moe_vision.run_folder import metrics

    about = read_json(run / 'config.json')
    sizes = about['dataset']['split_sizes']
    scored = scored_split(sizes)
    row = {
        'study': study,
        'arm': arm,
        'seed': seed,
        'run_seed': about['config']['seed'],
        'preregistration': digest,
        'status': 'diverged' if error else 'done',
        'error': (error or '').split(';')[0],
        'config': registration.resolved(about['config']),
        'versions': about['versions'],
        'git_commit': about['git_commit'],
        'device': about['device'],
        'num_classes': about['dataset']['num_classes'],
        'images': sizes[scored],
        'data': about['dataset'].get('digest', ''),
        'result': {k: about['preflight'][k] for k in _PREFLIGHT_KEYS},
        'correct': '',
        'layers': {},
    }
    if not error:
        result, test = (read_json(run / f'{name}.json') for name in ('result', 'evaluation'))
        row['result'] = {k: v for k, v in result.items() if k not in _APART}
        row['correct'] = test.get('correct', '')
        row['layers'] = {
            name: {k: v for k, v in layer.items() if k != 'expert_by_class'}
            for name, layer in test['layers'].items()
        }
    if scored != 'test':
        row['scored_split'] = scored
    if sizes.get('validation'):
        row['validation_images'] = sizes['validation']
    row['curve'] = [
        {k: r[k] for k in ('step', 'epoch', 'accuracy', 'loss')}
        | {'layers': {n: {k: x[k] for k in _LAYER_KEYS} for n, x in r['layers'].items()}}
        for r in metrics.read(str(run))
        if r['split'] == 'validation'
    ]
    probed = run / 'mechanism.json'
    row['mechanism'] = read_json(probed) if probed.exists() and not error else None
    return row
