"""What lies before, in and after the layers of a model: one forward on the meta device tells.

Nothing is assumed of an architecture's names. What cannot be split is refused here, by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from runner.errors import RunnerError, UnsupportedModel
from runner.stage.model import attention
from runner.stage.model.kv_pool import LayerShape

_SHAPE_EXPERTS = "splitstack_shape"
_TOKENS = 8


@dataclass(slots=True)
class ModelLayout:
    """Names are module paths. `before` and `after` map modules with weights to their width.

    `tuple_lengths`: what each layer returns beside hidden states: the length of its tuple, or 0
    for a bare tensor. `tied` maps weight names to the weight they share. `weights` are all names
    of parameters and persistent buffers.
    """

    model_type: str
    layer_list: str
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    tuple_lengths: list[int] = field(default_factory=list)
    kv_shapes: dict[int, LayerShape] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    hidden_size: int = 0
    vocab_size: int = 0

    @property
    def num_layers(self) -> int:
        return len(self.tuple_lengths)

    def foreign_modules(self, layers: tuple[int, int]) -> dict[str, int]:
        """Modules outside the layers that a stage with these layers has no use for, with widths.

        A module that runs before and after stays at both ends; so does, on the last stage, the
        embedding whose weight the head shares.
        """
        first, last = layers[0] == 0, layers[1] == self.num_layers
        needed = {**(self.before if first else {}), **(self.after if last else {})}
        if last:
            owners = {source.rpartition(".")[0] for source in self.tied.values()}
            needed.update(dict.fromkeys(owners, 0))
        outside = {**self.before, **self.after}
        return {name: width for name, width in outside.items() if name not in needed}

    def only_tied(self, layers: tuple[int, int]) -> dict[str, int]:
        """Modules, with widths, that a stage with these layers loads for their weight alone, which
        its head shares: the last of several looks nothing up in the embedding."""
        if layers[0] == 0:
            return {}
        stays = self.foreign_modules(layers).keys() | self.after.keys()
        return {name: width for name, width in self.before.items() if name not in stays}

    def own_weights(self, layers: tuple[int, int]) -> set[str]:
        """Names of the weights that a stage with these layers holds."""
        foreign = tuple(f"{name}." for name in self.foreign_modules(layers))
        prefix = f"{self.layer_list}."
        own = set()
        for name in self.weights:
            if name.startswith(prefix):
                index = int(name.removeprefix(prefix).partition(".")[0])
                mine = layers[0] <= index < layers[1]
            else:
                mine = not name.startswith(foreign)
            if mine:
                own.add(name)
        return own

    def weight_bytes(self, layers: tuple[int, int], dtype: torch.dtype) -> int:
        """What a stage's weights take in this type, shared ones once."""
        own = self.own_weights(layers)
        kept = [name for name in own if self.tied.get(name) not in own]
        return sum(self.weights[name].numel() for name in kept) * dtype.itemsize

    def largest_weight_bytes(self, layers: tuple[int, int], dtype: torch.dtype) -> int:
        """What one weight of a stage's takes at most in this type."""
        own = self.own_weights(layers)
        return max(self.weights[name].numel() for name in own) * dtype.itemsize

    def kv_bytes_per_token(self, layers: tuple[int, int], dtype: torch.dtype) -> int:
        shapes = (self.kv_shapes[index] for index in range(*layers))
        return sum(shape.elements_per_token for shape in shapes) * dtype.itemsize


def read_layout(model_class: type[Any], config: Any) -> tuple[ModelLayout, Any]:
    """The layout, and the model on the meta device that it was read from.

    Raises UnsupportedModel. `config` is changed: pass a copy.
    """
    name = config.model_type
    config._attn_implementation = attention.IMPLEMENTATION
    config._experts_implementation = _SHAPE_EXPERTS
    try:
        with torch.device("meta"):
            # With a dtype it would be the process's default meanwhile, and another thread may be
            # computing.
            model = model_class._from_config(config, dtype=None).to(torch.bfloat16).eval()
        return _Trace(name, model).run(), model
    except UnsupportedModel as error:
        raise UnsupportedModel(f"model_type {name} cannot be split: {error}") from error
    except RunnerError:
        raise
    except Exception as error:  # whatever foreign modeling code raises
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        if "MaskWindow" in cause or cause == f"KeyError: '{attention.IMPLEMENTATION}'":
            cause = "it computes attention itself, outside transformers' attention interface"
        raise UnsupportedModel(f"model_type {name} cannot be split: {cause}") from error


