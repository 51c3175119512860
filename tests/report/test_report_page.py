"""Properties of the page for every kind of run: complete, self-contained, escaped, honest."""

import functools
import pathlib
import re
import time
from collections.abc import Callable

import pytest
from report_page import Parsed

from moe_vision import report

KINDS = {
    'complete': {},
    'dense': {'layers': ()},
    'soft': {'soft': True},
    'many': {'classes': 200, 'experts': 32, 'layers': ('blocks_2', 'head')},
    'patches': {'layers': ('enc/block_1/moe', 'enc/block_3/moe'), 'grid': (7, 5), 'side': 70},
    'short': {'rows': 1, 'samples': 0},
    'long': {'rows': 700},
}


@pytest.fixture(scope='module')
def page_of(tmp_path_factory, make) -> Callable[[str], tuple[str, float]]:
    """The page of each kind of run, written once, and the processor seconds that it took."""

    @functools.cache
    def write(kind: str) -> tuple[str, float]:
        folder = make(**KINDS[kind]).save(tmp_path_factory.mktemp(kind) / 'run')
        start = time.process_time()
        path = report.write(folder)
        return pathlib.Path(path).read_text(), time.process_time() - start

    return write


@pytest.mark.parametrize('kind', KINDS)
def test_page_is_self_contained_small_and_quick(kind, page_of):
    text, seconds = page_of(kind)
    assert seconds < 5
    assert len(text.encode()) < 3e6
    assert not re.search(r'https?:|//[a-z]+\.|@import|<script|<link|<iframe', text, re.I)
    for target in re.findall(r'url\(([^)]{0,40})', text):
        assert target.startswith(('data:image/png;base64,', '#'))
    parsed = Parsed(text)
    for _, attributes in parsed.tags:
        for key in ('src', 'href', 'action'):
            assert attributes.get(key, '#').startswith(('#', 'data:image/png;base64,'))


@pytest.mark.parametrize('kind', KINDS)
def test_every_picture_has_words(kind, page_of):
    text, _ = page_of(kind)
    parsed = Parsed(text)
    for attributes in parsed.named('svg'):
        assert attributes['role'] == 'img' and len(attributes['aria-label']) > 10
    captions = re.findall(r'<figcaption>(.*?)</figcaption>', text, re.S)
    assert len(captions) == len(parsed.named('figure')) > 0
    assert all(caption.startswith('How to read: ') for caption in captions)


@pytest.mark.parametrize('kind', KINDS)
def test_ids_are_unique_and_references_resolve(kind, page_of):
    text, _ = page_of(kind)
    ids = [a['id'] for _, a in Parsed(text).tags if 'id' in a]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= set(ids)


def test_complete_run_shows_every_layer_everywhere(make, page):
    text = page(make())
    for part in ('routing', 'classes', 'samples', 'compute'):
        content = text.split(f'<section id="{part}">')[1].split('</section>')[0]
        for layer in ('blocks_1', 'blocks_2', 'head'):
            assert f'>{layer}<' in content, (part, layer)
    words = Parsed(text).text()
    for expected in (
        'digits_k2',
        '97.50 %',
        '42.1 %',
        '55.3 %',
        '61.1 %',
        'No collapse',
        'ln E',
        'model.moe.capacity_factor',
        'flax',
        '0123456789',
        'Effective experts',
        'fullest ÷ even',
        'even',
    ):
        assert expected in words, expected
    assert 'Not in this folder' not in words


def test_heat_map_counts_are_in_the_tooltips(make, page):
    maker = make(classes=2, experts=2, layers=('head',))
    maker.evaluation['layers']['head']['expert_by_class'] = [[30, 0], [10, 7]]
    titles = [a.get('title', '') for a in Parsed(page(maker)).named('td')]
    assert 'expert 0, class class 0: 30 of 40 choices, 75.0 %' in titles
    assert 'expert 1, class class 1: 7 of 7 choices, 100.0 %' in titles


