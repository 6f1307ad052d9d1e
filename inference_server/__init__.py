"""The public API: everybody's one address in front of all blocks.

The life of a request: keys admits it, an endpoint (infer/, openai_api) finds its block in blocks/,
an exchange puts it to one replica, passes the answer on and leaves a row in the request log. api
puts the endpoints together; server is what they share. page/ is the web page, plain files.

A new endpoint is a file beside openai_api; what belongs to one endpoint alone stays with it.
"""
