"""`aiaas models convert`: what the platform refuses becomes ONNX at home, and answers as before."""

from __future__ import annotations

import json
import pickle
import sys

import joblib
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from services.cli.__main__ import main
from support import bundles

X, LABELS = load_iris(return_X_y=True)
X = X.astype(np.float32)


def pipeline():
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(X, LABELS)


MODELS = {
    "pipeline": pipeline,
    "forest": lambda: RandomForestClassifier(10, random_state=0).fit(X, LABELS),
    "regression": lambda: LinearRegression().fit(X, X[:, 0] * 2),
}


def convert(*arguments):
    with pytest.raises(SystemExit) as exit_:
        main(["models", "convert", *map(str, arguments)])
    assert exit_.value.code == 0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("store", [joblib.dump, lambda model, path: path.write_bytes(pickle.dumps(model))])
def test_scikit_learn(name, store, tmp_path, capsys):
    model = MODELS[name]()
    path = tmp_path / "model.pkl"
    store(model, path)
    convert(path, "--trust", "--json")
    told = json.loads(capsys.readouterr().out)
    assert (told["file"], told["inputs"]) == (str(tmp_path / "model.onnx"), ["input"])
    made = onnx.load_model(tmp_path / "model.onnx")
    assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    found = ort.InferenceSession(tmp_path / "model.onnx").run(None, {"input": X})
    np.testing.assert_allclose(np.ravel(found[0]), model.predict(X), rtol=1e-4, atol=1e-4)
    if hasattr(model, "predict_proba"):
        np.testing.assert_allclose(found[1], model.predict_proba(X), atol=1e-4)


def test_a_whole_torch_module(tmp_path, capsys):
    path = tmp_path / "model.pt"
    torch.save(bundles.network(), path)
    convert(path, "--trust", "--input", "x=FP32[batch,8]", "--out", str(tmp_path / "a.onnx"))
    assert "aiaas models upload" in capsys.readouterr().out
    (found,) = ort.InferenceSession(tmp_path / "a.onnx").run(None, {"x": bundles.rows()})
    np.testing.assert_allclose(found, bundles.answers(bundles.rows()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "--trust"),
        (["--trust", "--input", "x"], 2, "NAME=DATATYPE[SHAPE]"),
        (["--trust"], 1, "neither a scikit-learn model nor a torch module"),
    ],
)
def test_what_it_says_when_it_does_not(tmp_path, capsys, arguments, code, says):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"weights": [1.0]}))
    with pytest.raises(SystemExit) as exit_:
        main(["models", "convert", str(path), *arguments])
    assert exit_.value.code == code
    assert says in capsys.readouterr().err
    assert not (tmp_path / "model.onnx").exists()


def test_nothing_is_loaded_unless_it_is_trusted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pkl").write_bytes(b"cbuiltins\nexec\n(Vopen('MARKER','w')\ntR.")
    with pytest.raises(SystemExit):
        main(["models", "convert", "model.pkl"])
    assert not (tmp_path / "MARKER").exists()


def test_the_command_line_loads_no_library_for_it():
    import subprocess  # noqa: PLC0415 - only here

    script = "import services.cli.__main__, sys; print({'torch', 'sklearn', 'skl2onnx', 'onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