def test_what_never_changes_is_not_drawn(make, page):
    maker = make(rows=12, samples=0)
    for row in maker.rows:
        row['layers']['head'] |= {'temperature': 1.0, 'null_rate': row['step'] / 1000}
    text = page(maker)
    assert 'Router temperature' not in text and 'Choices of no expert: ' in text


def test_validation_without_a_task_loss_shows_its_loss(make, page):
    maker = make(rows=12, samples=0)
    for row in maker.rows:
        if row['split'] == 'validation':
            del row['task_loss']
    assert re.search('aria-label="Loss: train from [^"]*; validation from ', page(maker))


def test_soft_counts_keep_their_fractions(make, page):
    maker = make(classes=2, experts=2, layers=('head',), soft=True)
    maker.evaluation['layers']['head']['expert_by_class'] = [[1.5, 1.0], [0.5, 2.0]]
    titles = [a.get('title', '') for a in Parsed(page(maker)).named('td')]
    assert 'expert 0, class class 0: 1.5 of 2 choices, 75.0 %' in titles


def test_confusions_are_named(make, page):
    maker = make(classes=3)
    maker.evaluation['confusion'] = [[9, 1, 0], [0, 10, 0], [0, 0, 10]]
    parsed = Parsed(page(maker))
    assert 'class 0 taken for class 1: 1 (10.0 %)' in [a.get('title') for _, a in parsed.tags]


def test_dropped_choices_are_struck_through(make, page):
    maker = make(layers=('head',), samples=1, experts=4)
    route = {'grid': None, 'experts': [[2, 1]], 'gates': [[0.75, 0.25]], 'kept': [[True, False]]}
    maker.evaluation['samples'][0]['layers'] = {'head': route}
    parsed = Parsed(page(maker))
    chips = [a['title'] for a in parsed.named('span') if 'chip' in a.get('class', '')]
    assert chips == ['expert 2, gate 0.75', 'expert 1, gate 0.25, dropped: no room']
    assert len(parsed.named('s')) == 1


def test_null_experts_are_no_experts(make, page):
    maker = make(layers=('head',), samples=1, experts=4)
    route = {'grid': None, 'experts': [[1, 4]], 'gates': [[0.75, 0.25]], 'kept': [[True, False]]}
    maker.evaluation['samples'][0]['layers'] = {'head': route}
    assert 'expert no expert' in page(maker)


def test_patch_grid_colours_each_patch_once(make, page):
    maker = make(layers=('moe',), grid=(2, 3), side=12, samples=1, experts=4)
    route = {
        'grid': [2, 3],
        'experts': [[0, 1]] * 3 + [[2, 0]] * 3,
        'gates': [[0.7, 0.3]] * 6,
        'kept': [[True, True], [False, True], [False, False]] + [[True, True]] * 3,
    }
    maker.evaluation['samples'][0]['layers'] = {'moe': route}
    text = page(maker)
    drawing = next(s for s in re.findall(r'<svg .*?</svg>', text, re.S) if '0 0 3 2' in s)
    squares = re.findall(r'expert (\d): (\d) patches</title>', drawing)
    assert squares == [('0', '1'), ('1', '1'), ('2', '3')]
    assert drawing.count('class="cross"') == 1


def test_large_images_are_left_out_beyond_the_budget(make, page):
    maker = make(samples=4)
    for sample in maker.evaluation['samples']:
        sample['image_png'] += '=' * 900_000
    assert '3 more images are left out' in page(maker)


@pytest.mark.parametrize(
    'lost, message',
    [
        (('result',), 'result.json is missing'),
        (('evaluation',), 'No confusion matrix'),
        (('result', 'evaluation'), 'so far'),
        (('config',), 'config.json is missing'),
    ],
)
def test_partial_runs_say_what_is_missing(lost, message, make, page):
    maker = make(rows=12)
    for name in lost:
        setattr(maker, name, {})
    assert message in Parsed(page(maker)).text()


