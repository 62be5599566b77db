"""What holds for every test."""

import os

import pytest
from hypothesis import settings

settings.register_profile("muster", deadline=None)  # a busy machine is no defect
settings.load_profile("muster")


@pytest.fixture(autouse=True)
def umask_of_its_own():
    """The service's commands narrow the umask of their process: the next test has the one that it began with."""
    before = os.umask(0)
    os.umask(before)
    yield
    os.umask(before)
