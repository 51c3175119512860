"""Draws a Matplotlib figure as SVG inside a page, without files, pyplot or global state.

The SVG is rewritten for the page: text stays text in the page's font, stand-in colours become CSS
variables (`palette.THEMED`), ids become unique, namespaces and metadata go, and the picture gets
its alternative text.
"""

import hashlib
import io
import re
import warnings
from collections.abc import Callable
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from moe_vision.report import palette, style
from moe_vision.report.markup import Markup

WIDTH = 352  # width of a small panel; one unit is one CSS pixel at natural size
_FEW = {1: 1100, 2: 540}  # number of panels that fill the page's width -> width of each

_STYLE = {
    'svg.fonttype': 'none',
    'svg.hashsalt': 'report',
    'text.parse_math': False,  # names may hold dollar signs
    'font.size': 11,
    'text.color': palette.INK,
    'figure.facecolor': 'none',
    'axes.facecolor': 'none',
    'axes.edgecolor': palette.GRID,
    'axes.labelcolor': palette.MUTED,
    'axes.labelsize': 10,
    'axes.titlelocation': 'left',
    'axes.titlesize': 10.5,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.spines.left': False,
    'axes.grid': True,
    'axes.grid.axis': 'y',
    'axes.axisbelow': True,
    'grid.color': palette.GRID,
    'grid.linewidth': 0.8,
    'xtick.color': palette.MUTED,
    'ytick.color': palette.MUTED,
    'xtick.labelsize': 10,
    'ytick.labelsize': 10,
    'xtick.major.size': 0,
    'ytick.major.size': 0,
    'xtick.minor.size': 0,
    'ytick.minor.size': 0,
    'lines.linewidth': 1.8,
    'lines.solid_capstyle': 'round',
    'lines.solid_joinstyle': 'round',
    'hatch.linewidth': 0.6,
}
_NO_METADATA = {'Creator': None, 'Date': None, 'Format': None, 'Type': None}


def width_of(panels: int) -> int:
    """The width of a picture that stands beside others in so many panels."""
    return _FEW.get(panels, WIDTH)


def draw(
    paint: Callable[[Axes], None],
    label: str,
    *,
    width: int = WIDTH,
    height: int = 190,
    left: int = 46,
    right: int = 14,
    top: int = 10,
    bottom: int = 34,
) -> Markup:
    """One picture as `<svg>`.

    Args:
        paint: draws on the axes it is given.
        label: the alternative text.
        width, height, left, right, top, bottom: size and margins in CSS pixels.
    """

    def one(figure: Figure) -> None:
        paint(
            figure.add_axes(
                (
                    left / width,
                    bottom / height,
                    (width - left - right) / width,
                    (height - top - bottom) / height,
                )
            )
        )

    return compose(one, label, width=width, height=height)


def compose(paint: Callable[[Figure], None], label: str, *, width: int, height: int) -> Markup:
    """One picture as `<svg>`, from a figure to which `paint` adds its own axes."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*[Gg]lyph.*')  # the reader's fonts have them
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)  # type: ignore[arg-type]
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        paint(figure)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata=_NO_METADATA)
    return _inline(buffer.getvalue(), label)


def write_ticks(axis: Axis, form: Callable[[float], str]) -> None:
    """Writes the numbers at the ticks of an axis in the format `form`."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))


def alone(picture: Markup) -> str:
    """A picture of `draw` as a file that every program can show: plain colours, on paper."""
    colours = dict(reversed(re.findall(r'--(\w+):(#\w+)', style.CSS)))  # the first one is light
    text = re.sub(r'var\(--(\w+)\)', lambda m: colours[m[1]], picture)
    view = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert view
    paper = f'<rect width="{view[1]}" height="{view[2]}" fill="{colours["paper"]}" />'
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{view[1]}" height="{view[2]}" '
        'font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif" '
    )
    start = text.index('>') + 1
    return opening + text[len('<svg ') : start] + paper + text[start:] + '\n'


def _inline(svg: str, label: str) -> Markup:
    root = ElementTree.fromstring(svg)
    prefix = hashlib.sha1((label + svg).encode()).hexdigest()[:8]
    view = root.get('viewBox', '')
    for parent in root.iter():
        parent.tag = parent.tag.rsplit('}', 1)[-1]
        for child in list(parent):
            if child.tag.rsplit('}', 1)[-1] in ('metadata', 'style'):
                parent.remove(child)
        for key, value in list(parent.attrib.items()):
            del parent.attrib[key]
            if key == 'id' and parent.tag not in ('path', 'clipPath', 'pattern'):
                continue
            parent.set(key.rsplit('}', 1)[-1], _attribute(key, value, prefix))
    for node in root.iter():
        node.text = None if node.text is None or not node.text.strip() else node.text
        node.tail = None
    root.attrib = {'viewBox': view, 'class': 'chart', 'role': 'img', 'aria-label': label}
    return Markup(ElementTree.tostring(root, encoding='unicode'))


def _attribute(key: str, value: str, prefix: str) -> str:
    if key == 'id':
        return f'{prefix}{value}'
    if value.startswith('#'):
        return f'#{prefix}{value[1:]}'
    value = re.sub(r'url\(#([^)]*)\)', rf'url(#{prefix}\1)', value)
    if key == 'style':
        value = re.sub(r'font-family:[^;]*', 'font-family: inherit', value)
        for stand_in, variable in palette.THEMED.items():
            value = value.replace(stand_in, variable)
    elif key == 'd' or key.endswith('href'):
        value = re.sub(r'\s+', ' ' if key == 'd' else '', value).strip()
    elif key == 'transform' and value.startswith('rotate(-0 '):
        return 'rotate(0)'
    return value