@pytest.mark.parametrize('kept', ['config', 'result', 'evaluation', 'rows'])
def test_any_single_file_is_enough(kept, make, page):
    maker = make(rows=3)
    for name in {'config', 'result', 'evaluation', 'rows'} - {kept}:
        setattr(maker, name, [] if name == 'rows' else {})
    text = page(maker)
    assert ('No metrics have been written yet' in text) == (kept != 'rows')


def test_same_run_gives_the_same_page(make, tmp_path):
    first = report.write(make().save(tmp_path / 'run')).read_text()
    assert report.write(tmp_path / 'run').read_text() == first


def test_curves_run_by_step_whatever_the_files_order(make, page):
    maker = make(rows=60)
    for row in maker.rows:
        row['grad_norm'] = row['step'] / 1000
    assert 'Gradient norm: the value from 0.01 to 0.6.' in page(maker)


def section_of(text: str, anchor: str) -> str:
    return text.split(f'<section id="{anchor}">')[1].split('</section>')[0]


@pytest.mark.parametrize('kind', KINDS)
def test_only_what_has_a_capacity_speaks_of_one(kind, page_of):
    text, _ = page_of(kind)
    shown = Parsed(text.split('<section id="record">')[0] + '</main></body></html>').text()
    for words in ('unbounded capacity', 'Dropped choices', 'C in evaluation'):
        assert (words in shown) == (kind not in ('dense', 'soft')), words
    for words in ('experts’ buffers', 'active per image', 'ρ executed'):
        assert (words in shown) == (kind != 'dense'), words


def test_the_title_names_data_set_and_folder_and_the_config_is_beside(make, page):
    parsed = Parsed(page(make(rows=2, samples=0)))
    assert ('h1', 'digits · run') in parsed.words and (
        'title',
        'digits · run · training report',
    ) in (parsed.words)
    assert 'config digits_k2' in parsed.text()


@pytest.mark.parametrize(
    'noise, trained, clean',
    [
        ('gaussian', 'with the router’s gaussian noise', 'without noise in the router'),
        (None, 'with the router’s noise', 'without noise in the router'),
        ('none', '', ''),
    ],
)
def test_curves_say_what_training_and_evaluation_count(noise, trained, clean, make, page):
    maker = make(rows=12, samples=0)
    maker.config['config']['model']['moe']['router_args'] = {'noise': noise}
    maker.config['config']['dataset'] = {'augment': 'pad_crop'}
    maker.config['config']['train']['ema_decay'] = 0.99
    text = page(maker)
    for part in ('curves', 'routing'):
        words = section_of(text, part)
        training, rest = words.split('Training counts each batch')[1].split('every image once')
        assert trained in training and clean in rest
        assert ('noise' in training) == bool(trained) == ('noise' in rest.split(').')[0])
        assert 'capacity_factor = 1.25' in training and 'eval_capacity_factor = 2.0' in rest
        assert 'augmented' in training and 'without augmentation' in rest
        assert 'current weights' in training and 'moving average' in rest
    assert 'is training, dots are validation.' in section_of(text, 'routing')
    assert 'head in validation from' in text


def test_a_set_without_a_test_split_is_scored_on_validation_and_says_so(make, page):
    maker = make(rows=2, samples=1)
    maker.evaluation['split'] = 'validation'
    words = Parsed(page(maker)).text()
    assert 'Validation accuracy' in words and 'Test accuracy' not in words
    assert 'on the test set' not in words and 'on the validation set' in words


