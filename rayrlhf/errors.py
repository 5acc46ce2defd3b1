"""One picklable error tree: every failure a user can meet, by the kind of remedy it needs.

An error takes one finished sentence, so that it survives pickling across Ray processes unchanged.
"""


class RayrlhfError(Exception):
    """Root of every error this package raises on purpose; `exit_status` is what the command returns."""

    exit_status = 1


class ConfigError(RayrlhfError, ValueError):
    """A key, a value or a combination in the configuration is wrong."""

    exit_status = 2


class DataError(RayrlhfError, ValueError):
    """A file or a row cannot be used as training or evaluation data."""

    exit_status = 2


class ModelError(RayrlhfError, ValueError):
    """A model or tokenizer directory cannot be used for the role it was given."""

    exit_status = 2


class ResourceError(RayrlhfError, RuntimeError):
    """The machine or cluster lacks what the run asks for."""

    exit_status = 2


class CheckpointError(RayrlhfError, RuntimeError):
    """A checkpoint is missing, incomplete or belongs to another run."""

    exit_status = 2


class StorageError(RayrlhfError, RuntimeError):
    """A file of the run cannot be written; the sentence names it, the reason and the remedy."""


class WeightSyncError(RayrlhfError, RuntimeError):
    """A weight update was refused, incomplete or corrupted; the engine that met it must be replaced."""


class ParityError(RayrlhfError, RuntimeError):
    """Engine and learner disagree about log-probabilities of the same tokens under the same weights."""


class LedgerError(RayrlhfError, RuntimeError):
    """A sample was about to be lost, trained twice or trained without having been issued."""


class ScoringError(RayrlhfError, RuntimeError):
    """Too many responses could not be scored; the sentence gives the share and the first cause."""


class WorkerError(RayrlhfError, RuntimeError):
    """A Ray actor died, hung or failed; the sentence names its role, its rank and the cause."""


class DeadlineError(WorkerError, TimeoutError):
    """A wait passed its deadline; the sentence says what was waited for and for how long."""


class StoppedError(RayrlhfError):
    """The run was asked to stop and did, with what it has saved; it is not finished."""

    exit_status = 3


class NonFiniteError(RayrlhfError, ArithmeticError):
    """A loss or gradient stayed non-finite for too many optimizer steps in a row."""


_REASON_LENGTH = 600


def in_one_line(error: BaseException) -> str:
    """The whole reason that a library's error gives, in one line without its full stop, for the end of a sentence of ours.

    Of a traceback in the message the ends are kept; of a very long message the beginning.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any(line.startswith('File "') for line in lines):
        lines = [lines[0], lines[-1]]
    text = " ".join(lines).rstrip(".") or type(error).__name__
    return text if len(text) <= _REASON_LENGTH else f"{text[:_REASON_LENGTH].rsplit(' ', 1)[0]} ..."
