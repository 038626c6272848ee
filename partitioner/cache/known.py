"""What an earlier start found out about the same model: that it keeps no state, and its graph if that took long.

Weights are not kept, nor what is computed from them: the graph is prepared anew, and compared with the model as any
other. What the key does not cover is thus found, or was never relied upon.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from odin.partitioner.cache.chain_cache import ChainCache
from odin.partitioner.cache.graph_data import NotDataError, from_data, to_data
from odin.partitioner.cache.model_digest import example_digest, model_digest
from odin.partitioner.check.executed import Executed, NotCoveredError
from odin.partitioner.graph.capture import Captured

__all__ = ["Known"]

_logger = logging.getLogger(__name__)


class Known:
    """What is known about a model, from disk.

    Parameters
    ----------
    model
        A copy that was not called.
    args
        The example's arguments.
    executed
        What a call with them executed.
    outcome
        Structure of what it returned.
    cache
        Where such things are kept.

    Attributes
    ----------
    stateless
        Whether it was found, with this very example, to keep no state between calls.
    other_values, other_sizes
        Whether it then took other values, and other leading sizes with samples that do not depend on each other.
    graph
        Its graph, where it took long to capture.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        executed: Executed,
        outcome: pytree.TreeSpec,
        *,
        cache: ChainCache,
    ) -> None:
        self.stateless = self.other_values = self.other_sizes = False
        self.graph: Captured | None = None
        self._model, self._outcome, self._cache = model, outcome, cache
        self._key = ""
        try:
            self._key = model_digest(model, args, executed)
            self._example = example_digest(args)
        except NotCoveredError as reason:
            _logger.info("what is found out about the model is not kept: %s", reason)
            return
        entry = cache.load(self._key)
        if entry is None:
            return
        same_example = entry.get("example") == self._example
        self.stateless = same_example
        self.other_values, self.other_sizes = entry.get("other_values") is True, entry.get("other_sizes") is True
        if entry.get("graph") is not None and (same_example or entry.get("any_example") is True):
            try:
                self.graph = from_data(entry["graph"], model, args, outcome)
            except NotDataError as error:
                self.forget(str(error))

    def keep(self, graph: Captured | None, *, other_values: bool, other_sizes: bool, any_example: bool) -> None:
        """Write down what was found.

        Parameters
        ----------
        graph
            The graph as captured, if that took long.
        other_values, other_sizes
            As the attributes.
        any_example
            Whether the graph is the same for examples with other contents.
        """
        if not self._key:
            return
        try:
            data = None if graph is None else to_data(graph, self._model, self._outcome)
        except NotDataError as reason:
            _logger.info("the graph is not kept: %s", reason)
            data = None
        entry = {
            "example": self._example,
            "other_values": other_values,
            "other_sizes": other_sizes,
            "graph": data,
            "any_example": any_example,
        }
        self._cache.store(self._key, entry)

    def forget(self, why: str) -> None:
        """Remove what was wrong, and say so."""
        warnings.warn(
            f"what was kept in {self._cache.directory} about this model does not fit it ({why}); it is captured and "
            "checked anew",
            stacklevel=2,
        )
        self._cache.discard(self._key)
        self.stateless, self.graph = False, None
