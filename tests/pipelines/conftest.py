"""The hub of this machine."""

from loopback import hub as hub
