"""One run in several processes, which may be killed and started again.

Under Slurm, Open MPI, Kubernetes or on a TPU pod, start the same command in each process, without
``--processes``: JAX finds out how many there are. To see it on one machine, let the program start
its processes itself, with CPU devices in the place of accelerators::

    python examples/multihost.py --processes 2 --devices 4 --folder out/multihost --steps 20

``--kill 1@12`` kills process 1 before step 12; the others notice and end with an error. Start the
command again, with as many processes and devices as you like, and it goes on from the newest
checkpoint. The gradients of the devices are gathered and added in the order of the devices, so
losses and parameters are the same bits however many processes the devices are spread over.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time

HEARTBEAT = 10  # seconds after which the others know that a process is gone
GRACE = 30  # and then they have this long to end by themselves


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.processes and options.process is None:
        return launch(options)
    return train(options)


def launch(options: argparse.Namespace) -> int:
    """Starts the processes on this machine and waits for them.

    Returns:
      0 if all ended well, else the status of the first that did not.
    """
    if options.devices % options.processes:
        raise SystemExit(f"{options.devices} devices cannot be shared by {options.processes}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, os.path.abspath(__file__), *_words(options), "--port", str(port)]
    children = [  # sessions of their own: Ctrl-C comes here, and as SIGTERM to them
        subprocess.Popen([*words, "--process", str(number)], start_new_session=True)
        for number in range(options.processes)
    ]

    def pass_on(number: int, frame: object) -> None:
        for child in children:
            child.terminate()  # the step is finished and saved
        signal.signal(number, signal.default_int_handler)  # the second time, at once

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _wait(children)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for child in children:  # nothing is left behind
            if child.poll() is None:
                child.kill()
            child.wait()


def _wait(children: list[subprocess.Popen[bytes]]) -> int:
    deadline = None
    while any(child.poll() is None for child in children):
        failed = [child for child in children if child.poll()]
        if failed and deadline is None:
            deadline = time.monotonic() + HEARTBEAT + GRACE
        if deadline is not None and time.monotonic() > deadline:
            sys.stderr.write("a process did not notice in time that another is gone\n")
            break
        time.sleep(0.05)
    for number, child in enumerate(children):
        if child.poll():
            sys.stderr.write(f"process {number} ended with {child.returncode}\n")
    status = next((child.returncode for child in children if child.poll()), 0)
    return 128 - status if status < 0 else status  # as a shell says it


def train(options: argparse.Namespace) -> int:
    """The program of each process: everything below is written as for one."""
    import jax

    connected = _connect(options)
    try:
        _train(options)
    finally:
        if connected:
            jax.distributed.shutdown()
    return 0


def _connect(options: argparse.Namespace) -> bool:
    """Joins the other processes; returns whether there are any."""
    import jax

    if options.process is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.devices // options.processes)
        if options.processes == 1:
            return False
        where = {
            "coordinator_address": f"127.0.0.1:{options.port}",
            "num_processes": options.processes,
            "process_id": options.process,
        }
    elif any(name in os.environ for name in ("SLURM_JOB_ID", "OMPI_COMM_WORLD_SIZE")) or (
        "TPU_WORKER_HOSTNAMES" in os.environ or "JAX_COORDINATOR_ADDRESS" in os.environ
    ):
        where = {}  # JAX reads all of it from the environment
    else:
        return False
    jax.distributed.initialize(
        **where, heartbeat_timeout_seconds=HEARTBEAT, initialization_timeout=60
    )
    return True


def _train(options: argparse.Namespace) -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    import moduli as nnx

    count = jax.device_count()
    mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))
    rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.hidden = nnx.Linear(16, 64, rngs=rngs)
            self.out = nnx.Linear(64, 1, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.out(nnx.relu(self.hidden(x)))

    def make() -> tuple[Model, nnx.Optimizer]:
        model = Model(nnx.Rngs(0))
        return model, nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    def loss_of(model: Model, batch: dict[str, jax.Array]) -> jax.Array:
        return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)

    def mean(value: jax.Array) -> jax.Array:
        """The mean over the parts of the batch, added up in their order on each device."""
        value = jax.lax.with_sharding_constraint(value, everywhere)
        return jax.lax.optimization_barrier(value).mean(axis=0)

    @nnx.jit(keep_shardings=True)
    def train_step(
        model: Model, optimizer: nnx.Optimizer, batch: dict[str, jax.Array]
    ) -> jax.Array:
        parts = jax.tree.map(lambda x: x.reshape(PARTS, -1, *x.shape[1:]), batch)
        parts = jax.lax.with_sharding_constraint(parts, rows)
        losses, grads = nnx.vmap(nnx.value_and_grad(loss_of), in_axes=(None, 0))(model, parts)
        optimizer.update(model, jax.tree.map(mean, grads))
        return mean(losses)

    random = np.random.default_rng(0)
    x = random.normal(size=(256, 16)).astype(np.float32)
    data = nnx.Batches({"x": x, "y": np.sin(x[:, :1])}, 32, seed=1)
    model, optimizer = nnx.create(make, mesh=mesh)
    with nnx.Run(
        options.folder,
        model=model,
        optimizer=optimizer,
        data=data,
        save_every=options.save_every,
        keep=2,
        log_every=5,
        progress=False,
    ) as run:
        for batch in run.steps(options.steps, batch_sharding=rows):
            if options.kill == (options.process, run.step):
                os.kill(os.getpid(), signal.SIGKILL)
            run.log(loss=train_step(model, optimizer, batch))
    if jax.process_index() == 0:
        leaves = jax.tree.leaves(nnx.state((model, optimizer)))
        digest = hashlib.sha256()
        for leaf in leaves:
            digest.update(np.asarray(leaf).tobytes())
        print(f"step {run.step}  loss {run.last['loss']:.6f}  digest {digest.hexdigest()[:16]}")
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()


PARTS = 8  # of each batch; the devices share them


def _kill(text: str) -> tuple[int, int]:
    process, _, step = text.partition("@")
    return int(process), int(step)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=int, help="how many to start on this machine")
    parser.add_argument("--devices", type=int, default=4, help="of all of them together")
    parser.add_argument("--folder", default="out/multihost", help="for checkpoints and the log")
    parser.add_argument("--steps", type=int, default=20, help="number of the last step")
    parser.add_argument("--save-every", type=int, default=5, help="steps between checkpoints")
    parser.add_argument("--kill", type=_kill, metavar="PROCESS@STEP", help="to see what happens")
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return parser


def _words(options: argparse.Namespace) -> list[str]:
    words = []
    for name in ("processes", "devices", "folder", "steps", "save_every"):
        words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    if options.kill:
        words += ["--kill", "{}@{}".format(*options.kill)]
    return words


if __name__ == "__main__":
    sys.exit(main())
