"""Closed-form recursions of every sampler on stationary Gaussian data, one frequency at a time.

Written from the papers in NumPy, apart from the code under test: a sampler fed with the exact denoiser of zero-mean
Gaussian data is linear, so x at each time is a row of weights on (x_T, z_0, z_1, …), kept here per frequency as an
array (1 + steps, frequencies). `gain(i)` is the Wiener filter at time i."""

import math

import numpy as np
from torch import Tensor

import multisagd as ms


class Recursion:
    """Weights of the coloured start and of each step's coloured noise; α[i], σ[i] from i = 0 (noise) to N (data)."""

    def __init__(self, alpha, sigma, C, W, path="preserving"):
        self.alpha, self.sigma, self.C, self.W, self.path = alpha, sigma, C, W, path
        self.steps = len(alpha) - 1

    def wiener(self, a, s):
        total = a**2 * self.C + s**2 * self.W
        return np.divide(a * self.C, total, out=np.zeros_like(total), where=total > 0)

    def start(self):
        return self.noise(-1)

    def noise(self, i):
        """Weights of the noise of step i alone; that of the start is the noise before step 0."""
        x = np.zeros((self.steps + 1, len(self.C)))
        x[i + 1] = 1.0
        return x

    def ddim(self, eta=0.0):
        x = self.start()
        for i in range(self.steps):
            a, s, a2, s2 = self.alpha[i], self.sigma[i], self.alpha[i + 1], self.sigma[i + 1]
            x0 = self.wiener(a, s) * x
            # arXiv 2010.02502 Eq. 16: eta times the DDPM standard deviation.
            c = eta * (s2 / s) * np.sqrt(np.maximum(0.0, s**2 - (a / a2) ** 2 * s2**2))
            x = a2 * x0 + np.sqrt(s2**2 - c**2) * (x - a * x0) / s + c * self.noise(i)
        return x

    def ancestral(self, variance="posterior"):
        x = self.start()
        for i in range(self.steps):
            a, s, a2, s2 = self.alpha[i], self.sigma[i], self.alpha[i + 1], self.sigma[i + 1]
            x0 = self.wiener(a, s) * x
            rho, beta = a / a2, s**2 - (a / a2) ** 2 * s2**2
            mean = (a2 * beta / s**2) * x0 + (rho * s2**2 / s**2) * x
            last = i + 1 == self.steps  # DDPM adds no forward-step noise to the result (2006.11239, Algorithm 2)
            spread = beta if variance == "forward" and not last else s2**2 / s**2 * beta
            x = mean + np.sqrt(np.maximum(0.0, spread)) * self.noise(i)
        return x

    def ode(self, corrected, churn=0.0, time_of=None):
        """Euler and Heun in σ (exploding, flow) or the angle (preserving)."""

        def slope(x, a, s):
            x0 = self.wiener(a, s) * x
            eps = (x - a * x0) / s
            return {"preserving": a * eps - s * x0, "exploding": eps, "flow": eps - x0}[self.path]

        def parameter(a, s):
            return math.atan2(s, a) if self.path == "preserving" else s

        x = self.start()
        for i in range(self.steps):
            a, s, a2, s2 = self.alpha[i], self.sigma[i], self.alpha[i + 1], self.sigma[i + 1]
            if churn and i > 0:  # at the start there is no noisier level to go back to
                ratio = min(churn / self.steps, math.sqrt(2) - 1) + 1
                a3, s3 = self.from_ratio(min(s / a * ratio, self.sigma[0] / self.alpha[0]))
                x = a3 / a * x + math.sqrt(max(0.0, s3**2 - (a3 / a * s) ** 2)) * self.noise(i)
                a, s = a3, s3
            du = parameter(a2, s2) - parameter(a, s)
            first = slope(x, a, s)
            moved = x + du * first
            if corrected and i + 1 < self.steps:
                moved = x + du / 2 * (first + slope(moved, a2, s2))
            x = moved
        return x

    def from_ratio(self, ratio):
        if self.path == "preserving":
            return 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)
        return (1.0, ratio) if self.path == "exploding" else (1 / (1 + ratio), ratio / (1 + ratio))

    def dpm(self, order=2, sde=False):
        """DPM-Solver++(2M), arXiv 2211.01095 Algorithm 2, and SDE-DPM-Solver++(2M) in the midpoint form."""
        lam = np.log(self.alpha / self.sigma)
        x, previous = self.start(), None
        for i in range(self.steps):
            a2, s, s2, h = self.alpha[i + 1], self.sigma[i], self.sigma[i + 1], lam[i + 1] - lam[i]
            x0 = self.wiener(self.alpha[i], s) * x
            D = x0
            if order == 2 and previous is not None and i + 1 < self.steps:
                r0 = (lam[i] - lam[i - 1]) / h
                D = (1 + 1 / (2 * r0)) * x0 - 1 / (2 * r0) * previous
            if sde:
                x = s2 / s * np.exp(-h) * x + a2 * (1 - np.exp(-2 * h)) * D
                x = x + s2 * np.sqrt(1 - np.exp(-2 * h)) * self.noise(i)
            else:
                x = s2 / s * x - a2 * (np.exp(-h) - 1) * D
            previous = x0
        return x

    def unipc(self):
        """UniPC-2, arXiv 2302.04867 Algorithms 1-3 with data prediction, by the linear system for its weights."""
        lam = np.log(self.alpha / self.sigma)
        x = self.start()
        m = [self.wiener(self.alpha[0], self.sigma[0]) * x]
        for i in range(self.steps):
            a2, s, s2, h = self.alpha[i + 1], self.sigma[i], self.sigma[i + 1], lam[i + 1] - lam[i]
            B = np.expm1(-h)
            predicted = base = s2 / s * x - a2 * B * m[i]
            if i + 1 == self.steps:
                return base
            if i > 0:
                r1 = (lam[i - 1] - lam[i]) / h
                predicted = base - a2 * B * 0.5 * (m[i - 1] - m[i]) / r1
            fresh = self.wiener(self.alpha[i + 1], s2) * predicted
            if i == 0:
                x = base - a2 * B * 0.5 * (fresh - m[i])
            else:
                first = B / -h - 1
                second = first / -h - 1 / 2
                # The weights solve [[1, 1], [r1, 1]] rho = [first, 2 second] / B.
                rho = (2 * second - first) / B / (r1 - 1)
                x = base - a2 * B * (rho * (m[i - 1] - m[i]) / r1 + (first / B - rho) * (fresh - m[i]))
            m.append(fresh)
        return x


