"""Metrics, dashboard and alerts of a stack, for a Prometheus and a Grafana that are there already.

`dashboard.json` and `alerts.yaml` are the sources; `component.py` declares them, and
`metrics_targets.py` (pure) says which ports of which pods have metrics.
"""
