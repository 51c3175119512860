"""Writes what was fixed before the first run, what went wrong since, and what made the rows."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from moe_vision.common.json_values import as_dict, as_list, number
from moe_vision.report import formats
from moe_vision.report.formats import pp
from moe_vision.study.analysis import verdicts
from moe_vision.study.analysis.analyse import Analysis
from moe_vision.study.report.document import (
    Block,
    Bullets,
    Heading,
    Name,
    Section,
    Table,
    Text,
    Words,
    joined,
)

_MODES = {
    'one_by_one': 'one after another, with the same compiled program',
    'together': 'together, as one program',
}


def section(analysis: Analysis) -> Section:
    """The pre-registration record in words."""
    study = analysis.study
    rows: list[list[Words]] = [['hash', Name(analysis.hash)]]
    mode = str(study.get('seed_mode', ''))
    alpha, margin = study.get('alpha'), study.get('margin')
    for what, value in (
        ('metric', _metric(study.get('metric'))),
        ('α', formats.signed(number(alpha))),
        ('correction', f'{_correction(study)}, over the primary comparisons'),
        ('margin of equivalence', f'±{formats.signed(number(margin))} pp'),
        ('seeds', ', '.join(map(str, as_list(study.get('seeds'))))),
        ('training of seeds', _MODES.get(mode, mode)),
        ('tuning', study.get('tuning')),
        ('exclusion', study.get('exclusion')),
        ('stopping', study.get('stopping')),
    ):
        rows.append([what, str(value or formats.NONE)])
    blocks: list[Block] = [
        Text(
            'As registered. The hash is that of the whole record; Provenance counts the rows that '
            'carry it.'
        ),
        Table(('what', 'as registered'), rows, 'pre-registration'),
    ]
    hypotheses = [str(h) for h in as_list(study.get('hypotheses'))]
    if hypotheses:
        blocks += [Heading('Hypotheses'), Bullets(hypotheses)]
    if study.get('tuned'):
        blocks += [Heading('Tuning'), *_tuned(study)]
    comparisons = verdicts.registered(study)
    primary = {name: c for name, c in comparisons.items() if c.get('primary')}
    if comparisons:
        rest = len(comparisons) - len(primary)
        blocks += [
            Heading('Comparisons'),
            Text(
                f'Of {formats.several(len(comparisons), "registered comparison")}, '
                f'{len(primary)} are primary. The other {rest} were registered as exploratory; '
                'the table of verdicts lists them with their expected directions.'
            ),
            Table(
                ('primary comparison', 'arm − baseline', 'expected'),
                [_comparison(name, c) for name, c in primary.items()],
                'primary',
            ),
        ]
    patterns = as_dict(study.get('patterns'))
    if patterns:
        blocks += [Heading('Patterns'), Bullets([_pattern(n, p) for n, p in patterns.items()])]
    return Section('registered', 'Pre-registration', blocks)


def _correction(study: dict[str, Any]) -> str:
    return str(study.get('correction', formats.NONE)).capitalize()


def _metric(metric: Any) -> Any:
    known = {
        f'{split}_accuracy': f'{split} accuracy with the weights after the last step'
        for split in ('test', 'validation')
    }
    return known.get(str(metric), metric)


def _comparison(name: str, c: dict[str, Any]) -> list[Words]:
    what: Words = [Name(str(c.get('arm'))), ' − ', Name(str(c.get('baseline')))]
    if 'comparisons' in c:
        what = ['trend over ', *joined(Name(str(m)) for m in as_list(c['comparisons']))]
    elif 'pairs' in c:
        pairs = [as_list(pair) for pair in as_list(c['pairs'])]
        what = ['family difference: ', *joined(joined(map(_name, p), ' − ') for p in pairs)]
    return [Name(name), what, str(c.get('expected', 'none'))]


def _name(value: Any) -> Name:
    return Name(str(value))


def _tuned(study: dict[str, Any]) -> list[Block]:
    """The grid, every score and what was chosen, as the record has them from `study.tuning`."""
    tuned, followers = as_dict(study['tuned']), as_dict(as_dict(study.get('tune')).get('arms'))
    rows: list[list[Words]] = []
    for arm, of_arm in as_dict(tuned.get('arms')).items():
        chosen = as_dict(of_arm).get('chosen')
        for score in map(as_dict, as_list(as_dict(of_arm).get('scores'))):
            seeds = [pp(number(v), sign=False) for v in as_list(score.get('seeds'))]
            rows.append(
                [
                    Name(arm),
                    _point(score.get('point')),
                    pp(number(score.get('validation_accuracy')), sign=False),
                    ', '.join(seeds),
                    'chosen' if score.get('point') == chosen else '',
                ]
            )
    taken = [
        [Name(str(arm)), ' gives its setting to ', *joined(map(_name, as_list(names)))]
        for arm, names in followers.items()
        if as_list(names)
    ]
    text: list[str] = [
        'A stage before this study tried the same grid with each tuned arm, on validation, with '
        f'seeds {", ".join(map(str, as_list(as_dict(study.get("tune")).get("seeds"))))}, which '
        'the study does not report. The highest mean accuracy after the last step won; the first '
        'of equal ones. The best common setting, by the mean over tuned arms, is ',
        *_point(tuned.get('common')),
        '. The stage has pre-registration ',
        Name(str(tuned.get('registration'))[:12]),
        '.',
    ]
    head = ('arm', 'setting', 'validation accuracy, %', 'by seed', '')
    return [Text(text), Table(head, rows, 'tuning'), *([Bullets(taken)] if taken else [])]


def _point(point: Any) -> list[str]:
    """`train.learning_rate` = 0.01, `train.weight_decay` = 0.0"""
    return joined([Name(str(key)), f' = {value}'] for key, value in as_dict(point).items())


def _pattern(name: str, comparisons: Any) -> list[str]:
    members = as_list(comparisons) or list(comparisons or ())
    return [Name(name), ': ', *joined((Name(str(m)) for m in members), ' and '), ' as expected']


def problems(analysis: Analysis) -> Section:
    """Everything that was missing, damaged or is flagged, one line each."""
    lines: list[Words] = [str(p) for p in analysis.problems]
    lines += [[Name(f.name), f': {flag}'] for f in analysis.findings.values() for flag in f.remarks]
    block: Block = Bullets(lines) if lines else Text('Nothing was missing, damaged or flagged.')
    return Section('problems', 'Problems and flags', [block])


def provenance(analysis: Analysis) -> Section:
    """Devices, versions, commits and hashes of the rows, with how many rows each."""
    rows = [row for _, _, row in analysis.cells()]
    if not rows:
        return Section('provenance', 'Provenance', [Text('There are no rows.', 'missing')])
    table: list[list[Words]] = []
    for what, values in (
        ('pre-registration', (row.get('preregistration') for row in rows)),
        ('commit', (row.get('git_commit') for row in rows)),
        ('device', (row.get('device') for row in rows)),
        *(
            (f'version of {name}', [as_dict(row.get('versions')).get(name) for row in rows])
            for name in sorted({str(n) for row in rows for n in as_dict(row.get('versions'))})
        ),
    ):
        table.append([what, _counted(values)])
    return Section(
        'provenance',
        'Provenance',
        [
            Text(f'Counted over {formats.several(len(rows), "row")}.'),
            Table(('what', 'value (rows)'), table, 'provenance'),
        ],
    )


def _counted(values: Iterable[Any]) -> list[str]:
    counts = Counter('not recorded' if v in (None, '') else str(v) for v in values)
    return joined([Name(value), f' ({times})'] for value, times in sorted(counts.items()))
