"""`aiaas models convert`: pickled models become ONNX, on the machine of whoever trusts them, before they are uploaded.

`command` reads the options and tells how it went, `inputs` what the model takes, `sklearn_model` and `torch_model`
convert, `parity` runs both. A pickle runs code when it is loaded: here, on purpose, as its owner; the platform itself
never loads one.
"""
