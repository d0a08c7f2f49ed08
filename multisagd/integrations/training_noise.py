"""Derive the training noise of a diffusers model from its scheduler's configuration.

Most diffusers schedulers sample the same process, given by a table of β; the way in which they sample it is ignored
here. Flow-matching schedulers use σ as time. The model's timestep is an index of β, or σ times the number of steps.
Only the name and the configuration of a scheduler are read; its class is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

PREDICTIONS = {"epsilon": "noise", "sample": "x0", "v_prediction": "v"}
FLOW_PREDICTIONS = {"epsilon": "noise", "sample": "x0", "flow_prediction": "flow"}
"""In diffusers, v assumes α² + σ² = 1, and the flow assumes α + σ = 1."""
FOREIGN = ("EDM", "ScoreSde", "KarrasVe", "VQDiffusion", "ConsistencyDecoder", "Cosine")
"""Name prefixes of schedulers with their own scaling of the network's inputs and outputs."""
USUAL = {"snr_shift_scale": 1.0, "timestep_type": "discrete", "invert_sigmas": False}
"""Keys that change noise levels (CogVideoX) or timesteps (Stable Video Diffusion, Mochi), with the supported values."""


class UnsupportedSchedulerError(ValueError):
    """A scheduler's noise levels, timesteps or predictions are not supported by this library."""


@dataclass(frozen=True)
class TrainingNoise:
    """The scheduler's name, the kind and arguments of the schedule, the prediction, and the network's timesteps."""

    scheduler: str
    kind: Literal["discrete", "flow"]
    schedule: dict[str, Any]
    prediction: str
    timesteps: dict[str, Any]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> TrainingNoise:
        """Return the training noise of a scheduler with this `scheduler_config.json`.

        Raises:
            UnsupportedSchedulerError: If this library does not support the scheduler.
            ValueError, KeyError, TypeError, AttributeError: If the configuration does not describe a scheduler.
        """
        name = str(config["_class_name"])
        if not re.fullmatch(r"[\w.]{1,80}", name):
            raise ValueError(f"_class_name={name!r:.80} is not the name of a class")
        if name.startswith("CogVideoX"):
            config = {"snr_shift_scale": 3.0, **config}  # the default of diffusers
        for key, usual in USUAL.items():
            if config.get(key, usual) != usual:
                raise UnsupportedSchedulerError(
                    f"models trained with {key}={config[key]!r:.80} cannot be adopted: their noise levels or "
                    f"timesteps are not supported here (only {key}={usual!r} is)"
                )
        flow = name.startswith("FlowMatch") or bool(config.get("use_flow_sigmas"))
        return _flow(name, config) if flow else _discrete(name, config)


def _flow(name: str, config: Mapping[str, Any]) -> TrainingNoise:
    steps = _count(config)
    clock = {"_target_": "multisagd.FlowSchedule"}
    # Flow-matching schedulers always predict the flow; other schedulers may only use its noise levels.
    prediction = "flow" if name.startswith("FlowMatch") else _prediction(name, config, FLOW_PREDICTIONS)
    shift = float(config.get("shift" if "shift" in config else "flow_shift") or 1.0)
    timesteps = {"clock": clock, "scale": float(steps), "offset": 0.0}
    return TrainingNoise(name, "flow", {"shift": shift}, prediction, timesteps)


def _discrete(name: str, config: Mapping[str, Any]) -> TrainingNoise:
    if name.startswith(FOREIGN) or "beta_schedule" not in config:
        raise UnsupportedSchedulerError(
            f"models trained with {name:.80} cannot be adopted: it is neither a scheduler with DDPM's noise "
            "levels (DDPM, DDIM, PNDM, Euler, DPMSolver, UniPC and the like) nor a flow-matching scheduler"
        )
    prediction = _prediction(name, config, PREDICTIONS)
    steps, trained = _count(config), config.get("trained_betas")
    schedule: dict[str, Any] = {
        "betas": str(config["beta_schedule"]) if trained is None else [float(beta) for beta in trained],
        "beta_start": float(config["beta_start"]), "beta_end": float(config["beta_end"]),
        "steps": steps if trained is None else len(trained),
        "zero_terminal_snr": bool(config.get("rescale_betas_zero_snr", False)),
    }  # fmt: skip
    clock = {"_target_": "multisagd.integrations.discrete.DiscreteSchedule", **schedule}
    # Timestep i lies at (i + 1)/steps.
    timesteps = {"clock": clock, "scale": float(schedule["steps"]), "offset": -1.0}
    return TrainingNoise(name, "discrete", schedule, prediction, timesteps)


def _prediction(name: str, config: Mapping[str, Any], known: Mapping[str, str]) -> str:
    kind = str(config.get("prediction_type", "epsilon"))
    if kind not in known:
        message = f"{name:.80}: prediction_type={kind!r:.80} is not supported here, only {', '.join(known)}"
        raise UnsupportedSchedulerError(message)
    return known[kind]


def _count(config: Mapping[str, Any]) -> int:
    steps = config.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 2 <= steps <= 100_000:
        raise ValueError(f"num_train_timesteps={steps!r:.80} must be an integer from 2 to 100,000")
    return steps
