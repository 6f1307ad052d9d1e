"""The package's process: Pulumi asks it for the schema, and to construct what programs name."""

from importlib.metadata import version

from pulumi.provider.experimental import component_provider_host

from infra.component.split_stack import SplitStack

if __name__ == "__main__":
    component_provider_host([SplitStack], "splitstack", version=version("splitstack"))
