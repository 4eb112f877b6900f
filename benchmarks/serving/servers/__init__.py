"""What runs inside a server under test, one file each: what an expert in that server would write for one ONNX model.

Started as `python -m benchmarks.serving.servers.NAME MODEL.onnx PORT THREADS` in the server's own environment, which
has that server, numpy, ONNX Runtime, orjson and uvloop, and nothing of ours but this directory. All use the same
session options and the same JSON library, and batch up to 32 rows where the server can batch.
"""
