"""Training and validation over time."""

from collections.abc import Callable

import numpy as np

from moe_vision.common.json_values import as_dict, number, value_at
from moe_vision.report import charts, formats, palette
from moe_vision.report.charts import Series
from moe_vision.report.markup import Markup, grid, missing, panel, section, tag
from moe_vision.report.read import Run

_HOW = (
    'How to read: training steps run from left to right. Blue is training, orange is '
    'validation; a gap in a curve means that no finite value was recorded. '
)


def column(rows: list[dict], *keys: str) -> np.ndarray:
    """The number under nested keys of each row `[N]`; NaN if it is missing."""
    return np.array([number(value_at(row, *keys)) for row in rows], float)


def steps(rows: list[dict]) -> np.ndarray:
    """The rows' steps `[N]`."""
    return np.array([row['step'] for row in rows], float)


def thinned(rows: list[dict]) -> str:
    """The remark that curves show averages; '' if they do not."""
    if len(rows) <= charts.BANDS:
        return ''
    return ' Each point is the mean over a few neighbouring rows.'


def counted(run: Run) -> str:
    """What the numbers of training count, and what those of evaluations count."""
    moe = as_dict(run.setting('model.moe'))
    noise = value_at(moe, 'router_args', 'noise')
    trained, clean = [], []
    if run.setting('dataset.augment') not in ('none', None):
        trained.append('augmented')
        clean.append('without augmentation')
    if any(number(run.setting(f'train.{key}')) > 0 for key in ('mixup', 'cutmix')):
        trained.append('with images mixed')
    if run.layers() and noise != 'none':
        kind = f'the router’s {noise} noise' if isinstance(noise, str) else 'the router’s noise'
        trained.append(f'with {kind}')
        clean.append('without noise in the router')
    if run.can_drop:
        trained.append(_room(moe, 'capacity_factor'))
        clean.append(_room(moe, 'eval_capacity_factor'))
    if number(run.setting('train.ema_decay')) > 0:
        trained.append('with the current weights')
        clean.append('with their moving average')
    return (
        f'Training counts each batch{_among(trained)} and averages the steps since the point '
        f'before. Validation and test count every image once{_among(clean)}.'
    )


def _among(parts: list[str]) -> str:
    return f' ({"; ".join(parts)})' if parts else ''


def _room(moe: dict, key: str) -> str:
    value = moe.get(key)
    now = f' = {value}' if isinstance(value, int | float | str) else ''
    return f'with the room that {key}{now} gives'


def render(run: Run) -> Markup:
    """Loss, accuracy, learning rate, the routers' losses, gradient norm, speed."""
    if not run.rows:
        return section('curves', 'Training', missing('No metrics have been written yet.'))
    wanted: dict[str, Markup | None] = {
        'loss': _panel('Loss', _both(run, 'task_loss', 'loss'), log=True),
        'accuracy': _panel('Accuracy', _both(run, 'accuracy'), formats.share, high=1.0),
        'learning rate': _panel('Learning rate', _train(run, 'learning_rate'), low=0.0),
        'losses': _losses(run),
        'gradient norm': _panel('Gradient norm', _train(run, 'grad_norm'), low=0.0),
        'speed': _panel(
            'Training images per second',
            _train(run, 'timing', 'images_per_second'),
            formats.tick,
            low=0.0,
        ),
    }
    shown = [picture for picture in wanted.values() if picture]
    gaps = [name for name, picture in wanted.items() if not picture and name != 'losses']
    note = tag('p', f'Not recorded: {", ".join(gaps)}.', class_='note') if gaps else None
    return section(
        'curves', 'Training', grid(shown, _HOW + counted(run) + thinned(run.split('train'))), note
    )


def _both(run: Run, *keys: str) -> list[Series]:
    """Training and validation, each by the first of the keys that it has."""
    colours = {'train': palette.ACCENT, 'validation': palette.WARM}
    splits = {name: run.split(name) for name in colours}
    have = {
        name: next((k for k in keys if any(k in row for row in rows)), keys[0])
        for name, rows in splits.items()
    }
    return [
        Series(name, steps(rows), column(rows, have[name]), colours[name], name == 'validation')
        for name, rows in splits.items()
    ]


def _train(run: Run, *keys: str) -> list[Series]:
    rows = run.split('train')
    return [Series('', steps(rows), column(rows, *keys))]


def _panel(
    title: str,
    series: list[Series],
    form: Callable[[float], str] = formats.significant,
    *,
    log: bool = False,
    low: float | None = None,
    high: float | None = None,
) -> Markup | None:
    shown = [s for s in series if s]
    if not shown:
        return None
    finite = np.concatenate([s.y[np.isfinite(s.y)] for s in shown])
    log = bool(log and finite.min() > 0 and finite.max() / finite.min() > 30)
    picture = charts.lines(shown, title, form, low=low, high=high, log=log)
    broken = [
        f'{np.isnan(s.y).sum()} {s.name} values are not finite numbers'
        for s in shown
        if np.isnan(s.y).any()
    ]
    return panel(f'{title} (log scale)' if log else title, picture, '; '.join(broken))


def _losses(run: Run) -> Markup | None:
    rows = run.split('train')
    names = list(dict.fromkeys(name for row in rows for name in as_dict(row.get('losses'))))
    series = [
        Series(name, steps(rows), column(rows, 'losses', name), palette.depth(i, len(names)))
        for i, name in enumerate(names)
    ]
    title = f'Added loss: {names[0]}' if len(names) == 1 else 'Added losses'
    return _panel(title, series)
