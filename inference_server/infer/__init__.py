"""POST /v1/infer: one block, a block chosen by a query, or a graph of blocks.

request, query and graph say what was asked, each with its parser, and are pure but for the running
of a graph; selection chooses among blocks, api answers.
"""
