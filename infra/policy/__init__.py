"""The policy pack: what must not get beyond `pulumi preview`. docs/policy-pack.md is its page.

`pod_rules.py` and `stack_rules.py` are plain functions over the objects of `resources.py`, one
sentence for each violation; `__main__.py` makes policies of them for Pulumi, which starts this
folder by its path.

What may come in: a rule about objects that the cluster itself does not enforce. It knows objects
only, never the deployment: it judges other programs' too.
"""