def test_accuracy_by_class_has_the_worst_first_and_names_what_it_is_taken_for(make, page):
    maker = make(classes=3, layers=())
    maker.names[:] = ['cat', 'dog', 'emu']
    maker.evaluation['confusion'] = [[9, 1, 0], [0, 0, 8], [1, 1, 20]]
    text = page(maker)
    table = text.split('class="numbers classes"')[1].split('</table>')[0]
    rows = [re.sub('<[^>]+>', '|', row) for row in table.split('<tr>')[2:]]
    cells = [[c for c in row.split('|') if c] for row in rows]
    assert cells == [
        ['dog', '8', '0.0 %', '2', '0.0 %', 'emu (8)'],
        ['cat', '10', '90.0 %', '10', '90.0 %', 'dog (1)'],
        ['emu', '22', '90.9 %', '28', '71.4 %', 'cat (1)'],
    ]
    assert '<th scope="row" class="alarm">dog</th>' in table
    assert 'always answering ‘emu’' in text and '55.00 %' in text  # 22 of 40


@pytest.mark.parametrize('classes, folded', [(40, 0), (41, 21), (200, 180)])
def test_of_many_classes_the_worst_are_in_sight(classes, folded, make, page):
    text = section_of(page(make(classes=classes, samples=0)), 'classes')
    first, *rest = text.split('class="numbers classes"')[1:]
    assert first.split('</table>')[0].count('<tr>') == 1 + classes - folded
    assert (f'The other {folded} of {classes} classes' in text) == bool(folded)


def test_mistakes_have_picture_classes_probability_and_file(make, page):
    maker = make(samples=3)
    parsed = Parsed(page(maker))
    files = [data for tag, data in parsed.words if tag == 'code' and data.startswith('test/')]
    assert files == ['test/class 0/0.png', 'test/class 1/1.png', 'test/class 2/2.png']
    assert [a['title'] for a in parsed.named('code') if 'title' in a] == [
        'image 0',
        'image 7',
        'image 14',
    ]
    assert '99.0 %' in parsed.text() and 'taken for class 1' in parsed.text()


def test_no_mistakes_and_unrecorded_mistakes_are_told_apart(make, page, tmp_path):
    maker = make(samples=0)
    assert 'No image of the test set was mistaken.' in page(maker)
    del maker.evaluation['mistakes']
    text = report.write(maker.save(tmp_path / 'other')).read_text()
    assert 'The most confident mistakes were not recorded.' in text


@pytest.mark.parametrize(
    'layers, width', [(('head',), '1100'), (('a', 'b'), '540'), (('a', 'b', 'c'), '352')]
)
def test_few_layers_use_the_width_of_the_page(layers, width, make, page):
    text = page(make(layers=layers, rows=6, samples=0))
    loads = section_of(text, 'routing').split('Load over training')[1].split('Balance over')[0]
    assert re.findall(r'viewBox="0 0 (\S+) ', loads) == [width] * len(layers)


def test_the_confusion_matrix_keeps_names_whole(make, page):
    maker = make(classes=4, samples=0)
    maker.names[:] = ['slightly worn', 'a very long name of nearly forty letters', 'x' * 60, 'new']
    heads = re.findall(r'class="up"><span>([^<]*)<', page(maker))
    assert heads == [*maker.names[:2], 'x' * 39 + '…', 'new']


def test_scores_that_the_run_was_asked_for_stand_beside_the_others(make, page, page_of):
    maker = make()
    assert 'Training accuracy' not in Parsed(page_of('complete')[0]).text()
    last = [row for row in maker.rows if row['split'] == 'validation'][-1]
    last['accuracy'] = 0.912
    maker.config['config']['eval'] = {'train_images': 2000}
    maker.result |= {'train_accuracy': 0.92, 'accuracy_at_capacity': {'1.25': 0.871, '<b>': None}}
    words = Parsed(page(maker)).text()
    for expected in (
        'Training accuracy',
        '92.00 %',
        '+0.80 points against the last validation, on 2,000 images',
        'At capacity factor 1.25',
        '87.10 %',
    ):
        assert expected in words, expected
    assert 'At capacity factor <b>' not in words
