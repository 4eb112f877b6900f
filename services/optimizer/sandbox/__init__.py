"""What runs in the child process, over a file that may be hostile: `python -m services.optimizer.sandbox`.

`confine` first; then `pipeline` does the steps that are left, one after the other. `reference` is what all of them are
held against: `vet` (once `conversion` has made ONNX of what is not), `signature`, `batching` on inputs from `probes`,
`datasets`.
`building` makes candidates, with `learning` for those that train (`lessons` is what it tells), `measure` measures them;
all runs go through `engine`. Only below here, in `recipes` and in `training` does the optimizer import `onnx`,
`onnxruntime` and `torch`. The child knows no Kafka and no store: a job comes on stdin, reports go out on stdout, files
lie in the working directory.
"""
