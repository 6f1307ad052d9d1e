"""Names on Kubernetes objects by which the inference server finds the blocks that a stack makes.

A Service with COMPONENT_LABEL = PROXY_BLOCK and BLOCK_ID_ANNOTATION is a block.
"""

from __future__ import annotations

COMPONENT_LABEL = "app.kubernetes.io/component"
PROXY_BLOCK = "proxy-block"
BLOCK_ID_ANNOTATION = "splitstack.dev/block-id"
COMPONENT_ANNOTATION = "splitstack.dev/component"
"""Of what the block is an instance, as in component.json."""
LABELS_ANNOTATION = "splitstack.dev/labels"
"""The block's own labels, a JSON object."""
