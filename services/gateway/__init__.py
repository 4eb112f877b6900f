"""The gateway: HTTP in, Kafka out, the answer back through Redis.

Two stories, in the order of their files.

An inference: `http_server` (uvicorn, slow clients) → `turnstile` (refusals at the door) → `edge` (counts, polite
endings) → `routes_infer` (who asks, body, answer) → `admission` (`limits`, `backlog`, `quotas`) → `bodies`
(`encodings`) → `infer` (validate against the registry, append to the log, wait, expire) → `answers` (`encodings`; OIP
and errors as HTTP). Tensors too large for the log pass through the artifact store: `claims` on the way in,
`claimed_outputs` on the way out. With an `Idempotency-Key`, `idempotency` joins a repeat to its first.

Who does not wait (`preferences`) comes back to `routes_requests`: `request_state` says where a request is,
`event_stream` streams it, fed by the one reader in `request_watch`.

A model: `routes_repository` → `repository` (stream the file to the store, publish, read the event back; promote, roll
back, split, retire) → `views` (what the registry knows, as JSON). `routes_models` says what is served and ready;
`request_topics` creates the topic of each model that appears in the log.

How workers run it is `routes_runtime` → `runtime`; a version in another format is `routes_exports` → `exports`: asked
for on the log, built by an optimizer, streamed from the store.

What Triton's clients ask for besides is in `routes_triton`: `model_config`, `repository_index`, `loading` (a fact on
the log, then the workers' heartbeats) and `statistics` (the monitor's, by Kafka). `routes_absent` answers for the rest.

`app.serve` puts it together. The gateway holds no state of its own: any instance can be asked for anything, and one
that dies loses nothing but its connections.
"""
