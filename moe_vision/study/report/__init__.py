"""Writes the report of a study: `report.md`, `report.html`, tables and figures of an analysis.

`answer`, `registered`, `verdicts` and `arms` write the sections and `*_figures` draw the figures.
Together they make one `document`, which becomes Markdown, and HTML by `page`; `tables` makes the
CSV files. Everything except `timings.md` and `timings/` follows from the rows alone, byte for byte.
Numbers, pages and figures look as in the report of a run, `moe_vision.report`.
"""

import errno
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from moe_vision.common import files
from moe_vision.common.errors import NotWritten
from moe_vision.common.json_values import as_dict, as_list
from moe_vision.report.formats import count
from moe_vision.study.analysis.analyse import Analysis
from moe_vision.study.report import tables
from moe_vision.study.report.document import Document, Picture, Section, Text


def write(analysis: Analysis, timings: Mapping[str, Any], out: str) -> list[str]:
    """Writes the report of a study into the folder `out`.

    Args:
      timings: {'cells': {arm: {seed: {'seconds', 'images_per_second', 'device', ...}}},
        'latency': what `study time` measured, or None}.
      out: the folder, created if it is missing.

    Returns:
      The paths written, sorted.

    Raises:
      NotWritten: a file cannot be written; one that was there before is unchanged.
    """
    from moe_vision.report import figure  # drawing takes a second to import
    from moe_vision.study.report import document, fit, page, pictures, timing

    drawn = list(pictures.every(analysis))
    whole = _document(analysis, drawn)
    clock = list(pictures.clock(analysis, as_dict(timings.get('latency'))))
    cost = list(pictures.cost(analysis, timings))
    contents = {
        'report.md': document.markdown(whole, 'figures'),
        'report.html': page.render(whole),
        'timings.md': document.markdown(timing.document(analysis, timings, clock, cost), 'timings'),
        **{f'tables/{name}': text for name, text in tables.every(analysis).items()},
        **{f'timings/{name}': text for name, text in timing.tables(analysis, timings).items()},
    }
    contents |= {f'tables/{name}': text for name, text in fit.tables(analysis).items()}
    for name, blocks in (('figures', drawn), ('timings', [*clock, *cost])):
        for picture in blocks:
            if isinstance(picture, Picture):
                path = f'{name}/{picture.name}'
                contents[f'{path}.svg'] = figure.alone(picture.svg)
                contents[f'{path}.csv'] = tables.csv_text(picture.head, picture.rows)
    folder = epath.Path(out)
    try:
        for part in ('', 'tables', 'figures', 'timings'):
            (folder / part).mkdir(parents=True, exist_ok=True)
            if os.path.islink(folder / part):  # of a stranger, perhaps
                raise OSError(errno.ELOOP, f"'{folder / part}' is a link to another folder")
        for name, content in contents.items():
            files.write(folder / name, content.encode('utf-8', 'replace'))
    except OSError as e:
        raise NotWritten(
            f"the report in '{folder}' cannot be written: {files.reason(e)}; make room, and start "
            'again.'
        ) from e
    return sorted(str(folder / name) for name in contents)


def _document(analysis: Analysis, drawn: list[Picture | Text]) -> Document:
    from moe_vision.study.report import answer, arms, fit, limits, registered, verdicts

    agreement = [p for p in drawn if isinstance(p, Picture) and p.name == 'agreement']
    study = analysis.study
    primary = sum(f.confirms for f in analysis.findings.values())
    facts = [
        f'{len(as_dict(study.get("arms")))} arms',
        f'{len(as_list(study.get("seeds")))} seeds',
        f'{primary} primary and {len(analysis.findings) - primary} exploratory comparisons',
        *(f'{count(n)} {analysis.split} images' for n in limits.images_of(analysis)),
        f'pre-registration {analysis.hash[:12]}',
    ]
    clock = Text(
        'Accuracy against latency and throughput depends on the machine, so it is in timings.md.',
        'note',
    )
    return Document(
        str(study.get('name', 'study')),
        'Study report',
        ' · '.join(facts),
        (
            answer.section(analysis),
            registered.section(analysis),
            verdicts.section(analysis),
            Section('figures', 'Figures', [*(p for p in drawn if p not in agreement), clock]),
            verdicts.per_seed(analysis),
            arms.section(analysis),
            *fit.sections(analysis),
            arms.collapse(analysis),
            arms.mechanism(analysis, agreement[0] if agreement else None),
            registered.problems(analysis),
            registered.provenance(analysis),
        ),
    )
