"""A small Kubernetes provider of Pulumi for tests, where the real plugin cannot be reached."""
