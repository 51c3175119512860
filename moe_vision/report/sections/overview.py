"""The top of the page: what was run, what came out, whether routing is healthy."""

import math
from collections.abc import Callable

from moe_vision.common import limits
from moe_vision.common.json_values import as_dict, as_list, number, value_at
from moe_vision.report.formats import count, name_of, percent, share, significant, size
from moe_vision.report.health import DEFINITION, Verdict, by_class
from moe_vision.report.markup import Markup, card, section, tag
from moe_vision.report.read import Run

_MARK = {'good': '✓', 'warn': '!', 'bad': '✕', 'none': '·'}
_FACTORS = 6  # most scores at other capacity factors that are shown


def value(run: Run, key: str) -> float:
    """A number of the result or, while there is none, of the pre-flight."""
    final = number(run.result.get(key))
    return number(run.section('preflight').get(key)) if math.isnan(final) else final


def facts(run: Run) -> str:
    """One line on what was run."""
    data = run.section('dataset')
    shape = ' × '.join(str(s) for s in as_list(data.get('image_shape')))
    seed = run.result.get('seed', run.setting('seed'))
    known = [
        run.config_name and f'config {run.config_name}',
        f'{data["num_classes"]} classes' if data.get('num_classes') else None,
        shape and f'images {shape}',
        run.setting('model.name') and f'model {run.setting("model.name")}',
        None if seed is None else f'seed {seed}',
        f'{run.rows[-1]["step"]:,} steps' if run.rows else None,
        run.record.get('git_commit') and f'commit {str(run.record["git_commit"])[:10]}',
    ]
    return ' · '.join(str(fact) for fact in known if fact)


def verdict(judged: Verdict) -> Markup:
    """The verdict in one line, with its mark."""
    mark = tag('span', _MARK[judged.level], class_='mark', aria_hidden='true')
    return tag('p', mark, judged.line, class_=f'verdict {judged.level}')


def cards(run: Run) -> Markup:
    """The numbers to remember."""
    tested, open_, best = (
        number(run.result.get(key))
        for key in ('test_accuracy', 'test_accuracy_unbounded', 'best_validation_accuracy')
    )
    seen = [number(row.get('accuracy')) for row in run.split('validation')]
    if math.isnan(best):
        best = max(filter(math.isfinite, seen), default=math.nan)
    gain = open_ - tested if run.can_drop else math.nan
    flops, executed = value(run, 'flops'), value(run, 'flops_executed')
    total, active = value(run, 'params_total'), value(run, 'params_active')
    shown = [
        card(
            f'{run.scored.capitalize()} accuracy',
            percent(tested, 2),
            'not evaluated yet'
            if math.isnan(tested)
            else f'{percent(open_, 2)} with unbounded capacity ({100 * gain:+.2f} points)'
            if math.isfinite(gain)
            else None,
            big=True,
        ),
        *_baseline(run),
        card('Best validation accuracy', percent(best, 2), 'so far' if not run.result else None),
        *_training(run, seen),
        *_at_capacity(run),
        _rho(
            'ρ place',
            value(run, 'rho_place'),
            'of the dense twin’s compute is in the replaced blocks',
        ),
        *(() if run.dense else _routed_shares(run)),
        card(
            'Compute',
            f'{size(flops)}FLOP' if size(flops)[-1:].isalpha() else f'{size(flops)} FLOP',
            f'per image; {size(executed)} executed, {100 * (executed / flops - 1):+.0f} %'
            if executed > 0 and flops > 0 and not run.dense
            else 'per image',
        ),
        card(
            'Parameters',
            size(total),
            None if math.isnan(active) or run.dense else f'{size(active)} active per image',
        ),
        card('Speed', _speed(run), 'training images per second'),
    ]
    if run.layers():
        effective, dead = _routed(run, 'effective_experts', min), _routed(run, 'dead_experts', max)
        drops, orphans = _routed(run, 'drop_rate', max), _routed(run, 'orphan_rate', max)
        experts = max(run.num_experts(layer) for layer in run.layers())
        where = run.latest(run.layers()[0]).where
        if math.isfinite(number(run.result.get('effective_experts'))):
            where = f'on the {run.scored} set'
        worst = f'{where}, worst layer' if len(run.layers()) > 1 else where
        shown.append(
            card(
                'Effective experts',
                significant(effective),
                f'of {experts}; {count(dead)} dead; {worst}',
            )
        )
        if run.can_drop:
            lost = f'{percent(orphans)} of tokens lose all choices; {worst}'
            shown.append(card('Dropped choices', percent(drops), lost))
    return tag('div', shown, class_='cards')


