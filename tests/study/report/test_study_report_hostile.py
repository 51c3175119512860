"""Hostile names, damaged rows and studies that have hardly begun still give a report."""

import csv
import dataclasses
import html.parser
import math
import os
import re

import pytest
import study_report_cases as cases

from moe_vision.common.errors import NotWritten
from moe_vision.study import report
from moe_vision.study.analysis.analyse import Analysis, analyse
from moe_vision.study.report import document

HOSTILE = (
    '<script>alert(1)</script>',
    'a|b',
    '`; rm',
    '"><img src=x onerror=alert(1)>',
    '</style>',
    '$\\frac{x}$',
    '[l](javascript:1)',
    ']]><svg onload=x>',
    'bell\x07\u202enab',
    'x' * 400,
    '日本語',
)
TAGS = set(
    'html head meta title style body header main footer section nav a p h1 h2 h3 ul li div '
    'span i code figure figcaption table thead tbody tr th td svg g defs path clippath use '
    'text rect'.split()
)
VOID = {'meta'}


class Page(html.parser.HTMLParser):
    """The elements of a page; asserts that each one is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def hostile() -> cases.Maker:
    maker = cases.Maker(3)
    base = maker.arm(HOSTILE[0], 98, 0.0, routed=False)
    names = [
        maker.compare(
            maker.arm(name, 98.2, 0.1 * (i + 1)), base, 'positive', i == 0, name=f'{name} vs {base}'
        )
        for i, name in enumerate(HOSTILE[1:])
    ]
    for kind in ('gap_against_rho', 'k_ablation', 'soft_axis'):
        maker.figures.append(
            {
                'kind': kind,
                'title': HOSTILE[3],
                'series': {HOSTILE[0]: names[:5], HOSTILE[8]: names[5:]},
            }
        )
    maker.figures.append(
        {'kind': 'traces', 'title': HOSTILE[4], 'series': {HOSTILE[7]: list(HOSTILE)}}
    )
    maker.question, maker.problems = HOSTILE[0], [HOSTILE[3], 'a\n\n# b\n- c | d']
    for rows in maker.rows.values():
        rows[1] |= {'device': HOSTILE[0], 'versions': {HOSTILE[3]: HOSTILE[7]}, 'git_commit': None}
    maker.diverge(HOSTILE[2], 0)
    return maker


def test_hostile_names_stay_text(tmp_path):
    maker = hostile()
    analysis = maker.analysis()
    study = analysis.study | {'name': HOSTILE[4], 'tuning': HOSTILE[3], 'hypotheses': [HOSTILE[0]]}
    study['tuned'] = {'arms': {HOSTILE[0]: {'scores': [{'point': {HOSTILE[3]: HOSTILE[8]}}]}}}
    maker.rows[HOSTILE[1]][1] |= {'lent_by': HOSTILE[3], 'study': HOSTILE[0]}
    along = analyse(study, analysis.hash, maker.rows).contrasts  # named after series
    assert f'{HOSTILE[0]} along ρ' in along
    analysis = dataclasses.replace(analysis, study=study, contrasts=along)
    report.write(analysis, maker.timings(), str(tmp_path))
    page = Page((tmp_path / 'report.html').read_text())
    assert {tag for tag, _ in page.tags} <= TAGS
    assert not [k for _, a in page.tags for k in a if k.startswith('on')]
    links = [a['href'] for _, a in page.tags if 'href' in a]
    assert links and all(link.startswith('#') for link in links)
    assert not [a for _, a in page.tags if 'src' in a]
    for name in ('report.md', 'timings.md'):
        text = (tmp_path / name).read_text()
        assert '<' not in text and '\x07' not in text and '\u202e' not in text
        assert not re.search(r'(?<!\\)\]\(j', text) and '\n# b' not in text
        width = 0
        for line in text.splitlines():  # every row of a table has as many cells as its head
            cells = len(re.findall(r'(?<!\\)\|', line)) if line.startswith('|') else 0
            assert not (width and cells) or cells == width, line
            width = cells


def test_no_cell_of_a_csv_is_a_formula(tmp_path):
    """Whatever a stranger's study calls its arms, layers and devices; numbers stay numbers."""
    maker = cases.full(3)
    names = ('=1+1', '+cmd|x', '-2+3', '@SUM(A1)', '\t=1', 'x\r=1', '\n=1')
    base = maker.arm(names[0], 98, 0.0, routed=False)
    for i, name in enumerate(names[1:]):
        maker.compare(maker.arm(name, 97, 0.1 * (i + 1)), base, 'positive', i == 0, name=f'{name}v')
        for row in maker.rows[name].values():
            row['layers'] = {name: {name: -0.5}}
            row['mechanism'] = {name: {name: [-0.5]}}
    timings = {
        'cells': {name: {0: {'device': name}} for name in names},
        'latency': {'arms': {name: {'batches': {}} for name in names}},
    }
    report.write(maker.analysis(), timings, str(tmp_path))
    cells = [
        cell
        for path in tmp_path.rglob('*.csv')
        for row in csv.reader(path.open(newline=''))
        for cell in row
    ]
    assert {f"'{name}" for name in names if '\r' not in name} <= {*cells}
    assert 'x =1' in cells and '-0.5' in cells
    for cell in cells:
        if cell.startswith(('=', '+', '-', '@', '\t', '\r', '\n')):
            float(cell)


