"""From an upload of any format to one ONNX file that answers like it. Runs in the sandbox's child, nowhere else.

`recognise` tells by the bytes what an upload is; `archives` opens zips and tars so that only vetted members are read.
Each format has its module, which vets what it loads before it loads it: `onnx_bundle`, `weights` with `architectures`
and `networks`, `pt2`, `torchscript`, `tensorflow`. They give a `Source`: an ONNX model, and the original to run
beside it. `canonical` brings the model into the one form that the rest of the optimizer knows, `parity` runs both at
several shapes. `convert` is the way through all of it.

What can't be converted is `NotConvertible`, a rejection like others, with a code of its own. What torch itself runs is
kept as it is, for the torch engine of workers: `pt2` and `torchscript` give a `Loaded`, which becomes a `Source` or
runs. torch is imported in `networks`, `pt2`, `torchscript` and `exporting` alone, TensorFlow in `tensorflow`.
"""
