"""Training an ONNX model without the class that it came from. Models and arrays in, models and figures out.

1. `graph` runs an ONNX graph as a torch module, with its float initializers as parameters; `operators` is the table of
   what it can run. `weights` puts trained arrays back under the same names.
2. `train` is the loop: `config` says how, `data` holds the rows, `losses` what is made small, `schedules` the learning
   rate, `checkpoint` how an interrupted run goes on.
3. `prune` takes out channels, neurons and attention heads. `trace` sees the graph run, `rules` say operator by operator
   which places of its tensors must go together, `coupling` joins those to groups, `slicing` cuts the initializers and
   corrects the shapes that the graph has baked in. `sparsify` only writes zeros.
4. `distil` teaches a model the answers of another: a pruned one what it was (healing), a small student its teacher.
   `transfer` starts from another model's weights, with a head of its own. `search` looks for a learning rate.

This runs in the optimizer's sandboxed child, on vetted and still untrusted graphs: names in a file are looked up in
tables, nothing is evaluated. Kafka, stores and events are unknown here. Results are the same, byte for byte, for the
same input, seed, versions, kind of processor and number of torch's threads.

Deliberately missing: GPUs, mixed precision, several processes, data augmentation, training of BatchNormalization's
statistics, quantization-aware training.
"""