class _Trace:
    """One forward with hooks. Gradients are on, to see what depends on which weights."""

    def __init__(self, name: str, model: Any) -> None:
        self._model = model
        self._list_name, self._layers = _find_layers(model)
        self._layout = ModelLayout(name, self._list_name)
        self._entered = self._left = 0
        self._hidden: torch.Tensor | None = None

    def run(self) -> ModelLayout:
        layout, model = self._layout, self._model
        handles = list(self._hook())
        attention.current.calls = []
        try:
            with torch.enable_grad():
                tokens = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
                positions = torch.arange(_TOKENS, device="meta")[None]
                output = model(
                    input_ids=tokens,
                    position_ids=positions,
                    attention_mask=torch.ones_like(tokens),
                    use_cache=False,
                )
            calls = attention.current.calls
        finally:
            attention.current.calls = None
            for handle in handles:
                handle.remove()
        if self._left != len(self._layers):
            raise UnsupportedModel(f"ran {self._left} of its {len(self._layers)} layers")
        layout.kv_shapes = self._kv_shapes(calls)
        layout.vocab_size = output.logits.shape[-1]
        layout.weights = dict(model.state_dict())
        layout.tied = dict(model.all_tied_weights_keys)
        self._check_logits(output.logits)
        return layout

    def _hook(self) -> Iterator[Any]:
        inside = f"{self._list_name}."
        for name, module in self._model.named_modules():
            outside = not name.startswith(inside) and name != self._list_name
            if outside and any(True for _ in module.parameters(recurse=False)) and name:
                yield module.register_forward_hook(self._note_outside(name))
        for index, layer in enumerate(self._layers):
            _check_layer(layer)
            yield layer.register_forward_pre_hook(self._enter(index), with_kwargs=True)
            yield layer.register_forward_hook(self._leave(index))

    def _note_outside(self, name: str) -> Any:
        def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self._entered == 0:
                where = self._layout.before
            elif self._left == len(self._layers):
                where = self._layout.after
            else:
                raise UnsupportedModel(f"{name} runs between its layers")
            if not isinstance(output, torch.Tensor):
                raise UnsupportedModel(f"{name} returns no tensor")
            where[name] = output.shape[-1]

        return note

    def _enter(self, index: int) -> Any:
        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if index != self._entered or index != self._left:
                raise UnsupportedModel("its layers do not run one after the other")
            hidden = args[0] if args else kwargs["hidden_states"]
            if index > 0 and hidden is not self._hidden:
                raise UnsupportedModel(f"something happens between layers {index - 1} and {index}")
            others = [*enumerate(args[1:], 1), *kwargs.items()]
            for name, value in others:
                if name == "hidden_states":
                    continue
                if any(tensor.requires_grad for tensor in _tensors(value)):
                    what = f"argument {name!s} of layer {index}"
                    raise UnsupportedModel(f"{what} depends on weights of other modules")
            self._entered += 1

        return enter

    def _leave(self, index: int) -> Any:
        def leave(_module: nn.Module, _args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            self._layout.tuple_lengths.append(len(output) if isinstance(output, tuple) else 0)
            self._layout.hidden_size = hidden.shape[-1]
            self._left += 1
            if index + 1 < len(self._layers):
                self._hidden = hidden
                return output
            # Cut the graph here: what the logits still depend on must come after the layers.
            cut = hidden.detach()
            return (cut, *output[1:]) if isinstance(output, tuple) else cut

        return leave

    def _kv_shapes(self, calls: list[attention.AttentionCall]) -> dict[int, LayerShape]:
        shapes: dict[int, LayerShape] = {}
        for call in calls:
            index = call.layer
            known = 0 <= index < len(self._layers)
            if not known or call.module not in self._layers[index].modules():
                raise UnsupportedModel(f"{type(call.module).__name__} has a layer_idx not its own")
            if index in shapes:
                raise UnsupportedModel(f"layer {index} attends more than once")
            shapes[index] = LayerShape(*call.key_shape, *call.value_shape)
        missing = [index for index in range(len(self._layers)) if index not in shapes]
        if missing:
            raise UnsupportedModel(
                f"layers {missing} do not call transformers' attention interface"
            )
        return shapes

    def _check_logits(self, logits: torch.Tensor) -> None:
        after = {
            id(parameter)
            for name in self._layout.after
            for parameter in self._model.get_submodule(name).parameters(recurse=False)
        }
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        for parameter in _leaves(logits):
            if id(parameter) in after:
                continue
            name = names.get(id(parameter), "?")
            inside = name.startswith(f"{self._list_name}.")
            if inside or name.rpartition(".")[0] in self._layout.before:
                raise UnsupportedModel(f"its logits depend on {name} past the last layer")


def _find_layers(model: Any) -> tuple[str, nn.ModuleList]:
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise UnsupportedModel(f"no list of {count} layers found in it")


def _check_layer(layer: nn.Module) -> None:
    """A convolution over tokens keeps a state of its own, which no KV slot holds."""
    for module in layer.modules():
        if isinstance(module, nn.Conv1d):
            raise UnsupportedModel("its layers keep a convolution state beside the KV cache")


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _leaves(output: torch.Tensor) -> Iterator[torch.Tensor]:
    """The parameters in the autograd graph of `output`."""
    waiting, seen = [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            yield variable
        waiting.extend(parent for parent, _ in node.next_functions)


def _shape_experts(
    _module: Any, hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any
) -> torch.Tensor:
    """Routing is data: on the meta device the experts are their shape only."""
    return hidden_states * 1


ALL_EXPERTS_FUNCTIONS.register(_SHAPE_EXPERTS, _shape_experts)
