"""Two real processes that run one program together on this machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS = 300


_KEPT: list[socket.socket] = []


def free_address():
    """A HOST:PORT without a listener, which the system gives to nobody else as long as this process runs.

    A coordinator can listen there all the same: gRPC's servers share their ports.
    """
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    kept.bind(("127.0.0.1", 0))
    _KEPT.append(kept)
    return f"127.0.0.1:{kept.getsockname()[1]}"


def run_pair(module, folder, *, devices):
    """Runs two processes `python -m MODULE ADDRESS PROCESS OUTPUT` together; returns their outputs' paths.

    Args:
      devices: devices of each process.
    """
    address = free_address()
    outputs = [folder / f"process{number}.npz" for number in (0, 1)]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", module.__name__, address, str(number), str(output)],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        for number, output in enumerate(outputs)
    ]
    for process in started:
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, errors.decode()
    return outputs
