"""The monitor as a callback of PyTorch Lightning."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bnsmooth_cli.errors import InputError
from bnsmooth_cli.monitoring.monitor import Monitor

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    try:
        from lightning.pytorch import Callback
    except ImportError:  # which the constructor says
        Callback = object


class LightningMonitor(Callback):
    """Measures a LightningModule while a Trainer fits it: `Trainer(callbacks=[bns.LightningMonitor(...)])`.

    What is measured is the loss that `training_step` returns for the batch, as a function of the parameters, before
    the optimiser's step. Steps are those of `trainer.global_step`; of accumulated batches, the first one is measured.
    While it is measured, `training_step` logs nothing: `self.log` does nothing, `self.logger` is a dummy, and metrics
    are restored. Optimisation has to be automatic, with one optimiser, in one process.

    Args:
        **options: The arguments of `bns.Monitor` besides the model, the loss, the optimiser and `start_step`.

    Attributes:
        monitor: The monitor, from the start of training on.

    Raises:
        InputError: If Lightning is not installed. At the start of training, if the module cannot be monitored.

    >>> from bnsmooth_cli.monitoring.lightning import LightningMonitor
    >>> LightningMonitor(every=50, measures=["smoothness"], folder="runs/mine").monitor is None
    True
    """

    def __init__(self, **options: Any) -> None:
        if Callback is object:
            raise InputError("LightningMonitor: needs the extra: pip install 'bnsmooth[lightning]'")
        super().__init__()
        self._options = options
        self.monitor: Monitor | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to monitor at the present step."""
        if not pl_module.automatic_optimization or len(trainer.optimizers) != 1:
            raise InputError("LightningMonitor: needs automatic optimisation with one optimizer; use bns.Monitor")
        if trainer.world_size > 1:
            raise InputError(f"LightningMonitor: needs one process, and there are {trainer.world_size}")
        step, takes_index = pl_module.training_step, _takes_index(pl_module.training_step)

        def loss(batch: Any, index: int) -> Tensor:
            with _silent(trainer, pl_module):
                output = step(batch, index) if takes_index else step(batch)
            return output["loss"] if isinstance(output, dict) else output

        self.monitor = Monitor(
            pl_module, loss, optimizer=trainer.optimizers[0], start_step=trainer.global_step, **self._options
        )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measure the batch, if it is the first one of a step that is due."""
        if self.monitor is not None and trainer.global_step >= self.monitor.next_step:
            self.monitor.next_step = trainer.global_step
            self.monitor.step(batch, batch_idx)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Complete the tables."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Complete the tables."""
        self._close()

    def _close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()


def _takes_index(training_step: Any) -> bool:
    """Whether a `training_step` takes the number of the batch after the batch."""
    parameters = inspect.signature(training_step).parameters.values()
    return len(parameters) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)


@contextmanager
def _silent(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Let the module log nothing."""
    from lightning.pytorch.loggers.logger import DummyLogger

    loggers, trainer.loggers = trainer.loggers, [DummyLogger() for _ in trainer.loggers]
    own = {name: vars(module)[name] for name in ("log", "log_dict") if name in vars(module)}
    vars(module).update(log=_nothing, log_dict=_nothing)
    try:
        yield
    finally:
        trainer.loggers = loggers
        del vars(module)["log"], vars(module)["log_dict"]
        vars(module).update(own)


def _nothing(*_: object, **__: object) -> None:
    """Log nothing."""
