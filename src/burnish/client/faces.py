"""Operations that both clients offer, written once.

A method marked :class:`operation` returns the :class:`~burnish.client.calls.Call` to send. On a :class:`Face` it sends it
and returns the answer; on an :class:`AsyncFace` it has to be awaited for that. The clients differ in nothing else.
"""

import functools
import types
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from burnish.client.calls import Call

if TYPE_CHECKING:
    from burnish.client.asynchronous import AsyncClient
    from burnish.client.synchronous import Client

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class Face:
    """Operations of the client that waits."""

    def __init__(self, client: "Client") -> None:
        self._client = client


class AsyncFace:
    """Operations of the client for asyncio."""

    def __init__(self, client: "AsyncClient") -> None:
        self._client = client


class operation(Generic[Arguments, Answer]):  # noqa: N801 - a decorator
    """A method of either face, made of the method that says what is sent."""

    def __init__(self, call: Callable[Concatenate[Any, Arguments], Call[Answer]]) -> None:
        self._call, self.__doc__ = call, call.__doc__

    @overload
    def __get__(self, face: None, owner: type) -> "operation[Arguments, Answer]": ...
    @overload
    def __get__(self, face: Face, owner: type) -> Callable[Arguments, Answer]: ...
    @overload
    def __get__(self, face: AsyncFace, owner: type) -> Callable[Arguments, Coroutine[Any, Any, Answer]]: ...

    def __get__(self, face: Face | AsyncFace | None, owner: type) -> Any:
        if face is None:
            return self

        @functools.wraps(types.MethodType(self._call, face))
        def send(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer | Coroutine[Any, Any, Answer]:
            return face._client.send(self._call(face, *args, **kwargs))

        return send
