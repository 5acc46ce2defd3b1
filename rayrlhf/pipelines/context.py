"""What every stage is given."""

from dataclasses import dataclass

from rayrlhf.actors.recorder import Recorder
from rayrlhf.config import RunConfig
from rayrlhf.pipelines.control import RunControl
from rayrlhf.pipelines.folder import RunFolder
from rayrlhf.telemetry.account import RunAccount
from rayrlhf.telemetry.console import Console
from rayrlhf.telemetry.events import EventLog
from rayrlhf.telemetry.memory import MemorySampler


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """One run, started: its configuration, its folder and its voices."""

    config: RunConfig
    folder: RunFolder
    recorder: Recorder
    console: Console
    memory: MemorySampler
    account: RunAccount
    events: EventLog
    control: RunControl
    device: str
    resume: bool
