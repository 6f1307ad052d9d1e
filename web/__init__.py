"""What every process that serves HTTP shares, and knows nothing of what it serves.

Serving: serve (until SIGTERM), http_protocol, listener. Around each request: request_id, deadline,
middleware, proof, errors. For handlers: body (in), events (out), disconnect, health, openapi. The
tier behind this one: upstream, answer, remembered. logs is for all.

Comes in: what a second tier needs too. Imports contract alone of ours, and httpx in upstream only,
which the runner's image does not ask for.
"""
