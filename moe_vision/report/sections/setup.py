"""What was run: blocks and their compute, capacities, config, versions."""

import json
import math

from moe_vision.common.json_values import as_dict, as_list, number
from moe_vision.report.formats import count, percent, significant, size
from moe_vision.report.markup import Child, Markup, figure, missing, section, table, tag
from moe_vision.report.read import Run

_ROUTED = 'Orange blocks are routed; “executed” includes the padding of the experts’ buffers.'
_DENSE = 'Orange blocks stand where the routed network of this config routes.'


def compute(run: Run) -> Markup:
    """The block table and the capacity table."""
    preflight = run.section('preflight')
    blocks = [as_dict(b) for b in as_list(preflight.get('blocks'))]
    parts: list[Markup] = []
    if blocks:
        parts.append(
            figure(
                _blocks(blocks, run.dense),
                'How to read: a bar is the block’s share of one '
                'image’s forward FLOPs (2 per multiply-add). ' + (_DENSE if run.dense else _ROUTED),
            )
        )
    else:
        parts.append(missing('There is no table of blocks: config.json has no pre-flight.'))
    capacity = as_dict(preflight.get('capacity'))
    if any(number(as_dict(c).get('capacity')) != 0 for c in capacity.values()):  # 0: soft routing
        parts += [
            tag('h3', 'Capacity'),
            figure(
                _capacity(capacity),
                'How to read: every expert '
                'takes at most C tokens of a group. The effective factor C·E/(k·T) is the number '
                'of slots per choice; with perfect balance, 1 is just enough.',
            ),
        ]
    return section('compute', 'Compute', parts)


def _blocks(blocks: list[dict], dense: bool) -> Markup:
    whole = sum(f for b in blocks if math.isfinite(f := number(b.get('flops')))) or math.nan
    kinds, twins = (any(key in block for block in blocks) for key in ('kind', 'flops_twin'))

    mark = 'replaced' if dense else 'routed'

    def row(block: dict) -> list[Child]:
        flops, executed = number(block.get('flops')), number(block.get('flops_executed'))
        share = flops / whole
        width = f'width:{100 * share:.2f}%' if math.isfinite(share) else 'width:0'
        routed = bool(block.get('routed'))
        bar = tag(
            'span', tag('i', style=width, class_='routed' if routed else None), class_='share'
        )
        return [
            tag('th', str(block.get('name', '?')), scope='row'),
            *([str(block.get('kind', ''))] if kinds else []),
            tag('span', mark, class_='routed-mark') if routed else '',
            tag('td', bar, percent(share), class_='withbar'),
            size(flops),
            *([] if dense else [size(executed)]),
            *([size(number(block.get('flops_twin')))] if twins else []),
            size(number(block.get('params'))),
        ]

    head = [
        'block',
        *(['kind'] if kinds else []),
        '',
        'share of FLOPs',
        'FLOPs',
        *([] if dense else ['executed']),
        *(['in the dense twin'] if twins else []),
        'parameters',
    ]
    return table(head, map(row, blocks), class_='numbers blocks', label='Blocks and their compute')


def _capacity(capacity: dict) -> Markup:
    rows = [
        [
            tag('th', layer, scope='row'),
            count(number(c.get('group_size'))),
            count(number(c.get('num_groups'))),
            *(
                form(number(c.get(when + key)))
                for when in ('', 'eval_')
                for key, form in (('capacity', count), ('effective_factor', significant))
            ),
        ]
        for layer, c in ((layer, as_dict(c)) for layer, c in capacity.items())
    ]
    head = (
        'layer',
        'tokens per group',
        'groups',
        'C in training',
        'effective factor',
        'C in evaluation',
        'effective factor',
    )
    return table(head, rows, class_='numbers', label='Capacity of the routed layers')


def record(run: Run) -> Markup:
    """Config, data set and versions, folded away."""
    config = run.section('config')
    data = {k: v for k, v in run.section('dataset').items() if k != 'class_names'}
    folds = [
        _fold('Config', flat(config), run.record.get('config_file')),
        _fold('Data set', flat(data)),
        _fold(
            'Versions',
            {
                **flat(run.section('versions')),
                **(
                    {'git commit': str(run.record['git_commit'])}
                    if run.record.get('git_commit')
                    else {}
                ),
            },
        ),
        _fold('Result', flat(run.result)),
    ]
    shown = [f for f in folds if f]
    return section(
        'record', 'Record', shown or missing('Neither config nor versions were recorded.')
    )


def _fold(name: str, values: dict[str, str], note: str | None = None) -> Markup | None:
    if not values:
        return None
    rows = [(tag('th', key, scope='row'), tag('td', tag('code', v))) for key, v in values.items()]
    title = tag('summary', name, tag('span', f' {note}', class_='note') if note else None)
    return tag('details', title, table(('key', 'value'), rows, class_='record', label=name))


def flat(tree: dict, prefix: str = '') -> dict[str, str]:
    """A nested dictionary as dotted keys with JSON values."""
    out: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            out |= flat(value, f'{prefix}{key}.')
        else:
            out[prefix + key] = json.dumps(value, ensure_ascii=False)
    return out
