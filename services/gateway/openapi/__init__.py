"""The OpenAPI document of the gateway: every route, every status that it gives, and examples that tests execute.

FastAPI knows paths, summaries and queries, but our routes answer with bytes and inference is served below it. So:

- `shapes`       what requests and answers look like, as types; schemas are made from them (`triton_shapes`: a part).
- `examples`     exchanges, each of which a test runs against a real gateway.
- `operations`   one row a route: its shapes, the codes of its errors, its headers, its examples.
- `document`     puts these into FastAPI's document; statuses of errors come from `answers.STATUS_OF_CODE`.

A route without a row, or a row without a route, fails a test.
"""
