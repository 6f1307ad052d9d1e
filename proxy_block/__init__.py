"""One block: AIOS's block protocol and its sessions in front of a master's OpenAI endpoints.

The life of a block request: block_request checks it by the models of component, conversation holds
its session, asks master_client with as much history as context_window lets fit, and records answer
and turns in the store. OpenAI's own endpoints pass through as they are.

Comes in: what needs a session or the block protocol. Everything else is the master's.
"""
