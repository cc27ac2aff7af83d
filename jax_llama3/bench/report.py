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
from .timing import Row

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
        "row kernel": "numba" if has_kernels() else "none",
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


def report(rows: list[Row], facts: dict[str, Any], form: str) -> str:
    """The rows in one of FORMATS; without a line end at the end."""
    if form == "json":
        return json.dumps([{**row._asdict(), "environment": facts} for row in rows], indent=1)
    if form == "csv":
        return _csv(rows, facts)
    head = ", ".join(f"{name} {value}" for name, value in facts.items())
    return "\n".join([head, "", *_table(rows)])


def _csv(rows: list[Row], facts: dict[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*Row._fields, *facts])
    for row in rows:
        samples = " ".join(f"{sample:.3f}" for sample in row.samples_ts)
        writer.writerow([*row._replace(samples_ts=samples), *facts.values()])  # pyright: ignore[reportArgumentType]
    return text.getvalue().rstrip("\n")


def _table(rows: list[Row]) -> list[str]:
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
    if all(row.ratio is None for row in rows):
        del columns["ours / peer"], columns["system"]
    cells = [list(columns), *([show(row) for show in columns.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(f"{cell:>{w}}" for cell, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return [lines[0], rule, *lines[1:]]


def _shown(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return ""
    return f"{row.ratio:.2f} ({row.ratio_min:.2f} to {row.ratio_max:.2f})"


def check_picture(path: Path) -> None:
    """Refuse a picture that could not be drawn at the end, before anything is timed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError(
            "--plot needs matplotlib; install it with: pip install 'jax_llama3[plot]'"
        ) from None
    if path.suffix != ".png":
        raise ValueError(f"{path} does not end in .png")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder; make it first")


def plot(rows: list[Row], peak: float, title: str, path: Path) -> None:
    """Left the roofline: every row against the two ceilings; right decoding against the depth.

    `peak` is the machine's operations per second.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _plot_roofline(left, rows, peak)
    _plot_depths(right, rows)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _plot_roofline(axes: Any, rows: list[Row], peak: float) -> None:
    bandwidth = max(row.bandwidth_gb_s for row in rows) * 1e9
    points = [(row.tflop_s * 1e3 / row.gb_s, row.tflop_s * 1e12) for row in rows]
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
    for row, (x, y) in zip(rows, points, strict=True):
        axes.plot(x, y, "o", color=_colour(row, rows), label=f"{row.system} {row.test}")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="FLOP per byte of weights",
        ylabel="FLOP/s",
        title="roofline",
    )
    axes.legend(loc="lower right", fontsize=7)


def _plot_depths(axes: Any, rows: list[Row]) -> None:
    for system in dict.fromkeys(row.system for row in rows):
        decoded = [row for row in rows if row.system == system and row.test.startswith("tg")]
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


def _depth(row: Row) -> int:
    return int(row.test.partition(" @ d")[2] or 0)


def _colour(row: Row, rows: list[Row]) -> str:
    return f"C{list(dict.fromkeys(each.system for each in rows)).index(row.system)}"
