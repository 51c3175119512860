"""Streams ImageNet (ILSVRC 2012) from its two published tar files; keeps the JPEG bytes."""

from __future__ import annotations

import functools
import importlib.util
import io
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from input_pipeline import archives
from input_pipeline.builder import Builder, Contents, Example
from input_pipeline.types import DataError

_TRAIN, _VAL = 'ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'
_DEVKIT, _LABELS = 'ILSVRC2012_devkit_t12.tar.gz', 'validation_labels.txt'
_TRAIN_SHARDS, _VAL_SHARDS = 256, 16


def _published(file: str) -> list[str]:
    """Returns the entries of a list that tfds ships with its imagenet2012; [] if it ships none."""
    spec = importlib.util.find_spec('tensorflow_datasets')
    path = Path(spec.origin if spec and spec.origin else '').parent / 'datasets/imagenet2012' / file
    return path.read_text().split() if path.is_file() else []


def _from_text(path: Path) -> dict[int, str]:
    """Reads lines 'wnid' in the order of the images, or 'ILSVRC2012_val_00000001.JPEG wnid'.

    Returns:
        Image number, from 1 -> WordNet id.
    """
    labels = {}
    for i, line in enumerate(path.read_text().splitlines(), start=1):
        fields = line.replace(',', ' ').split()
        if not fields:
            continue
        number = _number(fields[0]) if len(fields) > 1 else i
        if not re.fullmatch(r'n\d{8}', fields[-1]) or not number:
            raise DataError(
                f'{path}: line {i} is {line!r}; expected a class such as n01440764, alone or after '
                'the name of its image.'
            )
        labels[number] = fields[-1]
    return labels


def _from_devkit(path: Path) -> dict[int, str]:
    """Reads the development kit: class numbers of the images, and the WordNet id of each class."""
    from scipy.io import loadmat

    files = {PurePosixPath(name).name: data for name, data in archives.tar_files(path)}
    try:
        table = loadmat(io.BytesIO(files['meta.mat']), squeeze_me=True)['synsets']
        wnids = {int(row['ILSVRC2012_ID']): str(row['WNID']) for row in table}
        truth = files['ILSVRC2012_validation_ground_truth.txt'].split()
        return {i: wnids[int(number)] for i, number in enumerate(truth, start=1)}
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise DataError(f'{path} is not the ILSVRC 2012 development kit ({error!r}).') from error


def _number(name: str) -> int:
    match = re.search(r'_(\d{8})\.JPEG$', name)
    return int(match[1]) if match else 0


class Imagenet2012(Builder):
    """1.28 million photographs of 1,000 classes; the 50,000 validation images serve as test."""

    name = 'imagenet2012'
    num_classes = 1000
    sizes = {'train': 1281167, 'validation': 50000}
    stored = {'train': 'train', 'test': 'validation'}
    encoding = 'jpeg'
    published = {
        _TRAIN: (147897477120, '1d675b47d978889d74fa0da5fadfb00e'),
        _VAL: (6744924160, '29b22e2961454d5413ddabcf34fc5622'),
    }
    wants = (
        f'the folder with {_TRAIN} and {_VAL}, published at image-net.org (validation labels come '
        f'from {_LABELS} or {_DEVKIT} in that folder, else from the list that tfds ships)'
    )

    def names(self) -> tuple[str, ...]:
        """Returns the 1,000 WordNet ids in label order if tfds ships them."""
        listed = tuple(_published('labels.txt'))
        return listed if len(listed) == self.num_classes else super().names()

    def open(self, source: Path) -> Contents:
        """Indexes the two tar files in the folder `source` without reading the images."""
        if not source.is_dir():
            raise DataError(f'{source} is not a folder; wanted: {self.wants}.')
        train = archives.pick(source, (_TRAIN,), self.wants)
        val = archives.pick(source, (_VAL,), self.wants)
        inner = [p for p in archives.tar_places(train) if p[0].endswith('.tar')]
        _check_unique(train, inner)
        classes = {PurePosixPath(place[0]).stem: place for place in inner}
        if not classes:
            raise DataError(f'{train} holds no archives n########.tar; wanted: {self.wants}.')
        wnids = _published('labels.txt') or sorted(classes)
        labels = {wnid: i for i, wnid in enumerate(wnids)}
        if unknown := sorted(set(classes) - set(labels)):
            raise DataError(f"{train}: member '{unknown[0]}.tar' is not one of the 1,000 classes.")
        val_wnids = self._val_wnids(source)

        def train_shard(members: list[str]) -> Iterator[Example]:
            for wnid in members:
                name, start, size = classes[wnid]
                seen = set()
                try:
                    for image, data in archives.tar_files(train, start, size):
                        if image in seen:
                            raise _duplicate(train, image)
                        seen.add(image)
                        yield image, data, labels[wnid]
                except DataError as error:
                    raise DataError(f'inside member {name!r}: {error}') from error

        def val_shard(members: list[archives.Place]) -> Iterator[Example]:
            for name, data in archives.tar_read(val, members):
                wnid = val_wnids.get(_number(name), '')
                if wnid not in labels:
                    raise DataError(f'{val}: no label is known for member {name!r}.')
                yield name, data, labels[wnid]

        images = sorted(p for p in archives.tar_places(val) if p[0].endswith('.JPEG'))
        _check_unique(val, images)
        if not images:
            raise DataError(f'{val} holds no *.JPEG; wanted: {self.wants}.')
        ordered = sorted(classes)
        return Contents(
            tuple(wnids),
            {
                'train': [
                    functools.partial(train_shard, part) for part in _parts(ordered, _TRAIN_SHARDS)
                ],
                'validation': [
                    functools.partial(val_shard, part) for part in _parts(images, _VAL_SHARDS)
                ],
            },
            [train, val, *(source / f for f in (_LABELS, _DEVKIT) if (source / f).is_file())],
        )

    def _val_wnids(self, source: Path) -> dict[int, str]:
        if (source / _LABELS).is_file():
            return _from_text(source / _LABELS)
        if (source / _DEVKIT).is_file():
            return _from_devkit(source / _DEVKIT)
        listed = _published('validation_labels.txt')
        if not listed:
            raise DataError(
                f'{source} holds neither {_LABELS} nor {_DEVKIT}; wanted: {self.wants}.'
            )
        return dict(enumerate(listed, start=1))


def _check_unique(path: Path, places: list[archives.Place]) -> None:
    """Raises DataError if two members have the same file name, even in different folders."""
    seen = set()
    for name, _, _ in places:
        file_name = PurePosixPath(name).name
        if file_name in seen:
            raise _duplicate(path, name)
        seen.add(file_name)


def _duplicate(path: Path, name: str) -> DataError:
    return DataError(f'{path} holds member {name!r} twice; download the file again.')


def _parts(items: list, count: int) -> list[list]:
    """Cuts a list into at most `count` parts of nearly equal length; none is empty."""
    count = min(count, len(items))
    return [items[i * len(items) // count : (i + 1) * len(items) // count] for i in range(count)]
