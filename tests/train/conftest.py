"""Programs of these tests are compiled quickly, and data are prepared once."""

import pytest


@pytest.fixture(scope='module', autouse=True)
def always_quick(quick):
    """See `quick`."""


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp('data'))
