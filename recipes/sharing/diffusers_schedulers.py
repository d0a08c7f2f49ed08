"""The scheduler that a model of diffusers was trained with, as schedule, prediction and timesteps of this project.

Most schedulers of diffusers are ways to sample one and the same process, given by a table of β; what they sample like
is left behind. Those of flow matching have σ for their time. From the model's side, a timestep counts β, or is σ times
their number. The name and the keys of a scheduler are read; its class is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multisagd.files import read_json
from recipes.base.errors import RecipeError

PREDICTIONS = {"epsilon": "noise", "sample": "x0", "v_prediction": "v"}
FLOW_PREDICTIONS = {"epsilon": "noise", "sample": "x0", "flow_prediction": "flow"}
"""diffusers' v is that of α² + σ² = 1, and its flow that of α + σ = 1."""
DISCRETE = "multisagd.integrations.discrete.DiscreteSchedule"
FOREIGN = ("EDM", "ScoreSde", "KarrasVe", "VQDiffusion", "ConsistencyDecoder", "Cosine")
"""Beginnings of names of schedulers that scale what goes in and out of the network in ways of their own."""
USUAL = {"snr_shift_scale": 1.0, "timestep_type": "discrete", "invert_sigmas": False}
"""Keys that change noise levels (CogVideoX) or timesteps (Stable Video Diffusion, Mochi), and what is known here."""


@dataclass(frozen=True)
class Told:
    """The scheduler's name; the choice of schedule and its keys; what is predicted; keys of the network's timesteps."""

    scheduler: str
    choice: str
    schedule: dict[str, Any]
    prediction: str
    timesteps: dict[str, Any]


def read_scheduler(folder: Path) -> Told:
    """Read the scheduler of a saved pipeline, or one beside a model.

    Raises:
        RecipeError: if there is none, or it is not known here.
    """
    paths = [folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"]
    path = next((each for each in paths if each.exists()), None)
    if path is None:
        raise RecipeError(
            f"{folder} has no scheduler, which says at what noise its network was trained: put the pipeline's "
            "scheduler_config.json into it"
        )
    try:
        config = read_json(path, finite=False)  # diffusers writes -Infinity
        name = str(config["_class_name"])
        if name.startswith("CogVideoX"):
            config = {"snr_shift_scale": 3.0, **config}  # that is what diffusers takes where it is not told
        for key, usual in USUAL.items():
            if config.get(key, usual) != usual:
                raise RecipeError(
                    f"{path}: models trained with {key}={config[key]!r:.80} cannot be adopted: their noise levels or "
                    f"timesteps are of a kind that is not known here ({key}={usual!r} alone is)"
                )
        told = _flow(name, config) if _is_flow(name, config) else _discrete(name, config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(f"cannot read the scheduler {path} ({error!r:.200})") from error
    return told


def _is_flow(name: str, config: Mapping[str, Any]) -> bool:
    return name.startswith("FlowMatch") or bool(config.get("use_flow_sigmas"))


def _flow(name: str, config: Mapping[str, Any]) -> Told:
    steps = _count(config)
    clock = {"_target_": "multisagd.FlowSchedule"}
    # Those of flow matching alone predict the flow; the others were only given its noise levels.
    alone = name.startswith("FlowMatch")
    prediction = "flow" if alone else _prediction(name, config, FLOW_PREDICTIONS)
    shift = float(config.get("shift" if "shift" in config else "flow_shift") or 1.0)
    return Told(name, "flow", {"shift": shift}, prediction, {"clock": clock, "scale": float(steps), "offset": 0.0})


def _discrete(name: str, config: Mapping[str, Any]) -> Told:
    if name.startswith(FOREIGN) or "beta_schedule" not in config:
        raise RecipeError(
            f"models trained with {name:.80} cannot be adopted: it is neither one of the schedulers that share DDPM's "
            "noise levels (DDPM, DDIM, PNDM, Euler, DPMSolver, UniPC and the like) nor one of flow matching"
        )
    prediction = _prediction(name, config, PREDICTIONS)
    steps, trained = _count(config), config.get("trained_betas")
    schedule: dict[str, Any] = {
        "betas": str(config["beta_schedule"]) if trained is None else [float(beta) for beta in trained],
        "beta_start": float(config["beta_start"]), "beta_end": float(config["beta_end"]), "steps": steps,
        "zero_terminal_snr": bool(config.get("rescale_betas_zero_snr", False)),
    }  # fmt: skip
    if trained is not None:
        schedule["steps"] = steps = len(trained)
    clock = {"_target_": DISCRETE, **schedule}
    # Timestep i lies at (i + 1)/steps.
    return Told(
        name, "discrete", schedule, prediction, {"clock": clock, "scale": float(steps), "offset": -1.0}
    )  # fmt: skip


def _prediction(name: str, config: Mapping[str, Any], known: Mapping[str, str]) -> str:
    kind = str(config.get("prediction_type", "epsilon"))
    if kind not in known:
        raise RecipeError(f"{name:.80}: prediction_type={kind!r:.80} is not known here, only {', '.join(known)}")
    return known[kind]


def _count(config: Mapping[str, Any]) -> int:
    steps = config.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 2 <= steps <= 100_000:
        raise ValueError(f"num_train_timesteps={steps!r:.80}")
    return steps
