"""Measuring candidates of the optimizer on this class of machine, below the traffic.

An optimizer that runs on another class asks one worker (`shared.measurements`). `reaction` takes the questions, one at
a time, fetches the files, and has a child process (`python -m services.worker.measuring`, `child`) run each candidate
by turns with fp32, on the engine that would serve it. The child asks for the device before each handful of runs and
gets it between two batches; what it loads or runs can end itself alone. `messages` is what the two say to each other.
Deliberately missing: judging answers. The optimizer has done that; speed is all that a class of machine changes.
"""
