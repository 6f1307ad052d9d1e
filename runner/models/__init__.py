"""Where a model's files come from: a folder, the hub, a web server, or a PyPI package.

Master and stages ask here, each for the files that it reads; what the files mean is theirs. A new
source goes here. What is fetched goes on where a killed process stopped (`fetch`). Importing it
imports neither torch nor transformers.
"""
