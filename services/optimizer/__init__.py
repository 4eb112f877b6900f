"""The optimizer: from an uploaded file to variants that may serve, behind a gate that measures.

Its story, in the order of the files:

1. `app` follows the registry's log and the heartbeats of the other optimizers.
2. `claims` decides what to do next: an upload that nobody works on, or one whose owner has died. `reactor` claims it in
   the log, and does it if the log says that the claim won.
3. `job` fetches the file and hands it to a child process (`confined`), because the file may be hostile: nothing in
   this process parses it, and neither `onnx` nor `onnxruntime` is imported here.
4. The child (`sandbox`) vets the file, reads its signature, finds out by running it along which axes rows are
   independent, builds candidates and measures them. It reports in JSON lines (`messages`).
5. `gate` decides by policy which candidates pass and which one serves. `job` stores the files of those and gives the
   events; `reactor` publishes them: `VariantReady` and `VariantRejected`, then `ModelReady` or `ModelRejected`, whose
   codes and sentences are all in `rejections`.

Everything can be done again: results of a superseded attempt are ignored by the fold, artifacts are content-addressed.
Deliberately missing: conversion from other formats, calibration, pruning, training, and a sandbox against native code
that breaks out of ONNX Runtime (the child has no network, but it reads files as the service's user does).
"""
