"""Recipes: how a smaller or faster form of a model is built. `ModelProto` and calibration rows in, `ModelProto` out.

1. `configs` are what can be asked for, as data: a frozen struct each, kept as the provenance of what it built.
   `registry` gives the usual ones their names, and says for which of them the same bytes come out again.
2. `build` makes a model from one. Behind it are `weight_only` (with `packing`), `static_qdq` (with `calibration`),
   `dynamic_int8` and `fp16`; `ort_tools` is the way to ONNX Runtime's quantization tools, `graph` what is done to
   graphs, `running` how models are run on rows.
3. `sensitivity` finds the nodes that quantization hurts, and what leaving them in fp32 gives: a `curve` of recipes.

A recipe takes any model, one that was pruned or healed before too: combinations are made by applying one to the other's
result. It judges nothing: quality, speed and row independence are measured afterwards.

The models are vetted, and still untrusted. So this runs in the sandboxed child alone, runs of a model have deadlines,
and whatever breaks on the way ends as `NotBuilt`. `configs`, `registry` and `errors` import neither `onnx` nor
`onnxruntime`, and may be used anywhere. Kafka, stores and events are unknown here.

Deliberately missing: quantization-aware training; 16-bit integers and floats of 8 bits, which no kernel on CPUs here
runs faster; SmoothQuant, which needs neural-compressor; integer kernels picked by hand (QOperator), since ONNX Runtime
makes them of QDQ pairs when it loads a model.
"""
