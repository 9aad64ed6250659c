"""What commands tell: words to read, or with --json what their functions return, as one JSON value on stdout."""

from __future__ import annotations

import inspect
import json as jsonlib
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Annotated, Any, get_type_hints

HELP = "print one JSON value on stdout; words and progress go to stderr."


def with_json(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command's function with an argument `json` more; with one of its own it is returned as it is.

    Where `json` is set, what the function prints goes to stderr, and what it returns to stdout.
    """
    import tyro

    signature = inspect.signature(function)
    if "json" in signature.parameters:
        return function

    asked = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool)
    hints = get_type_hints(function, include_extras=True)
    # Not by functools.wraps: tyro would look through to the function, which has no such argument.
    return _shaped(
        lambda *arguments, json=False, **named: _told(function, arguments, named, json=json),
        signature=signature.replace(parameters=[*signature.parameters.values(), asked]),
        hints={**hints, "json": Annotated[bool, tyro.conf.arg(help=HELP)]},
        like=function,
    )


def _shaped(
    call: Any, *, signature: inspect.Signature, hints: Mapping[str, Any], like: Callable[..., Any]
) -> Callable[..., Any]:
    """Give a call that takes anything these arguments with their types, and the name and words of another one."""
    call.__signature__, call.__annotations__ = signature, dict(hints)
    call.__name__, call.__qualname__, call.__doc__ = like.__name__, like.__qualname__, like.__doc__
    made: Callable[..., Any] = call
    return made


def _told(function: Callable[..., Any], arguments: Sequence[Any], named: Mapping[str, Any], *, json: bool) -> None:
    if not json:
        function(*arguments, **named)
        return
    with redirect_stdout(sys.stderr):
        told = function(*arguments, **named)
    print(json_text(told))


def described(function: Callable[..., Any], example: str) -> str:
    """Return what a command's help begins with: its docstring without the arguments, and an example."""
    text = (inspect.getdoc(function) or "").partition("\nArgs:")[0].rstrip()
    return f"{text}\n\nFor example:\n\n    {example.rstrip()}"


def json_text(value: Any) -> str:
    """Return strict JSON of plain containers, with paths as strings and what is not finite as null."""
    return jsonlib.dumps(_finite(value), ensure_ascii=False, indent=1, allow_nan=False, default=os.fspath)


def _finite(value: Any) -> Any:
    if isinstance(value, float):  # numpy's float64 too
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value
