"""What the stack file is made of: sections, and the types of their values with their schema."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from contract.generation import NO_BOOLEAN
from contract.template_arguments import OWN_NAMES, check_template_arguments

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_BYTES = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kMGT]i?|K)?B?")
_CORES = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m?)")
_LAYERS = re.compile(r"([0-9]+)(?:-([0-9]+))?")
_NAME = re.compile(r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_IMAGE = re.compile(
    r"(?:[A-Za-z0-9.-]+(?::[0-9]+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
_ADDRESS = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.:-]{0,252}[A-Za-z0-9])?")
_ORIGIN = re.compile(r"\*|https?://(?:[a-z0-9.-]+|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")
_INTERFACE = re.compile(r"[^\s/]{1,15}")
_DEVICES = re.compile(r"[0-9A-Za-z-]+(?:,[0-9A-Za-z-]+)*")
_ORDINALS = re.compile(r"[0-9]+(?:,[0-9]+)*")
_SUBDOMAIN = r"[a-z0-9](?:[-.a-z0-9]{0,251}[a-z0-9])?"
_NODE = re.compile(_SUBDOMAIN)
_NAMESPACED = re.compile(rf"{_LABEL.pattern}/{_SUBDOMAIN}")
_KEY = re.compile(rf"(?:{_SUBDOMAIN}/)?[A-Za-z0-9](?:[-._A-Za-z0-9]{{0,61}}[A-Za-z0-9])?")
_FILE_NAME = re.compile(r"(?!\.\.?$)[-._A-Za-z0-9]{1,253}")
_STACK_NAME = re.compile(r"[\w.-]+/[\w.-]+/[\w.-]+")
_PATH_PART = r"(?!\.\.?(?:/|$))[^/\0]+"
_RELATIVE_PATH = re.compile(rf"{_PATH_PART}(?:/{_PATH_PART})*/?")
_ABSOLUTE_PATH = re.compile(rf"(?:/{_PATH_PART})+/?")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_LABEL_VALUE = re.compile(r"[A-Za-z0-9](?:[-._A-Za-z0-9]{0,61}[A-Za-z0-9])?")
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Section(BaseModel):
    """A mapping that refuses keys it does not know."""

    # Numbers stand for strings because `pulumi config set --path` writes a bare 0.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def _bytes(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        count: float = value
    else:
        match = _BYTES.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise ValueError('must be bytes, as in "24Gi", "80G" or 25769803776')
        unit = "k" if match[2] == "K" else match[2] or ""
        count = float(match[1]) * _UNITS[unit]
    if not 2**20 <= count <= 2**60:
        raise ValueError(
            'must be from 1Mi to 1024Pi; a number alone counts bytes, so that 24 GiB are "24Gi"'
        )
    return int(count)


def _cores(value: Any) -> float:
    match = _CORES.fullmatch(str(value).strip()) if not isinstance(value, bool) else None
    if match is None:
        raise ValueError('must be CPU cores, as in 2, 0.5 or "500m"')
    cores = float(match[1]) / (1000 if match[2] else 1)
    if not 0.001 <= cores <= 1024:
        raise ValueError('must be from "1m" to 1024 cores; 4000 thousandths of one are "4000m"')
    return cores


def _layers(value: str) -> str:
    match = _LAYERS.fullmatch(value) if value else None
    if value and match is None:
        raise ValueError('must be "first-last", both inclusive, as in "0-7"; "3" is one layer')
    if match and match[2] and int(match[2]) < int(match[1]):
        raise ValueError("the last layer must not lie before the first")
    return value


def _matching(pattern: re.Pattern[str], rule: str, optional: bool = True) -> AfterValidator:
    def check(value: str) -> str:
        if (value or not optional) and pattern.fullmatch(value) is None:
            raise ValueError(rule)
        return value

    return AfterValidator(check)


def _template_arguments(value: dict[str, Any]) -> dict[str, Any]:
    check_template_arguments(value)
    for name in OWN_NAMES:
        if name in value:
            raise ValueError(f"must not hold {name}, which a template gets from the server")
    return value


def _lone_item_is_a_list(value: Any) -> Any:
    return [value] if isinstance(value, str | int) and not isinstance(value, bool) else value


# `pulumi config set --path` writes a bare 0 where "0" is meant.
_TEXT = {"type": ["string", "integer"]}
_LABEL_RULE = "must be a DNS-1123 label: lower case letters, digits and -, at most 63 characters"
_NAME_RULE = _LABEL_RULE + ", starting with a letter (Services are named by it)"

Integer = Annotated[int, NO_BOOLEAN]
Positive = Annotated[Integer, Field(ge=1)]
WorldSize = Annotated[Integer, Field(ge=1, le=1024)]  # more layers than any model has
Seconds = Annotated[float, NO_BOOLEAN, Field(gt=0, le=30 * 24 * 3600)]
Drain = Annotated[float, NO_BOOLEAN, Field(ge=0, le=30 * 24 * 3600)]
Window = Annotated[Integer, Field(ge=0, le=3600)]  # what an autoscaler's stabilisation takes
Port = Annotated[Integer, Field(ge=1, le=65535)]
Text = Annotated[str, WithJsonSchema(_TEXT)]
NonEmptyText = Annotated[str, Field(min_length=1), WithJsonSchema(_TEXT)]
Name = Annotated[str, _matching(_NAME, _NAME_RULE, False), WithJsonSchema(_TEXT)]
Label = Annotated[str, _matching(_LABEL, _LABEL_RULE, False), WithJsonSchema(_TEXT)]
OptionalLabel = Annotated[str, _matching(_LABEL, _LABEL_RULE), WithJsonSchema(_TEXT)]
TemplateArguments = Annotated[dict[str, Any], AfterValidator(_template_arguments)]
Key = Annotated[
    str,
    _matching(_KEY, "must be a label's or taint's key, as in nvidia.com/gpu"),
    WithJsonSchema(_TEXT),
]
LabelKey = Annotated[str, _matching(_KEY, "must be a label's key, as in nvidia.com/gpu", False)]
LabelValue = Annotated[
    str,
    _matching(_LABEL_VALUE, "must be a label's value: letters, digits, -, _ and ., at most 63"),
    WithJsonSchema(_TEXT),
]
ClassName = Annotated[
    str,
    _matching(_NODE, "must be a class's name: lower case letters, digits, - and ."),
    WithJsonSchema(_TEXT),
]
Node = Annotated[
    str,
    _matching(_NODE, "must be a node's name: lower case letters, digits, - and ."),
    WithJsonSchema(_TEXT),
]
AbsolutePath = Annotated[
    str,
    _matching(_ABSOLUTE_PATH, "must be a path from the root, without .."),
    WithJsonSchema({"type": "string"}),
]
RelativePath = Annotated[
    str,
    _matching(_RELATIVE_PATH, "must be a path below the volume's root, without .."),
    WithJsonSchema(_TEXT),
]
Image = Annotated[
    str,
    _matching(_IMAGE, "must be an image reference: host:port/path:tag or ...@sha256:digest"),
    WithJsonSchema({"type": "string"}),
]
Address = Annotated[
    str,
    _matching(_ADDRESS, "must be a host name or an IP address, without a port"),
    WithJsonSchema(_TEXT),
]
ControllerClass = Annotated[
    str,
    _matching(_KEY, "must be a class's name, as in nginx or service.k8s.aws/nlb"),
    WithJsonSchema(_TEXT),
]
HostName = Annotated[
    str,
    _matching(_NODE, "must be a DNS name in lower case, as in chat.example.com"),
    WithJsonSchema(_TEXT),
]
NamespacedName = Annotated[
    str,
    _matching(_NAMESPACED, "must be NAMESPACE/NAME, as in gateways/public"),
    WithJsonSchema({"type": "string"}),
]
FileName = Annotated[
    str,
    _matching(_FILE_NAME, "must be a key of a ConfigMap: letters, digits, -, _ and .", False),
    WithJsonSchema(_TEXT),
]
StackName = Annotated[
    str,
    _matching(
        _STACK_NAME,
        "must be ORGANIZATION/PROJECT/STACK; without Pulumi Cloud the first one is organization",
    ),
    WithJsonSchema({"type": "string"}),
]
Origin = Annotated[
    str,
    _matching(
        _ORIGIN,
        'must be an origin, lower case and without a path, as in https://chat.test, or "*"',
        False,
    ),
    WithJsonSchema({"type": "string"}),
]
Interface = Annotated[
    str,
    _matching(_INTERFACE, "must be a network interface's name, at most 15 characters"),
    WithJsonSchema(_TEXT),
]
Devices = Annotated[
    str,
    _matching(_DEVICES, 'must list devices by index or UUID, as in "0" or "0,1"'),
    WithJsonSchema(_TEXT),
]
Ordinals = Annotated[
    str,
    _matching(_ORDINALS, "must list CUDA ordinals, counted from 0 within the visible devices"),
    WithJsonSchema(_TEXT),
]
ModelName = Annotated[
    str,
    _matching(
        _MODEL_NAME,
        "must be a model's name, as in chat or gpt-4.1: letters, digits and . _ : / -, at most 128",
        False,
    ),
]
Share01 = Annotated[float, NO_BOOLEAN, Field(gt=0, le=1)]
Share = Annotated[Integer, Field(ge=0, le=1_000_000)]
EnvironmentName = Annotated[
    str, _matching(_ENVIRONMENT_NAME, "must be an environment variable's name", False)
]
Layers = Annotated[str, AfterValidator(_layers), WithJsonSchema(_TEXT | {"format": "layers"})]
Bytes = Annotated[
    int, BeforeValidator(_bytes), WithJsonSchema({"type": ["integer", "string"], "format": "bytes"})
]
Cores = Annotated[
    float,
    BeforeValidator(_cores),
    WithJsonSchema({"type": ["number", "string"], "format": "cores"}),
]
Speed = Annotated[float, NO_BOOLEAN, Field(gt=0, le=1e6)]
LabelList = Annotated[
    list[Label],
    BeforeValidator(_lone_item_is_a_list),
    WithJsonSchema({"anyOf": [{"type": "array", "items": _TEXT}, {"type": "string"}]}),
]
