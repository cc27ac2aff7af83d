"""What `bench` measured, for people and for programs: Markdown, JSON, CSV and a picture."""

import csv
import io
import json
import os
import platform
from pathlib import Path
from typing import Any

import jax

from ..kernels.cpu.registration import has_kernels
from .timing import Measurement

FORMATS = ("md", "json", "csv")


def environment(model: str) -> dict[str, Any]:
    """What the figures depend on, besides the code."""
    device = jax.devices()[0]
    return {
        "model": model,
        "backend": jax.default_backend(),
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "jax": jax.__version__,
        "row kernel": "numba" if device.platform == "cpu" and has_kernels() else "none",
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def report(measurements: list[Measurement], facts: dict[str, Any], form: str) -> str:
    """The measurements in one of FORMATS, without a line end after the last."""
    if form == "json":
        return json.dumps(
            [{**row._asdict(), "environment": facts} for row in measurements], indent=1
        )
    if form == "csv":
        return _csv(measurements, facts)
    head = ", ".join(f"{name} {value}" for name, value in facts.items())
    return "\n".join([head, "", *_table(measurements)])


def _csv(measurements: list[Measurement], facts: dict[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*Measurement._fields, *facts])
    for row in measurements:
        samples = " ".join(f"{sample:.3f}" for sample in row.samples_ts)
        writer.writerow([*row._replace(samples_ts=samples), *facts.values()])  # pyright: ignore[reportArgumentType]
    return text.getvalue().rstrip("\n")


def _table(measurements: list[Measurement]) -> list[str]:
    columns = {
        "system": lambda row: row.system,
        "test": lambda row: row.test,
        "batch": lambda row: str(row.batch),
        "dtype": lambda row: row.dtype,
        "tokens/s": lambda row: f"{row.avg_ts:.2f} ± {row.stddev_ts:.2f}",
        "GB/s": lambda row: f"{row.gb_s:.1f}",
        "of": lambda row: f"{row.bandwidth_gb_s:.1f}",
        "fraction": lambda row: f"{row.bandwidth_fraction:.2f}",
        "TFLOP/s": lambda row: f"{row.tflop_s:.3f}",
        "compile s": lambda row: _shown(row.compile_seconds, ".1f"),
        "temp MB": lambda row: _shown(row.temp_bytes and row.temp_bytes / 1e6, ".1f"),
        "recompiled": lambda row: _shown(row.recompilations, "d"),
        "ours / peer": _ratio,
    }
    if all(row.ratio is None for row in measurements):
        del columns["ours / peer"], columns["system"]
    cells = [list(columns), *([show(row) for show in columns.values()] for row in measurements)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(f"{cell:>{w}}" for cell, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return [lines[0], rule, *lines[1:]]


def _shown(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)


def _ratio(row: Measurement) -> str:
    if row.ratio is None:
        return ""
    return f"{row.ratio:.2f} ({row.ratio_min:.2f} to {row.ratio_max:.2f})"


def plot(measurements: list[Measurement], peak: float, title: str, path: Path) -> None:
    """Draw the roofline with every measurement, and beside it decoding against the depth.

    `peak` is the machine's operations per second.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _plot_roofline(left, measurements, peak)
    _plot_depths(right, measurements)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _plot_roofline(axes: Any, measurements: list[Measurement], peak: float) -> None:
    bandwidth = max(row.bandwidth_gb_s for row in measurements) * 1e9
    points = [(row.tflop_s * 1e3 / row.gb_s, row.tflop_s * 1e12) for row in measurements]
    ends = [min(x for x, _ in points) / 4, max(peak / bandwidth, *(x for x, _ in points)) * 4]
    knee = peak / bandwidth
    axes.plot([ends[0], knee, ends[1]], [ends[0] * bandwidth, peak, peak], color="black")
    axes.annotate(
        f"{bandwidth / 1e9:.1f} GB/s",
        (ends[0], ends[0] * bandwidth),
        (8, -14),
        textcoords="offset points",
    )
    axes.annotate(
        f"{peak / 1e12:.2f} TFLOP/s",
        (ends[1], peak),
        (-4, 6),
        textcoords="offset points",
        ha="right",
    )
    for row, (x, y) in zip(measurements, points, strict=True):
        axes.plot(x, y, "o", color=_colour(row, measurements), label=f"{row.system} {row.test}")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="FLOP per byte of weights",
        ylabel="FLOP/s",
        title="roofline",
    )
    axes.legend(loc="lower right", fontsize=7)


def _plot_depths(axes: Any, measurements: list[Measurement]) -> None:
    for system in dict.fromkeys(row.system for row in measurements):
        decoded = [
            row for row in measurements if row.system == system and row.test.startswith("tg")
        ]
        points = sorted((_depth(row), row.avg_ts, row.stddev_ts) for row in decoded)
        if points:
            depths, rates, spread = zip(*points, strict=True)
            axes.errorbar(depths, rates, yerr=spread, marker="o", capsize=3, label=system)
    axes.set(
        xlabel="tokens in the cache",
        ylabel="tokens/s",
        title="decode against depth",
        ylim=(0, None),
    )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def _depth(row: Measurement) -> int:
    return int(row.test.partition(" @ d")[2] or 0)


def _colour(row: Measurement, measurements: list[Measurement]) -> str:
    return f"C{list(dict.fromkeys(each.system for each in measurements)).index(row.system)}"
