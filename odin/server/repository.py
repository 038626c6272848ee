"""The models of a server: loaded, replaced and unloaded while it serves.

A new version takes over with nothing lost::

    old   READY ........................... requests under way finish ... closed
    new            LOADING (seconds) ... READY: every request from here on
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from odin.errors import OdinError
from odin.fleet.fleet import Fleet
from odin.fleet.packed import SUFFIX
from odin.monitor.events import Event
from odin.server.config import ModelConfig, find_models, is_model_file, read_model
from odin.server.failures import FailureKind, RequestError
from odin.server.messages import ModelState
from odin.server.served import ServedModel
from odin.server.served_family import ServedFamily
from odin.server.served_fleet import ServedFleet

__all__ = ["Repository"]

_log = logging.getLogger(__name__)
_NAMED = 20
"""So many models are named in an error."""
_SPEAKING = (ValueError, OSError, OdinError, ImportError, MemoryError, RuntimeError)
"""Errors whose message is enough; of others the log tells where they come from."""


class _Entry:
    """A model by its name: what serves it, what is under way with it, why it does not serve."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.served: ServedModel | None = None
        self.state, self.reason = "UNAVAILABLE", "not loaded"
        self.lock = asyncio.Lock()  # one load or unload at a time


class Repository:
    """Models by name; its methods are those of one event loop, and nothing here blocks it.

    Parameters
    ----------
    folder
        Where ``NAME.toml`` lie; None: there are only the given ones.
    configs
        Models beside those of the folder.
    drain_s
        How long requests of a model that is unloaded may take.
    on_event
        Called with a model's name and each event of its pipeline, from other threads.
    packed
        Packed models of the folder, beside those that have a file ``NAME.toml``.
    """

    def __init__(
        self,
        folder: Path | None = None,
        configs: Sequence[ModelConfig] = (),
        *,
        drain_s: float = 30.0,
        on_event: Callable[[str, Event], None] = lambda name, event: None,
        packed: ServedFleet | None = None,
    ) -> None:
        self._packed, self._packed_names = packed, set[str]()
        self._folder, self._drain_s, self._on_event = folder, drain_s, on_event
        self._entries = {config.name: _Entry(config) for config in configs}
        self._draining: set[asyncio.Task[None]] = set()
        # One at a time: two that are loaded at once would disturb each other's timing of layers.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="odin-load")
        self._closer = ThreadPoolExecutor(4, thread_name_prefix="odin-unload")

    def find(self) -> list[str]:
        """Look into the folder for models that are not known yet; returns all names.

        Raises
        ------
        ValueError, OSError
            If a file cannot be read or is not valid.
        """
        for path in self._new_files():
            self._entries[path.stem] = _Entry(read_model(path))
        self._find_packed()
        return list(self._entries)

    def _find_packed(self) -> None:
        for name in [] if self._packed is None else self._packed.names():
            if name not in self._entries:
                self._packed_names.add(name)
                self._entries[name] = _Entry(ModelConfig(name=name, source=f"{name}{SUFFIX}"))
            elif name not in self._packed_names:
                raise _twice(name)

    def is_packed(self, name: str) -> bool:
        """Whether a model is a packed one, which is loaded into memory by demand."""
        return name in self._packed_names

    @property
    def fleet(self) -> Fleet | None:
        """What serves packed models; None while none does."""
        return None if self._packed is None else self._packed.fleet

    def _new_files(self) -> list[Path]:
        files = () if self._folder is None else find_models(self._folder)
        return [path for path in files if path.stem not in self._entries]

    @asynccontextmanager
    async def use(self, name: str, version: str = "") -> AsyncIterator[ServedModel]:
        """Have the model that serves a name, which is not closed meanwhile.

        Raises
        ------
        RequestError
            If there is none, or none of that version, or it does not serve at present.
        """
        served = self.served(name, version)
        served.under_way += 1
        try:
            yield served
        finally:
            served.under_way -= 1

    def served(self, name: str, version: str = "") -> ServedModel:
        """Return the model that serves a name; see :meth:`use`."""
        entry = self._entry(name, version)
        if entry.served is None:
            reason = f": {entry.reason}" if entry.reason else ""
            raise RequestError(FailureKind.NOT_READY, f"model {name!r} is {entry.state}{reason}")
        return entry.served

    def is_ready(self, name: str, version: str = "") -> bool:
        """Whether a model serves. ``RequestError`` if there is none."""
        return self._entry(name, version).served is not None

    def all_ready(self) -> bool:
        """Whether no model is being loaded for the first time."""
        return all(entry.served is not None or entry.state == "UNAVAILABLE" for entry in self._entries.values())

    def all_served(self) -> Mapping[str, ServedModel]:
        """Those that serve, by name."""
        entries = list(self._entries.items())  # at once: metrics are made in another thread
        return {name: served for name, entry in entries if (served := entry.served) is not None}

    def index(self) -> list[ModelState]:
        """All models and their states, by name."""
        with contextlib.suppress(OSError):
            for path in self._new_files():
                with contextlib.suppress(ValueError, OSError):  # a wrong file is told of when it is loaded
                    self._entries[path.stem] = _Entry(read_model(path))
        with contextlib.suppress(ValueError, OSError):
            self._find_packed()
        return [
            ModelState(name, entry.config.version, entry.state, entry.reason)
            for name, entry in sorted(self._entries.items())
        ]

    def _entry(self, name: str, version: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            names = sorted(self._entries)
            known = ", ".join(map(repr, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "") or "none"
            raise RequestError(FailureKind.NOT_FOUND, f"there is no model {name!r}; there are {known}")
        served = entry.config.version if entry.served is None else entry.served.config.version
        if version not in ("", served):
            raise RequestError(
                FailureKind.NOT_FOUND, f"model {name!r} has no version {version!r}; version {served!r} is served"
            )
        return entry

    async def load(self, name: str, config: ModelConfig | None = None) -> None:
        """Load a model, or load it anew and let the new one take over.

        Parameters
        ----------
        name
            A model that is known, or whose file is in the folder.
        config
            What it is from now on; by default what its file says now.

        Raises
        ------
        RequestError
            If it is not known, or cannot be served; what served before goes on then.
        """
        config = config or self._config_now(name)
        entry = self._entries.setdefault(name, _Entry(config))
        async with entry.lock:
            entry.config = config
            if entry.served is None:
                entry.state, entry.reason = "LOADING", ""
            packed = self._packed if name in self._packed_names else None
            making = self._loader.submit(_make, config, self._on_event, packed)
            try:
                served = await asyncio.wrap_future(making)
            except BaseException:
                making.add_done_callback(_close_made)
                if entry.served is None:
                    entry.state, entry.reason = "UNAVAILABLE", "loading was broken off"
                raise
            if not isinstance(served, ServedModel):
                reason = _told(served)
                if not isinstance(served, _SPEAKING):  # the message alone, which its caller tells, does not say enough
                    _log.error("model %s cannot be served", name, exc_info=served)
                if entry.served is None:
                    entry.state, entry.reason = "UNAVAILABLE", reason
                else:
                    entry.config = entry.served.config
                raise RequestError(FailureKind.INVALID, f"model {name!r} cannot be served: {reason}") from served
            before, entry.served = entry.served, served
            entry.state, entry.reason = "READY", ""
        if served.random_weights:
            _log.warning("model %s has random weights: its answers mean nothing; give trained ones by weights", name)
        if before is not None:
            self._retire(before)

    def _config_now(self, name: str) -> ModelConfig:
        folder = self._folder
        try:  # without looking through the folder for each of many models
            if folder is not None:
                folder.stat()  # raises if it is gone
                if is_model_file(path := folder / f"{name}.toml", folder):
                    if name in self._packed_names:
                        raise _twice(name)
                    return read_model(path)
            if name not in self._packed_names:
                self._find_packed()
        except (ValueError, OSError) as error:
            raise RequestError(FailureKind.INVALID, str(error)) from error
        return self._entry(name, "").config

    async def unload(self, name: str) -> None:
        """Take no more requests for a model; those under way are finished, then its stages end.

        Raises
        ------
        RequestError
            If there is no such model.
        """
        entry = self._entry(name, "")
        async with entry.lock:
            served, entry.served = entry.served, None
            if served is not None:
                entry.state, entry.reason = "UNLOADING", "it is unloaded"
                await self._close(served)
            entry.state, entry.reason = "UNAVAILABLE", "unloaded"

    def _retire(self, served: ServedModel) -> None:
        task = asyncio.get_running_loop().create_task(self._close(served))
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    async def _close(self, served: ServedModel) -> None:
        """Let a model's requests finish, and end it."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._drain_s
        while served.under_way and loop.time() < end_s:
            await asyncio.sleep(0.02)
        await loop.run_in_executor(self._closer, lambda: served.close(timeout_s=max(0.0, end_s - loop.time())))

    async def close(self) -> None:
        """Unload all models."""
        serving = [name for name, entry in self._entries.items() if entry.served is not None]
        await asyncio.gather(*(self.unload(name) for name in serving), *self._draining, return_exceptions=True)
        for pool in (self._loader, self._closer):  # a model that is just being made is made, and closed
            await asyncio.to_thread(pool.shutdown, wait=True, cancel_futures=True)
        if self._packed is not None:
            await asyncio.to_thread(self._packed.close)


def _make(
    config: ModelConfig, tell: Callable[[str, Event], None], packed: ServedFleet | None = None
) -> ServedModel | BaseException:
    """Make a model, or return why not: a model's own code may raise anything, SystemExit too."""
    on_event = partial(tell, config.name)
    try:
        if config.variants:
            return ServedFamily(
                config, on_event=on_event, on_variant_event=lambda one, event: tell(f"{config.name}/{one}", event)
            )
        return ServedModel(config, on_event=on_event) if packed is None else packed.model(config)
    except BaseException as error:
        return error


def _twice(name: str) -> ValueError:
    return ValueError(f"model {name!r} has a file {name}.toml and is packed as {name}{SUFFIX}: remove one")


def _told(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # by its own code, as that of a model may be
        return f"{type(error).__name__}, which cannot say what it is about"


def _close_made(making: Future[ServedModel | BaseException]) -> None:
    """Close a model that nobody waits for any more."""
    if not making.cancelled() and isinstance(made := making.result(), ServedModel):
        made.close(drain=False)
