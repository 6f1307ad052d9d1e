"""The master's HTTP: bodies in, answers out.

An endpoint (chat, completions) parses a body (bodies, openai_bodies, messages; unserved lists what
clients send and nothing is done for), has its prompts made token ids and judged (prompts,
defaults), and answers with the text that comes back (answers), whole or as a stream. Over this
process's death whoever asked carries an answer with the ids that id_lines tells; carried has it go
on.
Every refusal of a request is worded here, before anything is queued; errors makes HTTP of it. What
is the same for every tier (error body, deadline, body limits) lies in web/; what a token is, in
text.
"""
