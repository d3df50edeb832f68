"""Every error labkit raises on purpose.

LabkitError
├── UsageError              the caller asked for something impossible (bad argument, unknown name)
├── MissingExtra            an optional dependency is not installed
├── BundleError             a run bundle cannot be read or written
│   └── SchemaError         a field is missing, of the wrong type, or from a newer labkit
├── EngineError             an engine could not do what was asked
│   ├── NotInstalled        no engine of this name on this machine
│   ├── InstallFailed       an installation step failed
│   ├── StartFailed         the server did not become ready
│   │   └── PortTaken       somebody else listens on its port
│   ├── StopFailed          the server, its children or its port did not go away
│   └── EngineDied          a server that was ready is gone
├── ModelError              a model file is missing, damaged or does not match its pin
│   └── UnfairPair          the two sides of a comparison are not the same model or prompt
├── LoadError               the load generator could not start or broke off
├── CalibrationRefused      a run cannot stand for the engine that a profile is fitted to
├── DeviceBusy              another measurement holds the device
└── ExperimentStopped       the learner pressed Stop before there was anything to keep

Each carries three sentences: what was tried, what was seen, what to do next.
"""

from __future__ import annotations


class LabkitError(Exception):
    """Base of all labkit errors.

    Args:
        tried: what labkit was doing, in a few words ("start vLLM on port 8000").
        seen: the evidence (status, log tail, port owner).
        fix: what the reader can do next, ideally one command.
    """

    def __init__(self, tried: str, seen: str = "", fix: str = "") -> None:
        super().__init__(tried, seen, fix)
        self.tried = tried
        self.seen = seen
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.tried]
        if self.seen:
            lines.append(f"Seen: {self.seen}")
        if self.fix:
            lines.append(f"Next: {self.fix}")
        return "\n".join(lines)

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback: a reader can act on sentences, not on frames."""
        return str(self).splitlines()


class UsageError(LabkitError, ValueError):
    """The caller asked for something impossible."""


class MissingExtra(LabkitError, ImportError):
    """An optional dependency is not installed; the fix names the extra."""


class BundleError(LabkitError):
    """A run bundle cannot be read or written."""


class SchemaError(BundleError):
    """A field of a bundle is missing, of the wrong type, or from a newer labkit."""


class EngineError(LabkitError):
    """An engine could not do what was asked."""


class NotInstalled(EngineError):
    """No engine of this name was found on this machine."""


class InstallFailed(EngineError):
    """An installation step failed; the evidence is the end of its output."""


class StartFailed(EngineError):
    """The server did not become ready; the evidence is the end of its log."""


class PortTaken(StartFailed):
    """Somebody else listens on the port, or came to listen while the server was starting."""


class StopFailed(EngineError):
    """The server, one of its children or its port did not go away."""


class EngineDied(EngineError):
    """A server that was ready is gone; the evidence is the end of its log."""


class ModelError(LabkitError):
    """A model file is missing, damaged or does not match its pinned digest."""


class UnfairPair(ModelError):
    """The two sides of a comparison are not the same model or prompt."""


class LoadError(LabkitError):
    """The load generator could not start or broke off."""


class CalibrationRefused(LabkitError):
    """A run cannot stand for the engine that a profile is fitted to; says why."""


class DeviceBusy(LabkitError):
    """Another measurement holds the device and the wait was cut short."""


class ExperimentStopped(LabkitError):
    """Stop came before there was anything to keep."""
