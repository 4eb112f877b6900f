"""The optimizer: from an uploaded file to variants that may serve, behind a gate that measures.

Its story, in the order of the files:

1. `app` follows the registry's log and the heartbeats of the other optimizers.
2. `claims` decides what to do next: a version that nobody works on, or one whose owner has died. `reactor` claims it in
   the log, and does it if the log says that the claim won.
3. `plan` says which steps a version needs (`actions`), and under which keys their results are known: what is finished,
   here or for another version, is not done again.
4. `job` does the rest of a `task`: it draws data from the log (`drawing`, `rows`), fetches files (`workspace`), and
   hands the steps to a child process (`confined`), because the files may be hostile: nothing in this process parses a
   model, and neither `onnx` nor `onnxruntime` nor `torch` is imported here. Results are stored (`documents`) and told.
   Where workers are of another class, one of each measures what passed on quality (`elsewhere`).
5. The child (`sandbox`) vets the file, finds out along which axes rows are independent, builds candidates (`recipes`,
   `training`) and measures them (`quality`). It reports in JSON lines (`messages`); `progress` and `curves` show it.
6. `gate` (with `speed`) decides by policy which candidates pass and which one serves, `conclusion` makes the events of
   it, `reactor` publishes them: `VariantReady` and `VariantRejected`, then `ModelReady` or `ModelRejected`, whose codes
   and sentences are all in `rejections`.

Beside it, `exporter` gives served versions back in other formats: claimed in the log like versions, copied or zipped
(`bundle`) where the bytes are enough, else built by a child (`sandbox.exports`).

`sweeping` deletes files of candidates that came to nothing.

Everything can be done again: results of a superseded attempt are ignored by the fold, artifacts are content-addressed.
Deliberately missing: conversion from other formats, and a sandbox against native code that breaks out of ONNX Runtime
or torch (the child has no network, but it reads files as the service's user does).
"""
