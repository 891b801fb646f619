"""What can go wrong at a beamline, and how long: each kind breaks one thing; `Scene.mend` makes it whole again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.system.faults.scene import Scene

Break = Callable[[Scene, random.Random], None]


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    Parameters
    ----------
    break_it : callable
        Breaks one thing; may take a while, and may do it several times.
    lasts_s : (float, float)
        Shortest and longest time until it is mended.
    ends_session : bool
        Whether the scan dies of the fault itself: whoever kills the RunEngine's process ends its scan.
    small_disks : bool
        Whether it needs file systems that can be filled.
    channel_access : bool
        Whether it needs an IOC.
    """

    break_it: Break
    lasts_s: tuple[float, float] = (0.5, 6.0)
    ends_session: bool = False
    small_disks: bool = False
    channel_access: bool = False


def _signal(pid: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        if pid:
            os.kill(pid, what)


def nothing(scene: Scene, rng: random.Random) -> None:
    """Break nothing: what a scan without a fault looks like."""


def server_killed(scene: Scene, rng: random.Random) -> None:
    """Kill -9 of the catalog's server; it is served again later, at another port behind the same proxy."""
    scene.kill_server()


def server_ended(scene: Scene, rng: random.Random) -> None:
    """An orderly stop of the server, as for an upgrade."""
    scene.kill_server(signal.SIGTERM)


def server_hangs(scene: Scene, rng: random.Random) -> None:
    """SIGSTOP: connections are taken by the kernel, nobody answers."""
    _signal(scene.server.pid, signal.SIGSTOP)


def server_stutters(scene: Scene, rng: random.Random) -> None:
    """SIGSTOP for less than a time-out, several times."""
    for _ in range(rng.randint(2, 4)):
        _signal(scene.server.pid, signal.SIGSTOP)
        time.sleep(rng.uniform(0.2, 1.5))
        _signal(scene.server.pid, signal.SIGCONT)
        time.sleep(rng.uniform(0.1, 0.8))


def worker_killed(scene: Scene, rng: random.Random) -> None:
    """Kill -9 of the worker, at times again while the next one is coming up."""
    for _ in range(rng.choice((1, 1, 1, 2))):
        _signal(scene.session.worker_pid, signal.SIGKILL)
        time.sleep(rng.uniform(0.0, 3.0))


def worker_hangs(scene: Scene, rng: random.Random) -> None:
    """SIGSTOP of the worker."""
    _signal(scene.session.worker_pid, signal.SIGSTOP)


def session_killed(scene: Scene, rng: random.Random) -> None:
    """Kill -9 of the RunEngine's process; a new session is opened later, as a user would."""
    scene.session.kill()


def session_and_server_killed(scene: Scene, rng: random.Random) -> None:
    """A machine that goes down with everything on it."""
    victims = [scene.session.process.pid, scene.server.pid, scene.session.worker_pid]
    rng.shuffle(victims)
    for pid in victims:
        _signal(pid, signal.SIGKILL)
    scene.session.kill()


def connections_refused(scene: Scene, rng: random.Random) -> None:
    """All connections are reset, and none is taken."""
    scene.proxy.refuse()


def connections_half_open(scene: Scene, rng: random.Random) -> None:
    """A cut cable: what is open stays open and dead for ever, what is new is taken and never answered."""
    scene.proxy.fall_silent()


def slow_network(scene: Scene, rng: random.Random) -> None:
    """Each request waits for 0.2 to 2 s."""
    scene.proxy.delay_s = rng.uniform(0.2, 2.0)


def server_errors(scene: Scene, rng: random.Random) -> None:
    """A part of the requests is answered with 503, another part loses its connection."""
    scene.proxy.error_share, scene.proxy.cut_share = rng.uniform(0.1, 0.5), rng.uniform(0.05, 0.3)


def plan_paused(scene: Scene, rng: random.Random) -> None:
    """Pause and resume happen in the session, see `Order`: events are measured again under the same numbers."""


def disk_of_catalog_full(scene: Scene, rng: random.Random) -> None:
    """Not a byte is left where the catalog writes."""
    if scene.catalog_disk is not None:
        scene.catalog_disk.fill()


def disk_of_session_full(scene: Scene, rng: random.Random) -> None:
    """Not a byte is left where journals, backup and spool lie."""
    if scene.session_disk is not None:
        scene.session_disk.fill()


def disks_full(scene: Scene, rng: random.Random) -> None:
    """Both at once."""
    disk_of_catalog_full(scene, rng)
    disk_of_session_full(scene, rng)


def ioc_hangs(scene: Scene, rng: random.Random) -> None:
    """SIGSTOP of the IOC, for less than the 2 s after which Channel Access itself fails the plan."""
    if scene.ioc is not None:
        _signal(scene.ioc.pid, signal.SIGSTOP)


def two_at_once(scene: Scene, rng: random.Random) -> None:
    """Two of the kinds that need nothing special, one soon after the other."""
    first, second = rng.sample(PLAIN, 2)
    KINDS[first].break_it(scene, rng)
    time.sleep(rng.uniform(0.0, 2.0))
    KINDS[second].break_it(scene, rng)


#: All kinds, by the name they have in the table.
KINDS: dict[str, Kind] = {
    "none": Kind(nothing, (0.0, 0.0)),
    "server: kill -9, restart": Kind(server_killed),
    "server: orderly restart": Kind(server_ended),
    "server: SIGSTOP": Kind(server_hangs, (2.0, 25.0)),
    "server: stutters": Kind(server_stutters, (0.0, 1.0)),
    "worker: kill -9": Kind(worker_killed),
    "worker: SIGSTOP": Kind(worker_hangs, (1.0, 10.0)),
    "session: kill -9": Kind(session_killed, ends_session=True),
    "machine down": Kind(session_and_server_killed, ends_session=True),
    "connections refused": Kind(connections_refused),
    "connections half open": Kind(connections_half_open, (2.0, 25.0)),
    "slow network": Kind(slow_network, (3.0, 10.0)),
    "errors and resets": Kind(server_errors, (3.0, 10.0)),
    "plan paused, resumed": Kind(plan_paused, (0.0, 0.0)),
    "two at once": Kind(two_at_once),
    "catalog's disk full": Kind(disk_of_catalog_full, (2.0, 8.0), small_disks=True),
    "session's disk full": Kind(disk_of_session_full, (1.0, 8.0), small_disks=True),
    "both disks full": Kind(disks_full, (1.0, 8.0), small_disks=True),
    "IOC: SIGSTOP": Kind(ioc_hangs, (0.3, 1.5), channel_access=True),
    "IOC, server: kill -9": Kind(server_killed, channel_access=True),
    "IOC, worker: kill -9": Kind(worker_killed, channel_access=True),
}
#: Kinds that can meet another one.
PLAIN = [
    "server: kill -9, restart",
    "server: SIGSTOP",
    "worker: kill -9",
    "worker: SIGSTOP",
    "connections refused",
    "connections half open",
    "slow network",
    "errors and resets",
]
