"""End-to-end tests go through the front door of the whole stack, as its users do."""

from __future__ import annotations

import pytest

from support.front_door import front_door


@pytest.fixture
async def door(stack):
    async with front_door(stack.environment) as there:
        yield there
