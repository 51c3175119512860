"""The tiny run of train_cases: its programs are compiled once for all tests of a worker."""

import pytest
import train_cases

from moe_vision.config.schema import Config
from moe_vision.training.setup import Setup


@pytest.fixture(scope='session')
def config(data_dir) -> Config:
    return train_cases.make(data_dir)


@pytest.fixture(scope='session')
def setup(config) -> Setup:
    return Setup(config)