def recursion_of(process: ms.Process, statistics: ms.DataStatistics, times: Tensor) -> Recursion:
    """The recursion on the first channel of data, also with coefficients per frequency."""
    alpha, sigma = (value.numpy() for value in process.schedule.alpha_sigma(times))
    if process.modulation is not None:
        signal, noise = (factor.flatten(1).numpy() for factor in process.modulation(times, process.grid))
        alpha, sigma = alpha[:, None] * signal, sigma[:, None] * noise
    C, W = (power.flatten().numpy() for power in (statistics.power[0], process.covariance.power()))
    return Recursion(alpha, sigma, C, W, process.schedule.path)


RECURSIONS = {
    ms.DDIM(): lambda r: r.ddim(),
    ms.DDIM(eta=0.6): lambda r: r.ddim(0.6),
    ms.DDIM(eta=1.0): lambda r: r.ancestral(),
    ms.Ancestral(): lambda r: r.ancestral(),
    ms.Ancestral(variance="forward"): lambda r: r.ancestral("forward"),
    ms.Euler(): lambda r: r.ode(False),
    ms.Heun(): lambda r: r.ode(True),
    ms.Euler(churn=2.0): lambda r: r.ode(False, churn=2.0),
    ms.Heun(churn=2.0): lambda r: r.ode(True, churn=2.0),
    ms.DPMSolver(order=1): lambda r: r.dpm(order=1),
    ms.DPMSolver(): lambda r: r.dpm(),
    ms.DPMSolver(sde=True): lambda r: r.dpm(sde=True),
    ms.DPMSolver(order=1, sde=True): lambda r: r.dpm(order=1, sde=True),
    ms.UniPC(): lambda r: r.unipc(),
}
"""What computes the weights of each sampler."""
