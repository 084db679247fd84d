"""Run-time type checks in the tests, at a fraction of their cost.

jaxtyping's import hook wraps every function to bind the names of dimensions, which takes about fifty times as
long as beartype's own checks. Here functions without array shapes are checked by beartype alone, and those
with shapes in their first 100 calls and in every tenth after that. Checks are compiled at a function's first
call.
"""

import functools
from types import FunctionType
from typing import get_args

import jaxtyping

ALWAYS, EVERY = 100, 10
with_dimensions = jaxtyping.jaxtyped
own_dimensions = with_dimensions("context")


def jaxtyped(*, typechecker):
    """Stand-in for `jaxtyping.jaxtyped`, as the import hook calls it."""

    def decorate(thing):
        if isinstance(thing, type) and hasattr(thing.__init__, "__wrapped__"):
            return thing  # the package's own `checked` comes first
        if not isinstance(thing, FunctionType):  # a class, a property, a static method
            return with_dimensions(thing, typechecker=typechecker)
        if not any(map(has_shapes, thing.__annotations__.values())):
            return checked_in_calls(thing, typechecker, always=True)
        return checked_in_calls(thing, functools.partial(with_dimensions, typechecker=typechecker))

    return decorate


def has_shapes(hint):
    """Whether an annotation contains an array type of jaxtyping."""
    if isinstance(hint, str):
        return "[" in hint
    return getattr(hint, "__module__", "") == "jaxtyping" or any(map(has_shapes, get_args(hint)))


def checked_in_calls(function, check, *, always=False):
    """The function, checked in all calls or in some of them."""
    checked, calls = None, 0

    @functools.wraps(function)
    def call(*args, **kwargs):
        nonlocal checked, calls
        if checked is None:
            checked = check(function)
        calls += 1
        with own_dimensions:  # not those of the caller's signature
            if always or calls <= ALWAYS or calls % EVERY == 0:
                return checked(*args, **kwargs)
            return function(*args, **kwargs)

    return call


jaxtyping.jaxtyped = jaxtyped
