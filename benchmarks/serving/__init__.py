"""Serving speed: the platform, a bare server and its peers, in one run on one machine.

    python -m benchmarks.serving [--quick] [--systems bare,http] [--models mlp] [--concurrency 1,64] [--repeats 3]

Each repeat gives each system in turn a short slice at each concurrency; every other system is stopped (SIGSTOP)
meanwhile. A slice is one load generator in a process of its own (`closed_loop`, or `kafka_load` for the log alone),
a warm-up, and a window over which requests are counted and the CPU time of every process is read (`slices`). Answers
given under load are compared with ONNX Runtime's own (`models`): nothing is fast by being wrong. `report` prints the
table and writes the JSON; ratios are taken within a repeat, then the median over repeats.

All get the same model file, the same number of intra-op threads, the same ONNX Runtime session options, and the same
Open Inference Protocol body, one row a request. `systems` starts them, `servers` holds what runs inside a peer.

What this deliberately does not do: measure across machines, or a network; the generator shares the cores with what it
measures, and its own CPU share is in every row.
"""
