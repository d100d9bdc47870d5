"""Numbers by their addresses, for passes that Numba compiles (the extra ``fast``).

These functions become part of what calls them, and Numba does not see when they change: who changes them removes what
it kept of the others (``*.nbi``, in ``__pycache__``).
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from weightsmith_plugins.native.compiling import compiled

__all__ = ["bits_at", "fetch", "kept_at", "room_for", "row_at", "share_of", "values_at"]

_inlined = functools.partial(compiled, error_model="numpy")


def _pointer_to(number: Any) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def pointer(_: Any, address: Any) -> Any:
        signature = types.CPointer(number)(address)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return signature, generate

    return pointer


_float32, _int32, _uint8 = _pointer_to(types.float32), _pointer_to(types.int32), _pointer_to(types.uint8)


@intrinsic  # type: ignore[untyped-decorator]
def fetch(_: Any, address: Any) -> Any:
    """Ask for the 64 bytes at an address, which need not be anybody's, so that they are near when they are read.
    https://llvm.org/docs/LangRef.html#llvm-prefetch-intrinsic"""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        ask = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        to_read, nearness, data = (ir.Constant(number, value) for value in (0, 2, 1))
        builder.call(ask, [builder.inttoptr(arguments[0], pointer), to_read, nearness, data])
        return context.get_dummy_value()

    return types.void(address), generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def room_for(_: Any, count: Any) -> Any:
    """A pointer to room on the stack for so many unsigned integers of 16 bits, a constant. It is gone when the function
    returns that calls this, which must not hand it on; it holds anything at first, and in a loop it is the same each
    time. LLVM knows that it overlaps nothing that this function is given."""
    if not isinstance(count, types.IntegerLiteral) or count.literal_value < 1:
        raise TypingError(f"room_for takes a constant of at least 1, and not {count}")

    def generate(_: Any, builder: Any, *__: Any) -> Any:
        return cgutils.alloca_once(builder, ir.IntType(16), size=count.literal_value)

    return types.CPointer(types.uint16)(count), generate


@_inlined
def values_at(address: int, first: int, last: int) -> Any:
    """Of the float32 numbers from an address on, those from one place up to another."""
    return carray(_float32(address + 4 * first), (last - first,))


@_inlined
def row_at(address: int, length: int, row: int) -> Any:
    """Of the float32 numbers from an address on, a row of so many."""
    return carray(_float32(address + 4 * row * length), (length,))


@_inlined
def bits_at(address: int, first: int, last: int) -> Any:
    """Their bits, as int32."""
    return carray(_int32(address + 4 * first), (last - first,))


@_inlined
def kept_at(address: int, first: int, last: int) -> Any:
    """Of a mask, as uint8."""
    return carray(_uint8(address + first), (last - first,))


@_inlined
def share_of(count: int, share: int, shares: int) -> tuple[int, int]:
    """Where a share of so many begins and ends."""
    return count * share // shares, count * (share + 1) // shares
