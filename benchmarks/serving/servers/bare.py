"""What an expert would write in an hour, and the measure of all others: Starlette, ONNX Runtime, nothing between.

One process: uvicorn on uvloop with httptools, orjson both ways, the model run in the handler. No batching, no limits,
no queue, no log, no second process; a crash loses what was under way.
"""

from __future__ import annotations

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request  # noqa: TC002 - Starlette looks at the handler
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.serving.servers.onnx_model import OnnxModel, feeds


def main() -> None:
    model = OnnxModel(sys.argv[1], int(sys.argv[3]))

    async def infer(request: Request) -> Response:
        return Response(model.answer(model.run(feeds(await request.body()))), media_type="application/json")

    app = Starlette(routes=[Route("/infer", infer, methods=["POST"])])
    uvicorn.run(app, port=int(sys.argv[2]), loop="uvloop", http="httptools", log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
