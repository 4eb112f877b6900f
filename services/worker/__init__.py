"""The worker: takes requests from Kafka, runs models, answers through Redis, leaves one outcome each.

A request goes through the files in this order:

    intake.py     one consumer a model: records become jobs, and rows of a ledger
    model_server.py  the queue of one model: which version answers, which jobs run together (batching.py)
    preparation.py   what some need before: large tensors fetched (claims.py), texts and pictures decoded (processing)
    lane.py       one execution lane: the next batch, fair across models, screened, run, handed on
    claims.py     outputs that are too large for Redis go to the artifact store
    settle.py     Redis: who owns an id, what is answered already; the winner is the answer (receipts.py)
    ledger.py     outcomes of one request partition, in request order
    intake.py     appends them to `outcomes`, sends copies (reply_copies.py), then commits

Beside that, shelf.py keeps variants in memory (engine.py runs them: onnx_engine.py, torch_engine.py), partaking.py
keeps a worker out of models that it lacks an engine for, measuring tells optimizers how fast candidates are
on this class of machine, and app.py wires all of it.
"""
