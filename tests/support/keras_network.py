"""The small network of `network` in TensorFlow's formats. Only where TensorFlow is installed."""

from __future__ import annotations

import io
import zipfile

import tensorflow as tf

from support import network


def keras_model():
    held = network.weights()
    model = tf.keras.Sequential(
        [
            tf.keras.Input((network.SIZES[0],), name="x"),
            tf.keras.layers.Dense(network.SIZES[1], activation="relu"),
            tf.keras.layers.Dense(network.SIZES[2]),
        ]
    )
    model.set_weights([held["0.weight"].T, held["0.bias"], held["2.weight"].T, held["2.bias"]])
    return model


def keras_file(path):
    keras_model().save(path / "model.keras")
    return (path / "model.keras").read_bytes()


def saved(path):
    keras_model().export(path / "saved", verbose=False)
    return zipped(path / "saved")


def zipped(directory):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                made.write(path, path.relative_to(directory.parent))
    return buffer.getvalue()


def lite(path):
    del path
    return tf.lite.TFLiteConverter.from_keras_model(keras_model()).convert()


FORMATS = {"keras": keras_file, "savedmodel": saved, "tflite": lite}
"""Each makes the file, and may write below a path."""
