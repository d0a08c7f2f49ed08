"""Format sizes and durations as text."""


def size_in_words(count: float) -> str:
    """Return a number of bytes in a decimal unit, such as "60 MB" or "1.2 GB"."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= 0.9995 * unit:
            return f"{count / unit:,.1f} {name}" if count < 9.95 * unit else f"{count / unit:,.0f} {name}"
    return f"{count / 1e3:.0f} kB"


def duration_in_words(seconds: float) -> str:
    """Return a duration as a rounded number of one unit, such as "24 minutes" or "3.5 hours"."""
    for unit, name, above in ((86400, "days", 2), (3600, "hours", 2), (60, "minutes", 2)):
        if seconds >= above * unit:
            value = seconds / unit
            return f"{value:.1f} {name}" if value < 10 and unit > 60 else f"{value:,.0f} {name}"
    return f"{max(1, round(seconds))} seconds" if seconds >= 1.5 else "a second"
