from __future__ import annotations

import pytest
from tiny_models import KINDS, batches, tiny, untrivial


@pytest.fixture
def make_tiny():
    return tiny


@pytest.fixture
def make_batches():
    return batches


@pytest.fixture(params=list(KINDS))
def kind(request):
    return request.param


@pytest.fixture
def build():
    return untrivial
