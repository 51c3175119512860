"""Puts two runs, A and B, side by side in one page: what they reach, what they cost, by class."""

import base64
import binascii
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from moe_vision.common.json_values import as_dict, number
from moe_vision.report import charts, formats, health, markup, palette
from moe_vision.report.charts import Series
from moe_vision.report.formats import count, name_of, percent, pp, significant, size, times
from moe_vision.report.markup import Child, Markup, card, figure, grid, missing, section, table, tag
from moe_vision.report.read import Run
from moe_vision.report.sections import overview
from moe_vision.report.sections.accuracy import bar, shares
from moe_vision.report.sections.curves import column, counted, steps
from moe_vision.report.sections.setup import flat

_ANCHORS = [
    ('gap', 'Gap'),
    ('curves', 'Training'),
    ('numbers', 'Numbers'),
    ('classes', 'Classes'),
    ('config', 'Config'),
]
_COLOURS = (palette.ACCENT, palette.WARM)
_SHOWN = 40  # most classes in sight; further ones are folded away
_ONE_SEED = (
    'Each is one training run. The interval says how much the gap may be due to the choice of '
    'images; another seed can move it further. A study with several seeds says more.'
)


def render(a: Run, b: Run) -> str:
    """The page of two runs, complete from doctype to footer."""
    return markup.page(
        'Two runs side by side',
        f'A: {a.name} — B: {b.name}',
        'A is blue, B is orange; a difference is A − B, a ratio is A ÷ B.',
        _ANCHORS,
        (_gap(a, b), _curves(a, b), _numbers(a, b), _classes(a, b), _config(a, b)),
        source='the files in both runs’ folders',
        command='python -m moe_vision.report --workdir=A --beside=B',
        css='.verdict b{flex:none}',
    )


def differs(a: Run, b: Run) -> list[str]:
    """Why accuracies of the two runs cannot be compared; [] if they were scored on one set."""
    why = []
    for key, words in (
        ('name', 'data set'),
        ('digest', 'data'),
        ('class_names', 'classes'),
    ):
        ours, theirs = (run.section('dataset').get(key) for run in (a, b))
        if ours and theirs and ours != theirs:
            shown = f' ({_short(ours)} and {_short(theirs)})' if key != 'class_names' else ''
            why.append(f'the {words}{"s" * (key == "name")} differ{shown}')
            break
    if a.scored != b.scored:
        why.append(f'A was scored on its {a.scored} set, B on its {b.scored} set')
    ours, theirs = (_images(run) for run in (a, b))
    if math.isfinite(ours) and math.isfinite(theirs) and ours != theirs:
        why.append(f'A was scored on {count(ours)} images, B on {count(theirs)}')
    return why


def _short(value: Child) -> str:
    return str(value)[:16]


def _images(run: Run) -> float:
    confusion = run.confusion()
    whole = number(run.evaluation.get('images'))
    return whole if math.isfinite(whole) or confusion is None else float(np.nansum(confusion))


def over_images(a: Run, b: Run) -> tuple[float, float, int, int]:
    """The gap's standard error over images in points, and how many only A and only B got right.

    It is sqrt(n10 + n01 - (n10 - n01)^2 / n) / n, from n10 images that only A got right and n01
    that only B got right, of n. NaN if the runs do not say which images were right.

    Returns:
      (gap, standard error, n10, n01); the first two in percentage points.
    """
    ours, theirs = _right(a), _right(b)
    if ours is None or theirs is None or len(ours) != len(theirs):
        return math.nan, math.nan, 0, 0
    n = len(ours)
    only_a, only_b = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    error = math.sqrt(max(only_a + only_b - (only_a - only_b) ** 2 / n, 0)) / n
    return 100 * (only_a - only_b) / n, 100 * error, only_a, only_b


def _right(run: Run) -> np.ndarray | None:
    """Which images were right, bool [N] in the order of evaluation; None if it is not known."""
    images, bits = _images(run), run.evaluation.get('correct')
    try:
        data = base64.b64decode(bits if isinstance(bits, str) else '', validate=True)
    except (binascii.Error, ValueError):
        return None
    if not images > 0 or len(data) != math.ceil(images / 8):
        return None
    return np.unpackbits(np.frombuffer(data, np.uint8))[: int(images)].astype(bool)


