"""A pipeline that may use only a share of its devices, as its policy sees it: seconds from one request to the next.

A stage that is held to a share pauses after each request until it has used no more than that::

    turn = max(wall, own / share)        own = wall - delay, what it computed; delay, what it waited for its core

So a program that takes part of the core costs nothing while ``wall`` is less than ``own / share``: the stage would
have paused instead, and layers that move away from it gain nothing.
"""

from __future__ import annotations

import numpy as np

from odin.partitioner.policies.base import Observation, Setting

__all__ = ["in_turns", "share_of", "turns_of"]


def share_of(setting: Setting) -> float:
    """Largest part of its devices' time that a pipeline uses."""
    return 1.0 if setting.tenant is None else setting.tenant.share


def turns_of(setting: Setting) -> Setting:
    """The pipeline with its pauses: what is seconds of a stage's work becomes seconds of its turns."""
    share = share_of(setting)
    if share >= 1:
        return setting
    return setting._replace(
        baseline_s=setting.baseline_s / share, send_s=setting.send_s / share, receive_s=setting.receive_s / share
    )


def in_turns(observation: Observation, share: float) -> Observation:
    """A finished request with the turns of its stages; each layer has its part of the pause."""
    if share >= 1:
        return observation
    wall_s = observation.stage_s
    delay_s = np.zeros_like(wall_s) if observation.delay_s is None else np.clip(observation.delay_s, 0.0, wall_s)
    turn_s = np.maximum(wall_s, (wall_s - delay_s) / share)
    times = np.divide(turn_s, wall_s, out=np.ones_like(wall_s), where=wall_s > 0)
    return observation._replace(stage_s=turn_s, layer_s=observation.layer_s * np.repeat(times, observation.plan))
