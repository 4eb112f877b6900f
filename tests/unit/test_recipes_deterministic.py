"""The same recipe on the same model and rows gives the same bytes, in processes that order their sets differently."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.optimizer.recipes.registry import DETERMINISTIC, RECIPES

ROOT = Path(__file__).parents[2]
SCRIPT = """
import hashlib, json
from services.optimizer.recipes.build import build
from services.optimizer.recipes.registry import DETERMINISTIC, RECIPES
from support import recipe_models
made = {
    name: build(RECIPES[name], recipe_models.network(), recipe_models.images()).SerializeToString(deterministic=True)
    for name in sorted(DETERMINISTIC)
}
print(json.dumps({name: hashlib.sha256(content).hexdigest() for name, content in made.items()}))
"""


def digests(hash_seed):
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    made = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": path},
    )
    return json.loads(made.stdout)


@pytest.fixture(scope="module")
def several():
    return [digests(hash_seed) for hash_seed in (1, 2)]


@pytest.mark.parametrize("name", sorted(DETERMINISTIC))
def test_the_same_bytes_again(several, name):
    first, second = several
    assert first[name] == second[name]


def test_the_list_is_of_recipes():
    assert set(RECIPES) >= DETERMINISTIC
