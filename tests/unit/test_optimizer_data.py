"""Data sets: files of every kind, held against a model; and requests of the log that become one."""

from __future__ import annotations

import io
import pickle
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from services.optimizer import rows
from services.optimizer.rows import Answered, packed, together
from services.optimizer.sandbox import datasets
from services.optimizer.sandbox.datasets import Unusable, read
from shared.events import FeedbackGiven
from shared.oip import InferenceRequest
from shared.results import Result
from shared.signature import Signature, TensorSpec
from shared.tensors import from_numpy

SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="x", datatype="FP32", shape=("n", 2, 3), batch_axis=0),
        TensorSpec(name="state", datatype="FP32", shape=(2, "n", 4), batch_axis=1),
    ),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=("n", 5), batch_axis=0),),
)
AXES = {"x": 0, "state": 1}
ROWS = 7
GOOD = {
    "x": np.arange(ROWS * 6, dtype=np.float32).reshape(ROWS, 2, 3),
    "state": np.ones((ROWS, 2, 4), np.float32),
    "label": np.arange(ROWS),
    "y": np.zeros((ROWS, 5), np.float32),
}


def written(tmp_path, content):
    path = tmp_path / "data"
    path.write_bytes(content)
    return path


def test_an_npz_is_rows_with_their_batch_axes(tmp_path):
    found = read(written(tmp_path, packed(GOOD)), SIGNATURE, AXES)
    assert len(found) == ROWS
    feeds = found.feeds(AXES)
    assert (feeds[3]["x"].shape, feeds[3]["state"].shape) == ((1, 2, 3), (2, 1, 4))
    assert feeds[3]["x"].ravel().tolist() == list(range(18, 24))
    assert found.label.tolist() == list(range(ROWS))
    assert found.truth("y").shape == (ROWS, 5)
    assert found.truth("z").tolist() == found.label.tolist()


def test_a_seeded_part_is_held_out_and_never_learnt_from(tmp_path):
    found = read(written(tmp_path, packed(GOOD)), SIGNATURE, AXES)
    held, rest = found.split(0.3, 5)
    assert (len(held), len(rest)) == (2, 5)
    assert sorted([*held.label, *rest.label]) == list(range(ROWS))
    again, _ = found.split(0.3, 5)
    assert again.label.tolist() == held.label.tolist()


def test_parquet_has_columns_of_numbers_and_of_lists(tmp_path):
    table = pa.table(
        {
            "x": [row.ravel().tolist() for row in GOOD["x"]],
            "state": [row.ravel().tolist() for row in GOOD["state"]],
            "label": GOOD["label"].tolist(),
        }
    )
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    found = read(written(tmp_path, buffer.getvalue()), SIGNATURE, AXES)
    np.testing.assert_array_equal(found.inputs["x"], GOOD["x"])
    np.testing.assert_array_equal(found.label, GOOD["label"])


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def bomb():
    """A member that says that it has terabytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\0" * 1000)
    content = buffer.getvalue()
    size = (1000).to_bytes(4, "little")
    return content.replace(size, (0xFFFFFFF0).to_bytes(4, "little"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "neither"),
        (pickle.dumps(GOOD), "neither"),
        (b"PAR1 no", "Arrow"),
        (b"PK\x03\x04 no", "NumPy"),
        (bomb(), "are allowed"),
        (packed(GOOD)[:-40], "NumPy"),
        (packed({"x": GOOD["x"]}), "no array 'state'"),
        (packed({**GOOD, "x": GOOD["x"][:3]}), r"\[3, 7\] rows"),
        (packed({**GOOD, "x": GOOD["x"][:, :1]}), "the model takes rows of"),
        (packed({**GOOD, "x": GOOD["x"].astype("S3")}), "the model takes FP32"),
        (packed({**GOOD, "label": GOOD["label"][:3]}), "'label' has not one entry"),
        (packed({**GOOD, "label": GOOD["label"] + 0.5}), "whole number"),
        (packed({name: array[:0] for name, array in GOOD.items()}), r"\[0\] rows"),
    ],
)
def test_what_is_no_data_set_says_why(tmp_path, content, says):
    with pytest.raises(Unusable, match=says):
        read(written(tmp_path, content), SIGNATURE, AXES)


def test_no_pickle_is_opened(tmp_path, capsys):
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([Evil()], dtype=object), state=GOOD["state"])
    with pytest.raises(Unusable, match="NumPy does not read it"):
        read(written(tmp_path, buffer.getvalue()), SIGNATURE, AXES)
    assert capsys.readouterr().out == ""


def test_more_than_may_be_unpacked_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "MAX_BYTES", 100)
    with pytest.raises(Unusable, match="100 bytes are allowed"):
        read(written(tmp_path, packed(GOOD)), SIGNATURE, AXES)


# --------------------------------------------------------------------------- requests of the log


def request(count=2, **tensors):
    given = {"x": np.ones((count, 2, 3), np.float32), "state": np.ones((2, count, 4), np.float32)} | tensors
    return InferenceRequest(inputs=tuple(from_numpy(name, array) for name, array in given.items()))


def test_a_request_is_rows_along_axis_0():
    found = rows.inputs_of(request(), SIGNATURE)
    assert {name: array.shape for name, array in found.items()} == {"x": (2, 2, 3), "state": (2, 2, 4)}


def test_what_holds_no_rows_of_the_model_is_passed_over():
    assert rows.inputs_of(request(text=np.array(["a"])), SIGNATURE) is None
    assert rows.inputs_of(InferenceRequest(inputs=request().inputs[:1]), SIGNATURE) is None
    assert rows.inputs_of(request(state=np.ones((2, 3, 4), np.float32)), SIGNATURE) is None


def test_feedback_is_of_as_many_rows_as_the_request():
    given = FeedbackGiven(model="m", request_id="r", label=(3, 4), outputs={"y": tuple(range(10))})
    truth = rows.of_feedback(given, 2, SIGNATURE)
    assert truth["label"].tolist() == [3, 4]
    assert truth["y"].shape == (2, 5)
    assert rows.of_feedback(given, 3, SIGNATURE) is None
    assert rows.of_feedback(FeedbackGiven(model="m", request_id="r", outputs={"z": (1.0,)}), 1, SIGNATURE) is None


def test_a_result_is_the_answer_that_was_given():
    outputs = (from_numpy("y", np.ones((2, 5), np.float32)),)
    answered = Result(id="r", status="succeeded", model_name="m", outputs=outputs)
    assert rows.of_result(answered, 2, SIGNATURE)["y"].shape == (2, 5)
    assert rows.of_result(Result(id="r", status="failed", model_name="m"), 2, SIGNATURE) is None


def test_rows_of_the_most_common_shapes_are_put_together():
    def answered(length, count=1):
        return Answered("r", {"ids": np.full((count, length), length)})

    found = together([answered(3), answered(5), answered(3, 2), answered(3)], most=3)
    assert found["ids"].tolist() == [[3, 3, 3]] * 3
    assert together([], most=3) == {}


def test_the_same_rows_are_the_same_bytes():
    assert packed(GOOD) == packed({name: array.copy() for name, array in GOOD.items()})
