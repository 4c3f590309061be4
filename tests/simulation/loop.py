"""An event loop whose time is simulated, shared by simulated processes.

Each process has its own queue of callbacks, run in order as asyncio does; which process runs next is the seed's choice.
A process can be stopped for a while, as by SIGSTOP, or killed at any await. Time passes only when nobody can run.
"""

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

#: A run that needs more callbacks than this goes round in circles.
STEPS_MAX = 3_000_000
#: How often a killed coroutine that awaits in a `finally` is closed again.
CLOSINGS_MAX = 20


class Stuck(Exception):
    """Raised when nothing can run any more, or a run takes more steps than it may."""


def _nothing() -> None:
    return


class Process:
    """What shares one life: its callbacks run in order, stop together and die together."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.ready: deque[Handle] = deque()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.is_alive = True
        self.is_stopped = False
        #: When it was stopped, and for how long.
        self.stops: list[tuple[float, float]] = []
        #: Called once this many of its callbacks have run; so faults find it at work, and not only idle.
        self.fuse = 0
        self.on_fuse: Callable[[], None] = _nothing
        #: How far its clock is off.
        self.skew_s = 0.0
        #: The version of the rules it decides by.
        self.decide = 1
        #: Called when it is killed: its sockets are closed by the kernel.
        self.on_death: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"Process({self.name})"


class Handle:
    """A callback of a process, perhaps with a time; what `call_soon` and `call_at` answer."""

    __slots__ = ("_at", "_is_cancelled", "args", "callback", "context", "process", "serial")

    def __init__(
        self,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        context: contextvars.Context,
        process: Process,
        serial: int,
        at: float = 0.0,
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.process = process
        self.serial = serial
        self._at = at
        self._is_cancelled = False

    def cancel(self) -> None:
        self._is_cancelled = True
        self.callback, self.args = _nothing, ()

    def cancelled(self) -> bool:
        return self._is_cancelled

    def when(self) -> float:
        return self._at

    def __hash__(self) -> int:
        # By address, sets of handles would be gone through in another order each time.
        return self.serial

    def __eq__(self, other: object) -> bool:
        return self is other


class SerialFuture(asyncio.Future[Any]):
    """A future whose hash does not depend on where it lies in memory."""

    serial: int

    def __hash__(self) -> int:
        return self.serial


class SerialTask(asyncio.Task[Any]):
    """A task whose hash does not depend on where it lies in memory."""

    serial: int

    def __hash__(self) -> int:
        return self.serial


class SimulatedLoop(asyncio.AbstractEventLoop):
    """The loop all simulated processes share."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.now = 0.0
        self.steps = 0
        self.current = Process("outside", 0)
        self._heap: list[tuple[float, int, Handle]] = []
        self._serial = 0
        self._processes = 0
        #: Processes with something to run.
        self._runnable: list[Process] = []
        self._is_running = False
        self._is_closed = False
        self.errors: list[str] = []
        self.connect: Callable[[Any], Coroutine[Any, Any, Any]] | None = None

    # Processes.

    def process(self, name: str) -> Process:
        self._processes += 1
        return Process(name, self._processes)

    def spawn(self, process: Process, coroutine: Coroutine[Any, Any, Any]) -> "SerialTask":
        """Starts a coroutine in a process."""
        outer, self.current = self.current, process
        try:
            task: SerialTask = self.create_task(coroutine)
            return task
        finally:
            self.current = outer

    def post(self, process: Process, at: float, callback: Callable[..., Any], *args: Any) -> Handle:
        """Calls in a process at a time; for what comes from outside of it."""
        self._serial += 1
        handle = Handle(callback, args, contextvars.Context(), process, self._serial, at)
        heapq.heappush(self._heap, (at, self._serial, handle))
        return handle

    def stop_process(self, process: Process, seconds: float) -> None:
        """Lets a process not run for so long, as SIGSTOP does; its time goes on."""
        if process.is_alive and not process.is_stopped:
            process.is_stopped = True
            process.stops.append((self.now, seconds))
            if process in self._runnable:
                self._runnable.remove(process)
            self.post(self.current, self.now + seconds, self._continue, process)

    def _continue(self, process: Process) -> None:
        process.is_stopped = False
        if process.ready and process.is_alive:
            self._runnable.append(process)

    def kill(self, process: Process) -> None:
        """Ends a process at once, wherever each of its tasks waits now."""
        process.is_alive = False
        process.ready.clear()
        if process in self._runnable:
            self._runnable.remove(process)
        outer, self.current = self.current, process
        try:
            for callback in process.on_death:
                callback()
            for task in list(process.tasks):
                _bury(task)
        finally:
            self.current = outer
        process.tasks.clear()

    # Running.

    def run_until(self, condition: Callable[[], bool], until: float) -> bool:
        """Runs until the condition holds or the time is over; answers whether it holds."""
        # A test may run a world inside of a loop of its own.
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        self._is_running = True
        try:
            runnable, random = self._runnable, self._random.random
            while not condition():
                if runnable:
                    self._step(runnable, random)
                elif not self._jump(until):
                    return condition()
            return True
        finally:
            self._is_running = False
            asyncio._set_running_loop(outer)

    def _step(self, runnable: list[Process], random: Callable[[], float]) -> None:
        self.steps += 1
        if self.steps > STEPS_MAX:
            raise Stuck(f"more than {STEPS_MAX} steps at {self.now:.3f}")
        index = 0 if len(runnable) == 1 else int(random() * len(runnable))
        process = runnable[index]
        ready = process.ready
        handle = ready.popleft()
        if not ready:
            runnable[index] = runnable[-1]
            runnable.pop()
        if handle._is_cancelled:
            return
        self.current = process
        try:
            handle.context.run(handle.callback, *handle.args)
        except Exception as error:  # noqa: BLE001
            self.call_exception_handler({"message": f"{handle.callback} raised", "exception": error})
        if process.fuse:
            process.fuse -= 1
            if not process.fuse:
                process.on_fuse()

    def _jump(self, until: float) -> bool:
        heap = self._heap
        while heap and heap[0][2]._is_cancelled:
            heapq.heappop(heap)
        if not heap or heap[0][0] > until:
            self.now = max(self.now, until)
            return False
        self.now = max(self.now, heap[0][0])
        while heap and heap[0][0] <= self.now:
            handle = heapq.heappop(heap)[2]
            if not handle._is_cancelled:
                self._queue(handle)
        return True

    def _queue(self, handle: Handle) -> None:
        process = handle.process
        if not process.is_alive:
            return
        if not process.ready and not process.is_stopped:
            self._runnable.append(process)
        process.ready.append(handle)

    # What asyncio asks of a loop.

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
        self._serial += 1
        handle = Handle(callback, args, context or contextvars.copy_context(), self.current, self._serial)
        self._queue(handle)
        return handle

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
        return self.call_soon(callback, *args, context=context)

    def call_later(self, delay: float, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
        self._serial += 1
        handle = Handle(callback, args, context or contextvars.copy_context(), self.current, self._serial, when)
        if self.current.is_alive:
            heapq.heappush(self._heap, (when, self._serial, handle))
        return handle

    def create_future(self) -> Any:
        self._serial += 1
        future = SerialFuture(loop=self)
        future.serial = self._serial
        return future

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> Any:
        self._serial += 1
        # Its hash is asked for while it is being made.
        task = SerialTask.__new__(SerialTask)
        task.serial = self._serial
        task.__init__(coro, loop=self, name=name or f"task-{self._serial}", context=context)  # type: ignore[misc]
        process = self.current
        process.tasks.add(task)
        task.add_done_callback(process.tasks.discard)
        if not process.is_alive:
            _bury(task)
        return task

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        assert self.connect is not None
        return await self.connect(protocol_factory)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._is_running

    def is_closed(self) -> bool:
        return self._is_closed

    def close(self) -> None:
        self._is_closed = True

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if self.current.is_alive:
            self.errors.append(f"{self.current.name}: {context.get('message')}: {error!r}")

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)


def _bury(task: "asyncio.Task[Any]") -> None:
    """Ends a coroutine that will never run again, so that it does not run when it is collected."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    coroutine: Any = task.get_coro()
    for _ in range(CLOSINGS_MAX):
        try:
            coroutine.close()
        except RuntimeError:
            # It awaits while it is closed; its process is dead, so nothing comes of it.
            continue
        except Exception:  # noqa: BLE001
            # Its process is dead: nobody hears of it.
            return
        return
