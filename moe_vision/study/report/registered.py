"""Writes what was fixed before the first run, what went wrong since, and what made the rows."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from moe_vision.common.json_values import as_dict, as_list, number
from moe_vision.report import formats
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
    comparisons = as_dict(study.get('comparisons'))
    primary = {name: c for name, c in comparisons.items() if as_dict(c).get('primary')}
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
                [_comparison(name, as_dict(c)) for name, c in primary.items()],
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
    known = {'test_accuracy': 'test accuracy with the weights after the last step'}
    return known.get(str(metric), metric)


def _comparison(name: str, c: dict[str, Any]) -> list[Words]:
    return [
        Name(name),
        [Name(str(c.get('arm'))), ' − ', Name(str(c.get('baseline')))],
        str(c.get('expected', 'none')),
    ]


def _pattern(name: str, comparisons: Any) -> list[str]:
    members = as_list(comparisons) or list(comparisons or ())
    return [Name(name), ': ', *joined((Name(str(m)) for m in members), ' and '), ' as expected']


def problems(analysis: Analysis) -> Section:
    """Everything that was missing, damaged or is flagged, one line each."""
    lines: list[Words] = [str(p) for p in analysis.problems]
    lines += [[Name(g.name), f': {flag}'] for g in analysis.gaps.values() for flag in g.remarks]
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
