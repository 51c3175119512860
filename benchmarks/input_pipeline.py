"""Reading training images on one core: from JPEG bytes to a random crop of 224x224.

All competitors take turns in one process on one core, with 256 images in a round. Times are
processor times of all threads of the process, which other load on the machine disturbs little.
Images are parts of scikit-learn's two photographs, 500x375 pixels; their files are about as large
as those of ImageNet's train archive.

    ours           decode, random-resized-crop, flip: what `input_pipeline` does with a row
    randaugment    the same, and two operations of RandAugment
    loader         `train_batches` from records on disk, with threads of this process
    its loop       the work of those threads without them: read records, `ours`, fill batches
    pil            Pillow, with the same crops: open, resize from the box, flip, convert to an array
    tf.data        if TensorFlow is installed: decode_and_crop_jpeg, resize (bilinear), flip, in a
                   sequential map, batched; decodes only the crop of an image
    tf.data whole  the same, but decodes whole images, as all others must
"""

import importlib.util
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import input_pipeline
from benchmarks.table import Row
from input_pipeline import Builder, Contents, DatasetConfig, augment
from input_pipeline.builder import Example
from input_pipeline.decode import decode
from input_pipeline.loader import build_steps

SHAPE = (224, 224, 3)
WIDTH, HEIGHT, QUALITY = 500, 375, 98
IMAGES, BATCH = 256, 64
Competitors = Mapping[str, Callable[[int], object]]  # name -> reads the images of a round


def photographs(count: int) -> list[bytes]:
    """`count` JPEG files: random parts of two photographs, some mirrored, darker or lighter."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    whole = load_sample_images().images
    rng, files = np.random.default_rng(0), []
    for i in range(count):
        image = whole[i % 2]
        top = int(rng.integers(0, image.shape[0] - HEIGHT + 1))
        left = int(rng.integers(0, image.shape[1] - WIDTH + 1))
        part = image[top : top + HEIGHT, left : left + WIDTH] * rng.uniform(0.7, 1.2)
        part = np.clip(part, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(part[:, ::-1] if rng.integers(2) else part).save(
            file, 'JPEG', quality=QUALITY
        )
        files.append(file.getvalue())
    return files


def by_rows(files: list[bytes], layers: int) -> Callable[[int], object]:
    """Decodes and augments the files one by one, as `input_pipeline` does."""

    def handle(step: int) -> list[np.ndarray | None]:
        out: list[np.ndarray | None] = []
        for row, encoded in enumerate(files):
            image = decode(encoded, 3)
            assert image is not None
            out.append(
                augment.augment(
                    image,
                    augment.generator(0, step, row),
                    kind='random_resized_crop',
                    shape=SHAPE,
                    varies=True,
                    layers=layers,
                    magnitude=9.0,
                )
            )
        return out

    return handle


def by_pillow(files: list[bytes]) -> Callable[[int], object]:
    """Makes the crops of `by_rows` in a loop with Pillow."""
    from PIL import Image, ImageOps

    def handle(step: int) -> list[np.ndarray]:
        out = []
        for row, encoded in enumerate(files):
            image = Image.open(io.BytesIO(encoded)).convert('RGB')
            top, left, h, w, mirror = augment.crop_box(
                image.height, image.width, augment.generator(0, step, row)
            )
            image = image.resize(
                SHAPE[1::-1], Image.Resampling.BILINEAR, (left, top, left + w, top + h)
            )
            out.append(np.asarray(ImageOps.mirror(image) if mirror else image))
        return out

    return handle


def by_tensorflow(files: list[bytes], whole: bool) -> Callable[[int], object]:
    """Makes crops of the same distribution in the usual tf.data pipeline for ImageNet.

    Args:
      whole: decode the whole image and then crop it, as the others do.
    """
    import tensorflow as tf

    def crop(encoded: Any) -> Any:
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(encoded),
            tf.zeros([0, 0, 4]),
            min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        if whole:
            image = tf.slice(tf.io.decode_jpeg(encoded, channels=3), begin, size)
        else:
            image = tf.image.decode_and_crop_jpeg(encoded, window, channels=3)
        image = tf.image.random_flip_left_right(tf.image.resize(image, SHAPE[:2]))
        return tf.cast(image, tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    batches = tf.data.Dataset.from_tensor_slices(files).map(crop).batch(BATCH)
    batches = batches.with_options(options)
    return lambda step: list(batches.as_numpy_iterator())  # the whole set: nothing is read ahead


class Photographs(Builder):
    """The benchmark's own files as a data set."""

    name, num_classes, encoding, embedded = 'photographs', 2, 'jpeg', True

    def open(self, source: Path) -> Contents:
        def shard() -> Iterator[Example]:
            return ((str(i), f, i % 2) for i, f in enumerate(photographs(IMAGES)))

        return Contents(('china', 'flower'), {'train': [shard]})


def by_loader(folder: str) -> Competitors:
    """Reads whole batches from records, with threads that read ahead and without threads."""
    config = DatasetConfig(
        name='benchmarks.input_pipeline:Photographs',
        data_dir=folder,
        validation_fraction=0.0,
        image_size=SHAPE[0],
        augment='random_resized_crop',
        workers=0,
        cache=False,
        train_images=0,
        resident=False,
        randaugment_layers=0,
        randaugment_magnitude=9.0,
    )
    input_pipeline.require(config)
    steps = IMAGES // BATCH

    def with_threads(step: int) -> list[Any]:
        with input_pipeline.train_batches(
            config,
            seed=0,
            batch_size=BATCH,
            rows=range(BATCH),
            start_step=step * steps,
            num_steps=(step + 1) * steps,
        ) as batches:
            return list(batches)

    load = build_steps(config, 'train', BATCH, range(BATCH), 0)

    def loop(step: int) -> list[Any]:
        return [load(step * steps + i) for i in range(steps)]

    return {'loader': with_threads, 'its loop': loop}


def measure(competitors: Competitors, rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each competitor in each round, after a round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in competitors}
    for step in range(rounds + 1):
        for name, handle in competitors.items():
            begin = time.process_time()
            handle(step)
            if step:
                times[name].append(time.process_time() - begin)
    return times


def rows(rounds: int) -> Iterator[Row]:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    cv2.setNumThreads(0)
    try:
        files = photographs(IMAGES)
        with tempfile.TemporaryDirectory() as folder:
            competitors = {
                'ours': by_rows(files, 0),
                'randaugment': by_rows(files, 2),
                **by_loader(folder),
                'pil': by_pillow(files),
            }
            if importlib.util.find_spec('tensorflow'):
                competitors |= {
                    'tf.data': by_tensorflow(files, False),
                    'tf.data whole': by_tensorflow(files, True),
                }
            times = measure(competitors, rounds)
    finally:
        os.sched_setaffinity(0, cores)
    own = 'ours', 'randaugment', 'loader', 'its loop'
    others = {n: t for n, t in times.items() if n not in own}
    aim = {'tf.data': 1.0} if 'tf.data' in others else {}

    def rate(name: str) -> dict[str, float]:
        return {'images/s': IMAGES / statistics.median(times[name])}

    yield Row('decode, crop, flip', {'ours': times['ours'], **others}, aim, rate('ours'))
    named = {n: times[n] for n in ('loader', 'its loop', 'ours')}
    yield Row('loader', named | others, {'ours': 1 / 0.95}, rate('loader'))
    yield Row(
        'with RandAugment', {'randaugment': times['randaugment'], **others}, {}, rate('randaugment')
    )
