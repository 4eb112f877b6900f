"""What runs in the child process, over a file that may be hostile: `python -m services.optimizer.sandbox`.

`confine` first; then `pipeline` is the order of things: `vet` (with `formats` for what is not ONNX), `signature`,
`batching` on inputs from `probes`, `candidates`, `measure`; all runs go through `engine`. Only here does the optimizer
import `onnx` and `onnxruntime`. The child knows no Kafka and no store: a job comes on stdin, reports go out on stdout,
files lie in the working directory.
"""