def _gap(a: Run, b: Run) -> Markup:
    ours, theirs = (number(run.result.get('test_accuracy')) for run in (a, b))
    why = differs(a, b)
    cards = [_accuracy('A', a, ours), _accuracy('B', b, theirs)]
    note: Markup | None = None
    if not why:
        gap, error, only_a, only_b = over_images(a, b)
        words = None
        if math.isfinite(error):
            low, high = gap - 1.96 * error, gap + 1.96 * error
            words = (
                f'95 % over images: {formats.interval(low, high)}; only A is right on '
                f'{count(only_a)} images, only B on {count(only_b)}'
            )
            note = tag('p', _ONE_SEED, class_='note')
        cards.insert(0, card('Gap, A − B, points', pp(100 * (ours - theirs)), words, big=True))
    for key, name in (
        ('flops', 'Cost, A ÷ B'),
        ('flops_executed', 'Executed, A ÷ B'),
        ('params_total', 'Parameters, A ÷ B'),
        ('images_per_second', 'Training speed, A ÷ B'),
    ):
        x, y = (overview.value(run, key) for run in (a, b))
        if x > 0 and y > 0:
            cards.append(card(name, times(x / y), f'{size(x)} and {size(y)}{_UNITS.get(key, "")}'))
    lines = [
        tag('p', tag('b', letter), judged.line, class_=f'verdict {judged.level}')
        for letter, judged in (('A', health.judge(a)), ('B', health.judge(b)))
    ]
    refused = missing(f'There is no gap, because {formats.all_of(why)}.') if why else None
    gone = [tag('li', f'{x}: {m}') for x, run in (('A', a), ('B', b)) for m in run.missing]
    lacking = tag('div', tag('ul', gone), class_='missing') if gone else None
    return section(
        'gap', 'Gap and cost', refused, tag('div', cards, class_='cards'), note, lines, lacking
    )


_UNITS = {'flops': ' FLOP per image', 'flops_executed': ' FLOP per image'}


def _accuracy(letter: str, run: Run, value: float) -> Markup:
    seed = run.result.get('seed', run.setting('seed'))
    known = [f'{run.folder}', None if seed is None else f'seed {seed}']
    facts = ' · '.join(k for k in known if k)
    return card(f'{run.scored.capitalize()} accuracy of {letter}', percent(value, 2), facts)


def _curves(a: Run, b: Run) -> Markup:
    def both(split: str, *keys: str) -> list[Series]:
        return [
            Series(letter, steps(rows), _first(rows, keys), colour, split == 'validation')
            for letter, run, colour in zip('AB', (a, b), _COLOURS, strict=True)
            for rows in [run.split(split)]
        ]

    def worst(key: str, of: Callable[[np.ndarray], float]) -> list[Series]:
        return [
            Series(letter, steps(rows), _worst(rows, key, of), colour, True)
            for letter, run, colour in zip('AB', (a, b), _COLOURS, strict=True)
            for rows in [run.split('validation')]
        ]

    wanted = [
        ('Validation accuracy', both('validation', 'accuracy'), formats.share),
        ('Validation loss', both('validation', 'loss'), significant),
        ('Training accuracy', both('train', 'accuracy'), formats.share),
        ('Training loss', both('train', 'task_loss', 'loss'), significant),
        ('Effective experts in validation', worst('effective_experts', np.min), significant),
        ('Dropped choices in validation', worst('drop_rate', np.max), formats.share),
    ]
    panels = [
        markup.panel(title, charts.lines(series, title, form))
        for title, series, form in wanted
        if any(series)
    ]
    if not panels:
        return section('curves', 'Training', missing('Neither run has written metrics.'))
    how = (
        'How to read: training steps run from left to right; blue is A, orange is B. Of several '
        'routed layers, the worst is drawn. '
    )
    same = counted(a) == counted(b)
    how += counted(a) if same else f'In A: {counted(a)} In B: {counted(b)}'
    return section('curves', 'Training', grid(panels, how))


def _first(rows: list[dict], keys: Sequence[str]) -> np.ndarray:
    """The column of the first key that the rows have."""
    return column(rows, next((k for k in keys if any(k in row for row in rows)), keys[0]))


def _worst(rows: list[dict], key: str, of: Callable[[np.ndarray], float]) -> np.ndarray:
    """The worst layer's value in each row `[N]`; NaN where there is none."""
    out = []
    for row in rows:
        found = (number(as_dict(x).get(key)) for x in as_dict(row.get('layers')).values())
        known = [v for v in found if math.isfinite(v)]
        out.append(float(of(np.array(known))) if known else math.nan)
    return np.array(out, float)


