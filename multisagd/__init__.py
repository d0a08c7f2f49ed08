"""Diffusion models whose forward noise is shaped in frequency, on grids of any number of dimensions."""

from multisagd import loss, networks, seeds
from multisagd.calibration import Calibrated, calibrate
from multisagd.channel_covariance import ChannelCovariance
from multisagd.condition import Condition
from multisagd.continuation import continued
from multisagd.corruption import Corruption
from multisagd.covariance import Covariance, SpectralCovariance
from multisagd.covariance_rules import AmplitudeEnvelope, BandSpectrum, DecibelEnvelope, EnvelopeAndSpectrum
from multisagd.denoiser import Denoiser, GaussianDenoiser
from multisagd.dual import DualDenoiser
from multisagd.ema import PowerEMA
from multisagd.gaussian_posterior import ConditionalGaussianDenoiser, GaussianPosterior
from multisagd.gaussian_restoration import GaussianRestoration
from multisagd.grid import Axis, Grid
from multisagd.guidance import Autoguidance, ClassifierFree
from multisagd.inpainting import InpaintingDenoiser, put_back
from multisagd.integrator import GaussianIntegrator
from multisagd.inverse import DPS, PiGDM
from multisagd.item_covariance import ConditionedCovariance, CovarianceRule, ItemCovariance
from multisagd.likelihood import bits_per_dimension, log_likelihood
from multisagd.loss import (
    LaplaceLogSnrTimes,
    LogitNormalTimes,
    LogNormalTimes,
    OctaveTimes,
    UniformTimes,
    stratified_uniform,
)
from multisagd.measurement import Filtered, Masked, Measurement, Pooled
from multisagd.mixing import Refinement, mix_noise, sample_refined
from multisagd.modulation import Blur, ColorShift, NoiseFloor, Prefilter
from multisagd.multistep import DPMSolver, UniPC
from multisagd.omission import ProjectedDenoiser
from multisagd.orientation import Spots, Streaks
from multisagd.padding import PaddedCovariance
from multisagd.process import Process
from multisagd.radial import Band, Exponential, Gaussian, LowPass, PowerLaw, Rings, TwoBand
from multisagd.regularisation import SpectralPenalty
from multisagd.restoration import RestoringDenoiser
from multisagd.samplers import DDIM, Ancestral, Euler, Heun
from multisagd.sampling import sample, time_steps
from multisagd.schedule import (
    CosineSchedule,
    FlowSchedule,
    KarrasSchedule,
    LinearSchedule,
    Schedule,
    SigmoidSchedule,
    TabulatedSchedule,
)
from multisagd.spacetime import Autoregressive, HarmonicStop, VelocityTuned
from multisagd.spectrum import Flat, Offset, Outside, Spectrum
from multisagd.statistics import DataStatistics
from multisagd.table import Table
from multisagd.terminal import terminal_snr
from multisagd.u_turn import u_turn, u_turn_correlation, vary
from multisagd.weighting import (
    KarrasWeighting,
    MinSNR,
    PerFrequency,
    SigmoidWeighting,
    SoftMinSNR,
    UncertaintyWeighting,
    UniformWeighting,
    Weighting,
)

__all__ = [
    "DDIM",
    "DPS",
    "AmplitudeEnvelope",
    "Ancestral",
    "Autoguidance",
    "Autoregressive",
    "Axis",
    "Band",
    "BandSpectrum",
    "Blur",
    "Calibrated",
    "ChannelCovariance",
    "ClassifierFree",
    "ColorShift",
    "Condition",
    "ConditionalGaussianDenoiser",
    "ConditionedCovariance",
    "Corruption",
    "CosineSchedule",
    "Covariance",
    "CovarianceRule",
    "DPMSolver",
    "DataStatistics",
    "DecibelEnvelope",
    "Denoiser",
    "DualDenoiser",
    "EnvelopeAndSpectrum",
    "Euler",
    "Exponential",
    "Filtered",
    "Flat",
    "FlowSchedule",
    "Gaussian",
    "GaussianDenoiser",
    "GaussianIntegrator",
    "GaussianPosterior",
    "GaussianRestoration",
    "Grid",
    "HarmonicStop",
    "Heun",
    "InpaintingDenoiser",
    "ItemCovariance",
    "KarrasSchedule",
    "KarrasWeighting",
    "LaplaceLogSnrTimes",
    "LinearSchedule",
    "LogNormalTimes",
    "LogitNormalTimes",
    "LowPass",
    "Masked",
    "Measurement",
    "MinSNR",
    "NoiseFloor",
    "OctaveTimes",
    "Offset",
    "Outside",
    "PaddedCovariance",
    "PerFrequency",
    "PiGDM",
    "Pooled",
    "PowerEMA",
    "PowerLaw",
    "Prefilter",
    "Process",
    "ProjectedDenoiser",
    "Refinement",
    "RestoringDenoiser",
    "Rings",
    "Schedule",
    "SigmoidSchedule",
    "SigmoidWeighting",
    "SoftMinSNR",
    "SpectralCovariance",
    "SpectralPenalty",
    "Spectrum",
    "Spots",
    "Streaks",
    "Table",
    "TabulatedSchedule",
    "TwoBand",
    "UncertaintyWeighting",
    "UniPC",
    "UniformTimes",
    "UniformWeighting",
    "VelocityTuned",
    "Weighting",
    "bits_per_dimension",
    "calibrate",
    "continued",
    "log_likelihood",
    "loss",
    "mix_noise",
    "networks",
    "put_back",
    "sample",
    "sample_refined",
    "seeds",
    "stratified_uniform",
    "terminal_snr",
    "time_steps",
    "u_turn",
    "u_turn_correlation",
    "vary",
]
