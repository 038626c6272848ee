"""A packed model: one file with the weights as they are computed with, mapped and not copied, and its code as data.

::

    magic | version u32 | header bytes u32 | code bytes u32 | SHA-256 of header and code
    header: JSON, what is this model's own
    code: JSON, what all models of its architecture share; known by its digest, so that the second one opens at once
    ... up to the next page ...
    weights: each at a multiple of 64 bytes

Weights that oneDNN computes with are packed for one kind of processor; on another the file is refused with the remedy.
Files and their folder must belong to this user or root, and nobody else may write them; links are not followed.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import math
import mmap
import os
import re
import secrets
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from odin.fleet.estimates import ModelFacts
from odin.stages.channel.wire import DTYPE_CODES, DTYPES, ITEM_NBYTES
from odin.stages.compute.weights import ALIGNMENT, StoredTensor

__all__ = [
    "SUFFIX",
    "Head",
    "Mapped",
    "PackedFile",
    "PackedFolder",
    "PackedModelError",
    "TensorSpec",
    "check_folder_owner",
    "check_name",
    "write_packed",
]

SUFFIX = ".packed"
"""Of a packed model's file: ``NAME.packed``."""

_MAGIC, _VERSION = b"ODINPACK", 1
_FIXED = struct.Struct("<8sIII32s")
_MOST_HEAD_NBYTES = 64 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")


class PackedModelError(ValueError):
    """A packed model cannot be used; the message names the file, the reason and the remedy."""


class TensorSpec(NamedTuple):
    """A tensor as callers give or get it, for the example's leading size; ``dtype`` as PyTorch has it."""

    kind: str
    shape: tuple[int, ...]
    dtype: str