def _numbers(a: Run, b: Run) -> Markup:
    scored = f'{a.scored} ' if a.scored == b.scored else ''
    forms: dict[str, tuple[str, Callable[[float], str]]] = {
        'test_accuracy': (f'{scored}accuracy, last weights', lambda v: percent(v, 2)),
        'test_accuracy_selected': (
            f'{scored}accuracy, best in validation',
            lambda v: percent(v, 2),
        ),
        'test_accuracy_unbounded': (
            f'{scored}accuracy, unbounded capacity',
            lambda v: percent(v, 2),
        ),
        'best_validation_accuracy': ('best validation accuracy', lambda v: percent(v, 2)),
        'train_accuracy': ('accuracy on training images, as evaluated', lambda v: percent(v, 2)),
        'test_loss': (f'{scored}loss', significant),
        'steps': ('steps', count),
        'flops': ('FLOPs per image', size),
        'flops_executed': ('FLOPs executed', size),
        'params_total': ('parameters', size),
        'params_active': ('parameters active', size),
        'rho_place': ('ρ place', percent),
        'rho_active': ('ρ active', percent),
        'rho_executed': ('ρ executed', percent),
        'images_per_second': ('training images per second', size),
        'effective_experts': ('effective experts, worst layer', significant),
        'dead_experts': ('dead experts, worst layer', count),
        'drop_rate': ('dropped choices, worst layer', percent),
        'orphan_rate': ('orphans, worst layer', percent),
    }
    routed = {'effective_experts', 'dead_experts'}
    room = {'test_accuracy_unbounded', 'drop_rate', 'orphan_rate'}

    def value(run: Run, key: str) -> float:
        speaks = run.layers() if key in routed else run.can_drop if key in room else True
        return overview.value(run, key) if speaks else math.nan

    rows: list[list[Child]] = []
    for key, (words, form) in forms.items():
        x, y = value(a, key), value(b, key)
        if math.isfinite(x) or math.isfinite(y):
            rows.append([tag('th', words, scope='row'), form(x), form(y)])
    if not rows:
        return section('numbers', 'Numbers', missing('Neither run has a result.'))
    return section('numbers', 'Numbers', table(('', 'A', 'B'), rows, class_='numbers'))


def _classes(a: Run, b: Run) -> Markup:
    ours, theirs = a.confusion(), b.confusion()
    if ours is None or theirs is None or ours.shape != theirs.shape or differs(a, b):
        words = 'Accuracy by class is not compared: that needs two evaluations of the same set.'
        return section('classes', 'Accuracy by class', missing(words))
    names, images = a.class_names(), np.nansum(ours, 1)
    x, y = shares(ours), shares(theirs)
    change = np.nan_to_num(x - y)
    order = np.argsort(-np.abs(change), kind='stable').tolist()

    def rows(classes: Iterable[int]) -> Iterable[list[Child]]:
        for c in classes:
            yield [
                tag('th', name_of(names, c), scope='row'),
                count(images[c]),
                bar(float(x[c])),
                bar(float(y[c]), warm=True),
                pp(float(100 * (x[c] - y[c]))),
            ]

    head = ('class', 'images', 'right in A', 'right in B', 'A − B, points')
    parts = [table(head, rows(order[:_SHOWN]), class_='numbers classes')]
    if rest := order[_SHOWN:]:
        title = tag('summary', f'The other {len(rest)} of {len(order)} classes')
        parts.append(tag('details', title, table(head, rows(rest), class_='numbers classes')))
    how = 'How to read: the share of each class’s images that were right; the largest change first.'
    return section('classes', 'Accuracy by class', figure(parts, how))


def _config(a: Run, b: Run) -> Markup:
    ours, theirs = (flat(run.section('config')) for run in (a, b))
    if not (ours and theirs):
        return section('config', 'Config', missing('The config of one of the runs is not known.'))
    rows = [
        (
            tag('th', key, scope='row'),
            *(tag('code', s.get(key, '–')) for s in (ours, theirs)),
        )
        for key in dict.fromkeys([*ours, *theirs])
        if ours.get(key) != theirs.get(key)
    ]
    if not rows:
        return section('config', 'Config', tag('p', 'The configs are equal.'))
    return section(
        'config', 'What differs in the config', table(('key', 'A', 'B'), rows, class_='record')
    )
