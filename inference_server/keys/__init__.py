"""Who may ask, and how much: the file of API keys, and the check before every request.

An entry's form stands in contract/api_keys.py. Knows nothing of what is asked.
"""
