"""What an expert would write in an hour, and the measure of all others: Starlette, ONNX Runtime, nothing between.

    python bare.py MODEL.onnx PORT THREADS

One process: uvicorn on uvloop with httptools, orjson both ways, the model run in the handler. No batching, no limits,
no queue, no log, no second process; a crash loses what was under way.
"""

import sys

import numpy as np
import onnxruntime
import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

DTYPES = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64}
DATATYPES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def session(path: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def application(model: onnxruntime.InferenceSession) -> Starlette:
    names = [output.name for output in model.get_outputs()]

    async def infer(request: Request) -> Response:
        body = orjson.loads(await request.body())
        feeds = {
            each["name"]: np.array(each["data"], DTYPES[each["datatype"]]).reshape(each["shape"])
            for each in body["inputs"]
        }
        outputs = [
            {"name": name, "datatype": DATATYPES[array.dtype], "shape": array.shape, "data": array.ravel()}
            for name, array in zip(names, model.run(names, feeds), strict=True)
        ]
        answer = orjson.dumps({"model_name": "bare", "outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(answer, media_type="application/json")

    return Starlette(routes=[Route("/infer", infer, methods=["POST"])])


if __name__ == "__main__":
    app = application(session(sys.argv[1], int(sys.argv[3])))
    uvicorn.run(app, port=int(sys.argv[2]), loop="uvloop", http="httptools", log_level="warning", access_log=False)
