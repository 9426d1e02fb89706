"""Lesions of whole blocks, by hooks: a block passes its input on, or its patches are replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deepvit.capturing.anatomy import Anatomy, Part
from deepvit.capturing.seen import TokenLayout
from deepvit.capturing.spatial import first_tensor
from deepvit.capturing.tokens import in_form
from deepvit.errors import UserError

_Change = Callable[[Tensor], Tensor]


class Passing:
    """Puts such lesions on a model and takes them off again."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.model, self.parts = anatomy.model, anatomy.parts
        self.reached: set[str] = set()
        self._handles: list[RemovableHandle] = []
        self._forwards: list[tuple[nn.Module, Any]] = []
        self._entered: dict[str, Tensor] = {}

    def skip(self, part: Part) -> None:
        """The part passes its input on."""
        label = f"skip {part.name}"
        if not part.called:
            self._remember(part)
            self._at(part.name, part.tokens, label, lambda stream: self._entered[part.name])
            return
        module = self.model.get_submodule(part.name)
        stream = part.stream
        assert stream is not None

        def given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
            self.reached.add(label)
            return args[stream] if isinstance(stream, int) else kwargs[stream]  # type: ignore[no-any-return]

        if part.bare:
            self._forwards.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = lambda *args, **kwargs: given(args, kwargs)
        else:
            # It returns more than its tokens: what else it returns has to be computed.
            kept: dict[str, Tensor] = {}

            def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                kept["stream"] = given(args, kwargs).clone()  # the block may add to it in place

            def put(_module: nn.Module, _args: Any, output: Any) -> Any:
                return with_first(output, kept.pop("stream"))

            self._handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
            self._handles.append(module.register_forward_hook(put))

    def patches(self, part: Part, by: _Change) -> None:
        """The patches that leave the part are ``by`` of them."""
        layout = part.tokens
        assert layout is not None

        def change(stream: Tensor) -> Tensor:
            tokens = in_order(stream, layout)
            patches = tokens[:, layout.patches]
            instead = by(patches)
            if instead.shape != patches.shape:
                raise UserError(
                    f"{part.name}: patches {tuple(patches.shape)} were replaced by {tuple(instead.shape)}"
                )
            tokens = tokens.clone()
            tokens[:, layout.patches] = instead.to(tokens.dtype)
            return in_form(tokens, layout.form, stream)

        self._at(part.name, layout, f"patches of {part.name}", change)

    def remove(self) -> None:
        """Take everything off."""
        for handle in self._handles:
            handle.remove()
        for module, before in reversed(self._forwards):
            if before is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = before
        self._handles.clear()
        self._forwards.clear()
        self._entered.clear()

    def _remember(self, part: Part) -> None:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            stream = first_tensor((*args, *kwargs.values()))
            assert stream is not None
            self._entered[part.name] = stream.clone()

        module = self.model.get_submodule(part.start)
        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _at(self, block: str, layout: TokenLayout | None, label: str, change: _Change) -> None:
        """Change the tokens where they leave the block."""
        assert layout is not None
        module = self.model.get_submodule(layout.module)

        def entering(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # The next module gets the stream, and what is around it adds to the same tensor: it has to change
            # itself.
            stream = first_tensor((*args, *kwargs.values()))
            assert stream is not None
            if stream.requires_grad:
                raise UserError(
                    f"{block} is no module of its own: replace what leaves it under torch.no_grad()"
                )
            self.reached.add(label)
            stream.copy_(change(stream.clone()))

        def leaving(_module: nn.Module, _args: Any, output: Any) -> Any:
            stream = first_tensor(output)
            assert stream is not None
            self.reached.add(label)
            return with_first(output, change(stream))

        if layout.side == "input":
            # Before hooks that were put on earlier: what they remember is what the block left.
            hook = module.register_forward_pre_hook(entering, with_kwargs=True, prepend=True)
            self._handles.append(hook)
        else:
            self._handles.append(module.register_forward_hook(leaving))


def in_order(stream: Tensor, layout: TokenLayout) -> Tensor:
    """Tokens of any form as [B, N, C]."""
    if layout.form == "NBC":
        return stream.transpose(0, 1)
    if layout.form == "BCN":
        return stream.mT
    if layout.form == "BhwC":
        return stream.flatten(1, 2)
    if layout.form == "BChw":
        return stream.flatten(2).mT
    return stream


def with_first(output: Any, tensor: Tensor) -> Any:
    """The same output with another first tensor."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, Mapping):
        key = next(k for k, v in output.items() if first_tensor(v) is not None)
        changed = dict(output) | {key: with_first(output[key], tensor)}
        return (
            type(output)(**changed)
            if not isinstance(output, dict) or hasattr(output, "to_tuple")
            else changed
        )
    place = next(i for i, v in enumerate(output) if first_tensor(v) is not None)
    items = [with_first(v, tensor) if i == place else v for i, v in enumerate(output)]
    return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