@pytest.mark.parametrize('kind', ['link', 'pipe', 'hidden link'])
def test_a_report_is_written_through_no_link(kind, tmp_path):
    """The folder of a study may be a stranger's, with anything where the report is written."""
    (tmp_path / 'precious').write_text('mine')
    for name in ('report.md', 'report.html', 'timings.md'):
        if kind == 'pipe':
            os.mkfifo(tmp_path / name)
        else:
            hidden = f'.{name}.part' if kind == 'hidden link' else name
            (tmp_path / hidden).symlink_to(tmp_path / 'precious')
    report.write(one_seed(), {}, str(tmp_path))
    assert (tmp_path / 'precious').read_text() == 'mine'
    assert (tmp_path / 'report.md').read_text().startswith('#')


@pytest.mark.parametrize(
    'place, kind',
    [
        ('report', 'file'),
        ('report', 'link'),
        ('report/tables', 'file'),
        ('report/tables', 'link'),
        ('report/report.md', 'folder'),
    ],
)
def test_a_report_that_cannot_be_written_is_one_line(place, kind, tmp_path):
    odd, elsewhere = tmp_path / place, tmp_path / 'elsewhere'
    odd.parent.mkdir(exist_ok=True)
    elsewhere.mkdir()
    {'file': odd.touch, 'folder': odd.mkdir, 'link': lambda: odd.symlink_to(elsewhere)}[kind]()
    with pytest.raises(NotWritten, match="report' cannot be written: ") as e:
        report.write(one_seed(), {}, str(tmp_path / 'report'))
    assert '\n' not in str(e.value) and not list(elsewhere.iterdir())


def nothing() -> Analysis:
    return Analysis({}, '', {}, {}, (), (), {})


def one_seed() -> Analysis:
    maker = cases.Maker(1)
    maker.compare(
        maker.arm('k2', 98, 0.3), maker.arm('dense', 97, 0.0, routed=False), 'positive', True
    )
    maker.figure('k_ablation', 'k', k=['k2_vs_dense'])
    maker.figure('gap_against_rho', 'rho', a=['k2_vs_dense'], b=['unknown'])
    return maker.analysis()


def no_pair() -> Analysis:
    maker = cases.Maker(3)
    maker.compare(
        maker.arm('k2', 98, 0.3), maker.arm('dense', 97, 0.0, routed=False), 'positive', True
    )
    maker.figure('gap_against_rho', 'rho', a=['k2_vs_dense'])
    maker.rows['dense'] = {}
    return maker.analysis()


def damaged() -> Analysis:
    """Rows that lack fields, or hold text and NaN in place of numbers."""
    maker = cases.full(3)
    for i, rows in enumerate(maker.rows.values()):
        row = rows[i % 3]
        row['curve'] = [None, {'step': 'x', 'epoch': None, 'accuracy': 'high', 'layers': {'a': 3}}]
        row['mechanism'] = {
            'shuffle_drop': None,
            'ablation': {'a': [math.nan, 'x']},
            'agreement': {'a': {'epoch': [1, 2], 'with_final': [0.5]}},
            'router_gradient': 7,
        }
        row['layers'], row['versions'], row['images'] = None, None, None
    return maker.analysis()


@pytest.mark.parametrize('build', [nothing, one_seed, no_pair, damaged])
def test_little_or_damaged_data_is_still_a_report(build, tmp_path):
    analysis = build()
    report.write(analysis, {}, str(tmp_path))
    Page((tmp_path / 'report.html').read_text())
    text = (tmp_path / 'report.md').read_text()
    assert not re.search(r'\b(nan|None|inf)\b', text.replace('None. A run', ''))
    for number, section in enumerate(
        (
            'Question and answer',
            'Pre-registration',
            'Verdicts',
            'Figures',
            'Per seed',
            'Arms',
            'Collapse',
            'Mechanism',
            'Problems and flags',
            'Provenance',
        )
    ):
        assert text.count(f'\n## {section}\n') == 1, number


def test_one_pair_is_no_test(tmp_path):
    report.write(one_seed(), {}, str(tmp_path))
    text = (tmp_path / 'report.md').read_text()
    assert '1 paired seed)' in text and 'interval nan' not in text
    report.write(no_pair(), {}, str(tmp_path))
    text = (tmp_path / 'report.md').read_text()
    assert 'no seed has been run in both arms, so nothing can be said' in text
    assert 'is left out: none of its comparisons has a pair of rows yet' in text


@pytest.mark.parametrize('name', HOSTILE)
def test_markdown_shows_names_as_they_are(name):
    """Escaped text has no live character of Markdown or HTML in it."""
    shown = document.escape(name)
    assert not re.search(r'(?<!\\)[|`*_\[\]<>#]', shown)
    assert '\n' not in shown and document.escape(f'{name}\n\n# b') == f'{shown} \\# b'
    unescaped = re.sub(r'\\(.)', r'\1', shown).replace('&lt;', '<').replace('&gt;', '>')
    assert unescaped == document.clean_all(name)
