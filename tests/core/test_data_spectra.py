"""Spectra made from measured data have the power of the data."""

import multisagd as ms
from multisagd.data_spectra import DataPower


def test_data_power_is_a_power_of_the_spectrum_of_the_data() -> None:
    grid = ms.Grid.of(height=8, width=8)
    covariance = ms.SpectralCovariance(ms.PowerLaw(-1.0, corner=0.1), grid)
    statistics = ms.DataStatistics.measure([covariance.sample(range(3000), 1)], grid)
    power, expected = ms.SpectralCovariance(DataPower(statistics), grid).power(), covariance.power()
    assert float((power / expected - 1).abs().max()) < 0.2
    power, expected = ms.SpectralCovariance(DataPower(statistics, 0.5), grid).power(), covariance.power().sqrt()
    assert float((power / power.mean() - expected / expected.mean()).abs().max()) < 0.2