class Head(NamedTuple):
    """What a packed model's file says before its weights.

    Attributes
    ----------
    name
        The model's; the file's without its ending.
    code
        Digest of the code that it shares with all models of its architecture.
    processor
        For which its weights are packed; empty: for any, and each executor packs its own.
    nbytes
        Of the file: what it takes in memory when it is open.
    baseline_s
        Seconds of one run alone on one core, by samples, ascending.
    limits, output_bounds
        Of each layer, see :class:`odin.partitioner.code.program.LayerProgram`.
    inputs, outputs
        For the example's leading size.
    dynamic_batch
        Whether other leading sizes work.
    channels_last
        Whether images are to be given in channels-last order.
    returns
        Structure of what a call returns, with numbered places for the outputs.
    labels, preprocess
        Of the model's source, if it has them: class names, and the fields of :class:`odin.models.images.Preprocess`.
    random_weights
        Whether nobody gave weights.
    weights_sha256, weights_at, weights_nbytes
        Checksum and place of the weights.
    digest
        Checksum of all that stands before the weights, theirs among it: two files with the same are the same.
    """

    name: str
    code: str
    processor: str
    nbytes: int
    baseline_s: tuple[tuple[int, float], ...]
    limits: tuple[tuple[float, ...], ...]
    output_bounds: tuple[tuple[float, ...], ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dynamic_batch: bool
    channels_last: bool
    returns: Any
    labels: tuple[str, ...] | None
    preprocess: Mapping[str, Any] | None
    random_weights: bool
    weights_sha256: str
    weights_at: int
    weights_nbytes: int
    digest: str

    @property
    def facts(self) -> ModelFacts:
        """What the scheduler needs to know."""
        return ModelFacts(self.nbytes, self.baseline_s, self.code)


def check_name(name: str) -> None:
    """Raise ``ValueError`` if a packed model cannot have this name."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be a packed model's name: take letters, digits, '_', '.' and '-', at most 128; it begins "
            "with none of the last two"
        )


def check_folder_owner(path: Path) -> None:
    """Raise :class:`PackedModelError` if others could write models into a folder; not if it is not there."""
    with contextlib.suppress(FileNotFoundError):
        _check_owner(path.stat(), path)


def write_packed(
    folder: Path,
    name: str,
    stored: Mapping[str, StoredTensor],
    *,
    layers: Sequence[Mapping[str, Any]],
    shared: Mapping[str, Any],
    own: Mapping[str, Any],
) -> Path:
    """Write a packed model; others see the old file or the new one, and nothing between. Returns its path.

    Parameters
    ----------
    folder
        Made if it is not there.
    name
        The model's.
    stored
        Its weights.
    layers
        Of :func:`odin.fleet.program_data.layer_to_data`.
    shared, own
        The fields of :class:`Head`: those that all models of the architecture share, and this one's.

    Raises
    ------
    ValueError
        If the name cannot be a file's.
    OSError
        If it cannot be written.
    """
    check_name(name)
    tensors, at = [], 0
    for tensor_name, one in stored.items():
        form = base64.b64encode(one.form).decode()
        tensors.append([tensor_name, DTYPES[one.dtype], list(one.shape), list(one.strides), form, at, one.data.nbytes])
        at = _aligned(at + one.data.nbytes, ALIGNMENT)
    digest = hashlib.sha256()
    for one in stored.values():
        digest.update(one.data.data)
        digest.update(bytes(-one.data.nbytes % ALIGNMENT))
    code = json.dumps({**shared, "layers": list(layers), "tensors": tensors}, separators=(",", ":")).encode()
    head = {
        **own,
        "name": name,
        "code": hashlib.sha256(code).hexdigest(),
        "weights_sha256": digest.hexdigest(),
        "weights_nbytes": at,
    }
    header = json.dumps(head, separators=(",", ":")).encode()
    fixed = _FIXED.pack(_MAGIC, _VERSION, len(header), len(code), hashlib.sha256(header + code).digest())
    padding = bytes(-(len(fixed) + len(header) + len(code)) % mmap.PAGESIZE)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = folder / f".writing-{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            file.writelines([fixed, header, code, padding])
            for one in stored.values():
                file.write(one.data.data)
                file.write(bytes(-one.data.nbytes % ALIGNMENT))
            file.flush()
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # it is not in memory until it is loaded
        path = folder / f"{name}{SUFFIX}"
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(folder / f"{name}{SUFFIX}")  # of which it is not said otherwise
        raise
    return path


class Mapped:
    """A packed model's weights in memory, until :meth:`close`.

    Attributes
    ----------
    head, code
        What the file says; ``code`` are the plain values that all models of its architecture share.
    stored
        The weights, views of the file.
    """

    def __init__(
        self, head: Head, code: Mapping[str, Any], mapping: mmap.mmap, stored: dict[str, StoredTensor]
    ) -> None:
        self.head, self.code, self.stored = head, code, stored
        self._mapping = mapping

    def close(self) -> None:
        """Unmap; nothing that was made of the weights may be used any more.

        Raises
        ------
        BufferError
            If something still reads them.
        """
        self.stored.clear()
        self._mapping.close()


class PackedFile(NamedTuple):
    """A packed model as whoever loads it expects it: the digest of the code that its file had."""

    name: str
    code: str


class PackedFolder:
    """The packed models of a folder, which must be this user's or root's alone.

    Parameters
    ----------
    path
        The folder.

    Raises
    ------
    PackedModelError
        If others can write it.
    OSError
        If it cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._codes: dict[str, Mapping[str, Any]] = {}
        try:
            _check_owner(os.fstat(self._descriptor), self.path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the folder; what is mapped stays. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self.close()

    def names(self) -> list[str]:
        """Names of all packed models, in order."""
        found = [name.removesuffix(SUFFIX) for name in os.listdir(self._descriptor) if name.endswith(SUFFIX)]
        return sorted(name for name in found if _NAME.fullmatch(name))

    def head(self, name: str) -> Head:
        """Read what a model's file says before its weights.

        Raises
        ------
        PackedModelError
            If it is no packed model, was changed, or can be written by others.
        OSError
            If it cannot be read.
        """
        with self._open(name) as file:
            return self._read(name, file)[0]

    def map(self, name: str) -> Mapped:
        """Map a model's weights, and read them from disk into memory.

        They are not compared with their checksum, which would take longer than reading them: :meth:`verify` does that.

        Raises
        ------
        PackedModelError, OSError
            As :meth:`head`.
        """
        with self._open(name) as file:
            head, code = self._read(name, file)
            flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
            mapping = mmap.mmap(file, head.nbytes, flags=flags, prot=mmap.PROT_READ)
        stored = {}
        for tensor, dtype, shape, strides, form, at, nbytes in code["tensors"]:
            data = np.frombuffer(mapping, np.uint8, nbytes, head.weights_at + at)
            stored[tensor] = StoredTensor(
                data, DTYPE_CODES[dtype], tuple(shape), tuple(strides), base64.b64decode(form)
            )
        return Mapped(head, code, mapping, stored)

    def verify(self, name: str) -> None:
        """Read a whole file, and compare its weights with their checksum.

        Raises
        ------
        PackedModelError, OSError
            As :meth:`head`; or if the weights are others.
        """
        with self._open(name) as file:
            head, _ = self._read(name, file)
            digest, at = hashlib.sha256(), head.weights_at
            while part := os.pread(file, 1 << 20, at):
                digest.update(part)
                at += len(part)
        if digest.hexdigest() != head.weights_sha256:
            raise PackedModelError(f"{self._path(name)}: its weights do not have their checksum: pack it again")

    def stamp(self, name: str) -> tuple[int, int, int]:
        """What another file by the same name, or one that was written to, has differently.

        Raises
        ------
        OSError
            If it is not there.
        """
        about = os.stat(f"{name}{SUFFIX}", dir_fd=self._descriptor, follow_symlinks=False)
        return about.st_ino, about.st_size, about.st_mtime_ns

    def drop(self, name: str) -> None:
        """Let the kernel forget a file's pages, unless some process still maps them."""
        with contextlib.suppress(OSError, PackedModelError), self._open(name) as file:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)

    def _path(self, name: str) -> Path:
        return self.path / f"{name}{SUFFIX}"

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[int]:
        if not _NAME.fullmatch(name):
            raise PackedModelError(f"{name!r} is no packed model's name")
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe there must not make us wait
        try:
            descriptor = os.open(f"{name}{SUFFIX}", flags, dir_fd=self._descriptor)
        except OSError as error:
            if error.errno == errno.ELOOP:
                path = self._path(name)
                raise PackedModelError(f"{path} is a link, which is not followed: put the file there") from None
            error.filename = str(self._path(name))
            raise
        try:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise PackedModelError(f"{self._path(name)} is no file")
            _check_owner(about, self._path(name))
            yield descriptor
        finally:
            os.close(descriptor)

    def _read(self, name: str, file: int) -> tuple[Head, Mapping[str, Any]]:
        path = self._path(name)
        start = os.pread(file, 1 << 16, 0)
        size = os.fstat(file).st_size
        try:
            magic, version, header_nbytes, code_nbytes, digest = _FIXED.unpack_from(start)
        except struct.error:
            raise PackedModelError(f"{path} is no packed model: make one with odin pack") from None
        if magic != _MAGIC:
            raise PackedModelError(f"{path} is no packed model: make one with odin pack")
        if version != _VERSION:
            raise PackedModelError(f"{path} has format {version}, this ODIN reads {_VERSION}: pack it again")
        end = _FIXED.size + header_nbytes + code_nbytes
        if end > min(size, _MOST_HEAD_NBYTES):
            raise PackedModelError(f"{path} ends early: pack it again")
        if end > len(start):
            start = os.pread(file, end, 0)
        header, code_text = start[_FIXED.size : _FIXED.size + header_nbytes], start[_FIXED.size + header_nbytes : end]
        if hashlib.sha256(header + code_text).digest() != digest:
            raise PackedModelError(f"{path} was changed after it was packed, or is damaged: pack it again")
        try:
            own = json.loads(header)
            code = self._code(own["code"], code_text)
            head = _head(own, code, nbytes=size, weights_at=_aligned(end, mmap.PAGESIZE), digest=digest.hex())
            _check_places(code["tensors"], head.weights_nbytes)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise PackedModelError(f"{path} is no packed model of this format ({error}): pack it again") from error
        if head.name != name:
            raise PackedModelError(f"{path} was packed as {head.name!r}; rename it, or pack it again by this name")
        if head.weights_at + head.weights_nbytes != size:
            raise PackedModelError(f"{path} ends early: pack it again")
        return head, code

    def _code(self, digest: str, text: bytes) -> Mapping[str, Any]:
        known = self._codes.get(digest)
        if known is None:
            if hashlib.sha256(text).hexdigest() != digest:
                raise ValueError("its code does not have its checksum")
            known = self._codes[digest] = json.loads(text)
        return known


def _head(own: Mapping[str, Any], code: Mapping[str, Any], *, nbytes: int, weights_at: int, digest: str) -> Head:
    labels = own.get("labels")
    baseline_s = tuple(sorted((int(samples), float(seconds)) for samples, seconds in own["baseline_s"]))
    if not baseline_s or not all(samples > 0 and 0 < seconds < math.inf for samples, seconds in baseline_s):
        raise ValueError(f"baseline_s is {own['baseline_s']}")
    layers = len(code["layers"])
    if len(own["limits"]) != layers or len(own["output_bounds"]) != layers:
        raise ValueError(f"its limits are not those of {layers} layers")
    return Head(
        name=str(own["name"]),
        code=str(own["code"]),
        processor=str(own["processor"]),
        nbytes=nbytes,
        baseline_s=baseline_s,
        limits=tuple(tuple(map(float, row)) for row in own["limits"]),
        output_bounds=tuple(tuple(map(float, row)) for row in own["output_bounds"]),
        inputs=_specs(code["inputs"]),
        outputs=_specs(code["outputs"]),
        dynamic_batch=bool(code["dynamic_batch"]),
        channels_last=bool(code["channels_last"]),
        returns=code["returns"],
        labels=None if labels is None else tuple(map(str, labels)),
        preprocess=own.get("preprocess"),
        random_weights=bool(own["random_weights"]),
        weights_sha256=str(own["weights_sha256"]),
        weights_at=weights_at,
        weights_nbytes=int(own["weights_nbytes"]),
        digest=digest,
    )


def _specs(rows: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(str(kind), tuple(map(int, shape)), str(dtype)) for kind, shape, dtype in rows)


def _check_places(tensors: Sequence[Any], nbytes: int) -> None:
    for name, dtype, shape, strides, form, at, size in tensors:
        if dtype not in DTYPE_CODES or at % ALIGNMENT or at < 0 or size < 0 or at + size > nbytes:
            raise ValueError(f"weight {name} lies outside of the weights")
        if not form:
            span = 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
            if min(shape, default=1) > 0 and (
                min(strides, default=0) < 0 or span * ITEM_NBYTES[DTYPE_CODES[dtype]] > size
            ):
                raise ValueError(f"weight {name} of shape {shape} reaches beyond its {size} bytes")


def _aligned(nbytes: int, unit: int) -> int:
    return -(-nbytes // unit) * unit


def _check_owner(about: os.stat_result, path: Path) -> None:
    """Raise if somebody else could have written a file or folder."""
    if about.st_uid not in (os.geteuid(), 0):
        raise PackedModelError(
            f"{path} belongs to another user (number {about.st_uid}), who could have put any code in it: pack the "
            "model yourself, or take over the file"
        )
    if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PackedModelError(f"{path} can be written by others, who could put any code in it: chmod go-w {path}")
