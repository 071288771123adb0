"""A plan as ``rayscribe plan`` prints it."""

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from planning.estimate import Estimate
from planning.rates import Rates
from planning.scenario import Machines, Workload
from planning.simulation import Simulated


def print_plan(workload: Workload, machines: Machines, rates: Rates, estimate: Estimate, simulated: Simulated) -> None:
    """Prints time and cost, what limits, what storage and network must do, and the rates with their sources."""
    console = Console(markup=False)  # a source may be a path with brackets
    console.print(_plan(workload, machines, estimate, simulated), highlight=False)
    console.print(_stages(estimate, simulated), highlight=False)
    console.print(_rates(rates), highlight=False)


def _plan(workload: Workload, machines: Machines, estimate: Estimate, simulated: Simulated) -> Table:
    table = Table(show_header=False, box=SIMPLE, title="rayscribe plan", title_justify="left")
    table.add_row(
        "audio",
        f"{workload.audio_h:,.0f} h in {workload.recordings:,} recordings, {workload.speech_h:,.0f} h of speech",
    )
    table.add_row("machines", f"{machines.engines} engines, {machines.listeners} Listeners")
    table.add_row(
        "wall time", f"{_time(simulated.wall_s)} simulated, {_time(estimate.wall_h * 3600)} without queues and faults"
    )
    if machines.price_per_hour:
        cost = machines.price_per_hour * simulated.wall_s / 3600
        table.add_row("cost", f"{cost:,.2f}; {1000 * cost / workload.audio_h:,.2f} for 1,000 hours of audio")
    table.add_row("limited by", estimate.limits)
    if simulated.lost_nodes:
        again = f"{simulated.repeated:.1%} of the recordings were listened to or transcribed again"
        table.add_row("lost nodes", f"{simulated.lost_nodes}; {again}")
    table.add_row(
        "storage",
        f"{estimate.input_tb:,.2f} TB in, {estimate.output_gb:,.2f} GB out; {_gbit(estimate.storage_gbit_s)} to read",
    )
    table.add_row("network", f"{_gbit(estimate.network_gbit_s)} from Listeners to engines")
    return table


def _stages(estimate: Estimate, simulated: Simulated) -> Table:
    busy = {"Listeners": simulated.listeners, "engines": simulated.engines, "driver": simulated.driver}
    table = Table("stage", "hours of audio an hour", "busy", box=SIMPLE)
    for stage, capacity in estimate.capacities.items():
        table.add_row(stage, f"{capacity:,.0f}", f"{busy[stage]:.0%}" if stage in busy else "")
    return table


def _rates(rates: Rates) -> Table:
    table = Table("rate", "", "from", box=SIMPLE)
    for name, unit in (
        ("listener_rtfx", "s of audio a second, by Listener"),
        ("recording_s", "s more for each recording"),
        ("engine_rtfx", "s of speech a second, by engine"),
        ("clip_rtfx", "s of speech a second, of one clip"),
        ("commit_s", "s for a file of the output"),
        ("driver_row_s", "s of the driver for each recording"),
        ("driver_block_s", "s more of the driver for a block, to send it or to receive its receipts"),
        ("listener_start_s", "s until the first Listener works"),
        ("engine_start_s", "s until the first engine works"),
    ):
        rate = getattr(rates, name)
        table.add_row(unit, f"{rate.value:,.4g}", rate.source)
    return table


def _time(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours:,} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"


def _gbit(rate: float) -> str:
    return f"{rate:,.2f} Gbit/s"
