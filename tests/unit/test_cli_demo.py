"""The demo's own parts that need no stack: Magika's input and labels are those of its package."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.demo.files import Magika, samples

MAGIKA = Magika()


def of_the_package(content):
    """What Magika's own code makes of a file."""
    from magika import Magika as Theirs  # noqa: PLC0415 - loads a model, which only these tests need
    from magika.types.seekable import Seekable  # noqa: PLC0415

    features = Theirs._extract_features_from_seekable(Seekable(io.BytesIO(content)), 1024, 0, 1024, 256, 4096, False)
    return [*features.beg, *features.end]


@pytest.mark.parametrize("sample", samples(MAGIKA.model_path), ids=lambda sample: sample.name)
def test_features_of_the_demos_files_are_magikas(sample):
    assert MAGIKA.features(sample.content) == of_the_package(sample.content)


@given(st.binary(max_size=6000) | st.text(" \n\tab", max_size=6000).map(str.encode))
def test_features_of_any_file_are_magikas(content):
    assert MAGIKA.features(content) == of_the_package(content)


def test_the_best_score_names_the_label():
    scores = [0.0] * 214
    scores[3] = 0.5
    assert MAGIKA.label(scores) == ("aidl", 0.5)
