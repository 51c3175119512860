"""Files of arrays: what is written is read back, and is laid out as others read it."""

import json

import ml_dtypes
import numpy as np
import pytest

from moe_vision.common import safetensors

ARRAYS = {
    'a/odd': np.arange(3, dtype=np.uint8),
    'a/kernel': np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
    'b/flag': np.asarray([True, False]),
    'b/step': np.asarray(7, np.uint32),
    'c/half': np.asarray([1.5, -2], ml_dtypes.bfloat16),
    'c/long': np.asarray([2**40], np.int64),
    'c/none': np.zeros((0, 3), np.float32),
}


def test_what_is_written_is_read_back(tmp_path):
    (tmp_path / 'x').write_bytes(safetensors.packed(ARRAYS))
    found = safetensors.read(str(tmp_path / 'x'))
    assert found.keys() == ARRAYS.keys()
    for name, x in ARRAYS.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape
        np.testing.assert_array_equal(found[name], x)


def test_the_layout_is_that_of_the_format():
    data = safetensors.packed(ARRAYS)
    length = int.from_bytes(data[:8], 'little')
    assert length % 8 == 0  # so that arrays begin where their types may
    header = json.loads(data[8 : 8 + length])
    assert header['a/kernel'] == {'dtype': 'F32', 'shape': [3, 2], 'data_offsets': [8, 32]}
    ends = sorted(entry['data_offsets'] for entry in header.values())
    assert ends[0][0] == 0 and ends[-1][1] == len(data) - 8 - length
    assert all(a[1] == b[0] for a, b in zip(ends, ends[1:], strict=False))  # no gap, no overlap
    begin = 8 + length + 8
    np.testing.assert_array_equal(
        np.frombuffer(data[begin : begin + 24], '<f4'), ARRAYS['a/kernel'].ravel()
    )


@pytest.mark.parametrize('size', [0, 4, 8, 9])
def test_a_file_that_ends_early_is_an_error(size):
    with pytest.raises(ValueError):
        safetensors.parse(safetensors.packed(ARRAYS)[:size])


def test_a_type_that_the_format_lacks_is_an_error():
    with pytest.raises(KeyError):
        safetensors.packed({'z': np.zeros(2, np.complex64)})
