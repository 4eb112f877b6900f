"""The gateway: HTTP in, Kafka out, the answer back through Redis.

Two stories, in the order of their files.

An inference: `http_server` (uvicorn, slow clients) → `edge` (counts, polite endings) → `routes_infer` (who asks, body,
answer) → `admission` (bounds) → `infer` (validate against the registry, append to the log, wait, expire) → `answers`
(OIP and errors as HTTP). With `Prefer: respond-async` the caller comes back to `routes_requests`.

A model: `routes_repository` → `repository` (stream the file to the store, publish, read the event back; promote, roll
back, split, retire) → `views` (what the registry knows, as JSON). `routes_models` says what is served and ready;
`request_topics` creates the topic of each model that appears in the log.

`app.serve` puts it together. The gateway holds no state of its own: any instance can be asked for anything, and one
that dies loses nothing but its connections.
"""