def _baseline(run: Run) -> list[Markup]:
    _, images = by_class(run)
    if not images:
        return []
    frequent, baseline = limits.majority(images)
    words = f'of always answering ‘{name_of(run.class_names(), frequent)}’, the most frequent class'
    return [card('Majority baseline', percent(baseline, 2), f'the accuracy {words}')]


def _training(run: Run, validations: list[float]) -> list[Markup]:
    """Accuracy on training images beside the last validation, if the run asked for it."""
    trained = number(run.result.get('train_accuracy'))
    if math.isnan(trained):
        return []
    above = 100 * (trained - validations[-1]) if validations else math.nan
    images = count(number(run.setting('eval.train_images')))
    words = f'{above:+.2f} points against the last validation, ' if math.isfinite(above) else ''
    return [card('Training accuracy', percent(trained, 2), f'{words}on {images} images')]


def _at_capacity(run: Run) -> list[Markup]:
    scores = as_dict(run.result.get('accuracy_at_capacity'))
    known = [(f, number(v)) for f, v in list(scores.items())[:_FACTORS]]
    return [
        card(f'At capacity factor {factor}', percent(accuracy, 2), 'the same weights')
        for factor, accuracy in known
        if math.isfinite(accuracy)
    ]


def _routed_shares(run: Run) -> list[Markup]:
    return [
        _rho('ρ active', value(run, 'rho_active'), 'of the compute is in the chosen experts'),
        _rho(
            'ρ executed',
            value(run, 'rho_executed'),
            'of the executed compute is in the experts’ buffers, padding included',
        ),
    ]


def _routed(run: Run, key: str, worst: Callable[..., float]) -> float:
    """The result's number or, before there is one, the newest number of the worst layer."""
    final = number(run.result.get(key))
    newest = [number(run.latest(layer)[0].get(key)) for layer in run.layers()]
    known = [v for v in newest if math.isfinite(v)]
    return worst(known, default=math.nan) if math.isnan(final) else final


def _rho(name: str, part: float, note: str) -> Markup:
    if math.isnan(part):
        return card(name, '–', 'not known yet')
    width = f'width:{100 * min(max(part, 0), 1):.1f}%'
    meter = tag('span', tag('i', style=width), class_='meter', aria_hidden='true')
    return card(name, [percent(part), meter], note)


def _speed(run: Run) -> str:
    speed = number(run.result.get('images_per_second'))
    for row in reversed(run.split('train')):
        if math.isfinite(speed):
            break
        speed = number(value_at(row, 'timing', 'images_per_second'))
    return size(speed)


def health(run: Run, judged: Verdict) -> Markup:
    """The verdict's reasons in sentences, and what the folder does not hold yet."""
    points = tag('ul', (tag('li', p) for p in judged.points)) if judged.points else None
    fine = None
    if not judged.points and judged.level == 'good':
        most = f'no layer drops more than {share(run.drop_limit)} of its choices, '
        drops = most if run.can_drop else ''
        fine = tag(
            'p',
            'No dead experts, every layer uses the equivalent of at least half of its experts, '
            f'{drops}and every class is '
            f'recognised in at least {share(limits.RIGHT)} of its images.',
        )
    lacking = None
    if run.missing:
        lacking = tag(
            'div',
            tag('strong', 'Missing from this folder'),
            tag('ul', (tag('li', m) for m in run.missing)),
            class_='missing',
        )
    if not (fine or points):
        fine = tag('p', judged.line)
    definition = tag('p', DEFINITION, class_='note') if run.layers() else None
    return section('health', 'Health', fine, points, definition, lacking)
