"""Telling another server that a generation has ended: signed, to listed hosts only, never through a redirect."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import json
import logging
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from realcustom.serving.records import Job, Jobs
from realcustom.serving.trouble import storage_trouble

log = logging.getLogger(__name__)

TRIES = (0.0, 2.0, 15.0, 120.0)  # seconds before each try to tell an address
SECONDS = 10.0  # that an address may take
LOOK = 5.0  # seconds between two looks at what is to be told
LONGEST = 2000  # characters of an address

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, kw_only=True)
class HookRules:
    """Which addresses may be told.

    hosts: names, and addresses or networks (10.0.0.0/8). A name may lead to public addresses and to those that are
        listed; an address that is given in the place of a name must be listed.
    secret: of the signatures.
    """

    hosts: tuple[str, ...] = ()
    secret: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)

    def check(self, url: Any) -> SplitResult:
        """The parts of an address that may be told; nothing is looked up.

        Raises:
            ValueError: it is none, or its host is not listed.
        """
        if not isinstance(url, str) or len(url) > LONGEST or not url.isprintable() or not url.isascii():
            raise ValueError(f"A webhook must be an address of at most {LONGEST} ASCII characters.")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ValueError(f'"{url[:80]}" is no address of a webhook.') from None
        if parts.scheme not in ("http", "https") or not host or port == 0 or parts.username is not None or " " in url:
            raise ValueError(f'"{url[:80]}" is no address of a webhook: https://HOST/PATH.')
        number = _address(host)
        if host not in self._names() if number is None else not self._lists(number):
            raise ValueError(f'This server tells no webhooks on "{host[:80]}".')
        return parts

    def choose(self, numbers: list[str]) -> str:
        """The address to connect to among those of a name; ConnectionError where none may be."""
        for number in numbers:
            address = ipaddress.ip_address(number.partition("%")[0])
            address = getattr(address, "ipv4_mapped", None) or address
            if (address.is_global and not address.is_multicast) or self._lists(address):
                return number
        raise ConnectionError("its host leads to a private address")

    def _names(self) -> set[str]:
        return {host.lower() for host in self.hosts if _network(host) is None}

    def _lists(self, address: Address) -> bool:
        networks = [network for host in self.hosts if (network := _network(host)) is not None]
        return any(address in network for network in networks)

    def sign(self, moment: str, body: bytes) -> str:
        """The signature of a body at a moment: HMAC-SHA256 of "MOMENT.BODY", in hex."""
        return hmac.new(self.secret.encode(), moment.encode() + b"." + body, hashlib.sha256).hexdigest()


class Webhooks:
    """A thread that tells of ended generations until it is stopped; what it did not tell, the next server tells.

    jobs: where they are kept. describe: what is told of one.
    """

    def __init__(self, jobs: Jobs, describe: Callable[[Job], Mapping[str, Any]], rules: HookRules):
        self.jobs, self.describe, self.rules = jobs, describe, rules
        self._changed = threading.Condition()
        self._looking = self._ending = False
        self._tries: dict[str, tuple[int, float]] = {}  # id -> tries so far, when the next one is due
        self._thread = threading.Thread(target=self._work, name="webhooks", daemon=True)

    def start(self) -> None:
        """Begin, where there is a host that may be told."""
        if self.rules.hosts:
            self._thread.start()

    def look(self) -> None:
        """Something has ended."""
        with self._changed:
            self._looking = True
            self._changed.notify_all()

    def stop(self) -> None:
        """End after what is being told."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(SECONDS)

    def _work(self) -> None:
        while True:
            try:
                self._tell_all()
            except Exception as error:
                if storage_trouble(error) is None:
                    log.exception("webhooks")
            with self._changed:
                self._changed.wait_for(lambda: self._looking or self._ending, LOOK)
                self._looking = False
                if self._ending:
                    return

    def _tell_all(self) -> None:
        for job in self.jobs.to_tell():
            tries, due = self._tries.get(job.id, (0, 0.0))
            if self._ending or time.monotonic() < due:
                continue
            try:
                send(self.rules, job.webhook, job.id, self.describe(job))
            except (OSError, http.client.HTTPException, ValueError) as error:
                tries += 1
                log.warning("the webhook of generation %s was not told: %s", job.id, error)
                if tries < len(TRIES):
                    self._tries[job.id] = (tries, time.monotonic() + TRIES[tries])
                    continue
                self.jobs.mark_told(job.id, -1)
            else:
                self.jobs.mark_told(job.id, 1)
            self._tries.pop(job.id, None)


def send(rules: HookRules, url: str, name: str, record: Mapping[str, Any]) -> None:
    """POST a generation to an address.

    Raises:
        OSError, http.client.HTTPException: it cannot be reached, or its answer is not 2xx; a redirect is none.
        ValueError: it is not listed any more.
    """
    parts = rules.check(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    # Looked up once: what was judged is what is connected to.
    found = [entry[4][0] for entry in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)]
    connection = http.client.HTTPConnection(parts.hostname, port, timeout=SECONDS)
    body, moment = json.dumps({"event": "end", "generation": record}).encode(), str(int(time.time()))
    headers = {
        "content-type": "application/json",
        "user-agent": "realcustom",
        "x-realcustom-id": name,
        "x-realcustom-timestamp": moment,
        "x-realcustom-signature": f"sha256={rules.sign(moment, body)}",
    }
    plain = socket.create_connection((rules.choose(found), port), timeout=SECONDS)
    try:
        if parts.scheme == "https":
            plain = ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname)
        connection.sock = plain
        connection.request("POST", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), body, headers)
        status = connection.getresponse().status
    finally:
        plain.close()
    if not 200 <= status < 300:
        raise ConnectionError(f"it answered {status}")


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text.strip("[]"), strict=False)
    except ValueError:
        return None
