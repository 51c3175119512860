"""What a run would find out late is found first: images to score, and room to keep all decoded."""

import json

import cv2
import numpy as np
import pytest
from image_fakes import config, encoded, picture, rewrite

import input_pipeline as ip
from input_pipeline import checks, metadata
from input_pipeline.datasets import image_folder
from input_pipeline.prepare import prepare
from input_pipeline.registry import find

BAD = {  # what is in the file
    'text': b'no image',
    'empty': b'',
    'cut': encoded(picture(1), 'PNG')[:200],
    'header': encoded(picture(1))[:20],
}


def folder(root, bad=(), **splits):
    """Images of two classes; those at the places `bad`, such as 'train/a/3.png', are `BAD`."""
    for split, images in splits.items():
        for i in range(images):
            name = f'{split}/{"ab"[i % 2]}/{i}.png'
            data = BAD[bad[name]] if name in bad else encoded(picture(i, 12, 16), 'PNG')
            rewrite(root / 'in' / name, data)
    prepare('image_folder', str(root), str(root / 'in'))
    return config('image_folder', root, image_size=8, validation_fraction=0.25)


def error(call, *args):
    with pytest.raises(ip.DataError) as caught:
        call(*args)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def forget(root, *keys):
    """Leaves a set as an older version, or another program, prepared it."""
    path = root / 'image_folder/1.0.0/prepared.json'
    noted = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in noted.items() if k not in keys}))
    checks._decode_all.cache_clear()


@pytest.mark.parametrize('forgotten', [(), ('unreadable_at',), ('unreadable', 'unreadable_at')])
@pytest.mark.parametrize('kind', BAD)
def test_an_image_to_score_that_cannot_be_decoded_is_named(tmp_path, kind, forgotten):
    cfg = folder(tmp_path, {'test/b/1.png': kind, 'train/a/0.png': kind}, train=4, test=3)
    forget(tmp_path, *forgotten)
    message = error(ip.check_images, cfg, ['test'])
    assert (
        "of the 3 images of test of 'image_folder', 1 cannot be decoded (test/b/1.png)" in message
    )
    assert f'--data_dir={tmp_path} --source={tmp_path}/in --overwrite`' in message
    assert '(train/a/0.png)' in error(ip.check_images, cfg, ['train', 'validation'])


@pytest.mark.parametrize('forgotten', [(), ('unreadable_at',), ('unreadable', 'unreadable_at')])
def test_a_training_image_counts_where_it_falls(tmp_path, monkeypatch, forgotten):
    """Of 8 training images two are held out: a bad one matters only among those."""
    monkeypatch.setattr(image_folder, '_SHARD', 3)
    bad = {f'train/{"ab"[i % 2]}/{i}.png': 'text' for i in range(8)}
    held = set()
    for name in bad:
        root = tmp_path / name.replace('/', '_')
        cfg = folder(root, {name: 'text'}, train=8)
        forget(root, *forgotten)
        assert ip.info(cfg).split_sizes == {'train': 6, 'validation': 2}
        try:
            ip.check_images(cfg, ['validation'])
        except ip.DataError as e:
            assert 'of the 2 images of validation (held out of train)' in str(e) and name in str(e)
            held.add(name)
            match = 'cannot decode'
            with pytest.raises(ip.DataError, match=match):
                with ip.evaluation_batches(cfg, split='validation', batch_size=2, rows=[0, 1]) as b:
                    list(b)
        else:
            with ip.evaluation_batches(cfg, split='validation', batch_size=2, rows=[0, 1]) as b:
                assert next(b)['valid'].all()
    assert len(held) == 2


def test_a_pass_that_need_not_be_exact_masks_the_image(tmp_path):
    cfg = folder(tmp_path, {'test/b/1.png': 'text'}, train=4, test=3)
    with ip.evaluation_batches(
        cfg, split='test', batch_size=3, rows=range(3), strict=False
    ) as batches:
        assert next(batches)['valid'].sum() == 2 and batches.bad_images == 1


@pytest.mark.parametrize(
    'noted',
    [{'unreadable': 3}, {'unreadable': {'test': 'x'}}, {'unreadable_at': {'test': ['x']}}]
    + [{'pixels': {'train': 'x'}}, {'source': 3}, {'left_out': [1]}],
)
def test_odd_notes_of_a_preparation_are_refused(tmp_path, noted):
    cfg = folder(tmp_path, train=4, test=3)
    path = tmp_path / 'image_folder/1.0.0/prepared.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | noted))
    assert 'is not what preparation writes' in error(ip.check_images, cfg, ['test'])


@pytest.mark.parametrize('key', ['cache', 'resident'])
def test_keeping_images_of_several_sizes_changes_no_batch(tmp_path, key):
    """Photographs that fit may be kept: evaluation is the same to the bit."""
    folder(tmp_path, train=8)
    for i in range(8):
        rewrite(tmp_path / f'in/train/a/{i}.png', encoded(picture(i, 9 + i, 30), 'PNG'))
    prepare('image_folder', str(tmp_path), str(tmp_path / 'in'), overwrite=True)
    plain, kept = (
        config('image_folder', tmp_path, image_size=8, **{key: x}) for x in (False, True)
    )
    passes = []
    for cfg in (plain, kept):
        with ip.evaluation_batches(cfg, split='train', batch_size=4, rows=range(4)) as batches:
            passes.append([b['image'] for b in batches])
    np.testing.assert_array_equal(*passes)


@pytest.mark.parametrize('key', ['cache', 'resident'])
@pytest.mark.parametrize('name', ['image_folder', 'digits'])
def test_what_memory_cannot_keep_is_refused_with_the_reason(tmp_path, monkeypatch, key, name):
    """Half of the memory may hold decoded images: as stored (cache), or as yielded (resident)."""
    if name == 'image_folder':
        folder(tmp_path, train=8, test=2)
        size = 10 * 3 * (12 * 16 if key == 'cache' else 8 * 8)
    else:
        size = 1797 * 8 * 8
    cfg = config(name, tmp_path, image_size=8, **{key: True})
    monkeypatch.setattr(checks, 'memory', lambda: 2 * size)
    ip.check_kept(cfg)
    monkeypatch.setattr(checks, 'memory', lambda: 2 * size - 1)
    message = error(ip.check_kept, cfg)
    assert f'{key} is set, but the {10 if name == "image_folder" else "1,797"} images' in message
    assert f'--config.dataset.{key}=False' in message and 'vary' not in message
    ip.check_kept(config(name, tmp_path, image_size=8))


def test_a_cache_of_images_whose_size_nobody_noted_is_refused(tmp_path):
    cfg = folder(tmp_path, train=8)
    cfg = config('image_folder', tmp_path, image_size=8, cache=True)
    forget(tmp_path, 'pixels')
    assert 'did not note how large its images are; set cache to False' in error(ip.check_kept, cfg)
    ip.check_kept(config('imagenet2012', tmp_path, image_size=224, cache=True))  # not prepared yet


def test_the_noted_pixels_are_those_of_the_images_that_can_be_decoded(tmp_path):
    folder(tmp_path, {'train/a/0.png': 'text', 'train/b/1.png': 'header'}, train=4, test=3)
    known = metadata.facts(find('image_folder'), str(tmp_path))
    assert known.prepared['pixels'] == {'train': 2 * 12 * 16, 'test': 3 * 12 * 16}
    assert cv2.imread(str(tmp_path / 'in/train/a/2.png')).shape == (12, 16, 3)
